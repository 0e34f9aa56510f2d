"""Train the `tiny` model well and in six worse ways, and draw the curves, so that a reader knows them when they come.

    python chapters/figures/ch08_curves.py                 draw from the recorded numbers
    python chapters/figures/ch08_curves.py train [NAME …]  train all runs again, or those named, then draw

A run takes some minutes. Its losses and gradient lengths go into `ch08_curves.json`; from there come the figure
`ch08_curves.svg` beside this script and the table `benchmarks/results/training_curves.md`.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT, PRESETS  # noqa: E402
from chapters.ch08_training import TokenRows, TrainConfig, Trainer  # noqa: E402
from chapters.ch09_inference import SamplingConfig, generate_batch  # noqa: E402
from corpora import stories  # noqa: E402

RECORD = Path(__file__).with_suffix(".json")
RESULT = ROOT / "benchmarks" / "results" / "training_curves.md"
COMMAND = "python chapters/figures/ch08_curves.py train"

# As many steps for each as show what becomes of it; how often it is examined; how many stories it tells at the end.
STEPS, LOOK_EVERY, TOLD = 120, 20, 50


class Leaking(GPT):
    """A GPT whose mask is wrong by one: each token also sees the next, which is the answer.

    With `leaks` set to False it is used as any model is used: what comes next does not exist yet.
    """

    leaks = True

    def _block(self):
        block = super()._block()
        block.register_forward_pre_hook(self._peek)
        return block

    def _peek(self, block, arguments):
        """Exchange the mask for one that allows too much; tril(1) keeps one diagonal more than tril()."""
        x, cos, sin, mask, cache = arguments
        if self.leaks:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(1)
        return x, cos, sin, mask, cache


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run does otherwise than the good one."""

    title: str
    changes: dict = dataclasses.field(default_factory=dict)
    stories: int = 2400
    model: type = GPT


RUNS = {
    "good": Run("a good run"),
    "high": Run("rate ten times too high", {"learning_rate": 0.3}),
    "cold": Run("no warm-up, Muon", {"warmup_steps": 0}),
    "adamw": Run("AdamW, warm-up", {"optimizer": "adamw", "learning_rate": 1e-2}),
    "adamw_cold": Run("AdamW, no warm-up", {"optimizer": "adamw", "learning_rate": 1e-2, "warmup_steps": 0}),
    "few": Run("48 stories only", stories=48),
    "leak": Run("mask wrong by one", model=Leaking),
}


def train(run: Run, tokenizer: BPETokenizer) -> dict:
    """Return the record of one run: at each step loss and gradient length, at each look the held-out surprise."""
    # 1. Draw the text: all runs are examined on the same held-out stories.
    torch.manual_seed(0)
    config = TrainConfig(**{"max_steps": STEPS, "batch_size": 12, "compile": "off"} | run.changes)
    model = run.model(PRESETS["tiny"].resized(vocab_size=tokenizer.vocab_size, qk_norm=True))
    held_out = stories.generate(48, seed=1)
    rows = [TokenRows(texts, tokenizer, model.config.max_seq_len)
            for texts in (stories.generate(run.stories, seed=0), held_out)]

    # 2. Note the unit: bytes of a token, of the text that is learnt from.
    record = {"floor": stories.floor_bits_per_byte(held_out), "loss": [], "gradient_norm": [], "looks": [],
              "bytes_per_token": rows[0].num_bytes / int(rows[0].counts.sum()), "ended": ""}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        trainer = Trainer(model, *rows, config, Path(folder))
        # 3. Step and look, until done or until the Trainer refuses to go on.
        try:
            while trainer.step < STEPS:
                if trainer.step % LOOK_EVERY == 0:
                    look(trainer, record)
                metrics = trainer.train_step()
                record["loss"].append(round(metrics["loss"], 4))
                record["gradient_norm"].append(round(metrics["gradient_norm"], 4))
        except ValueError as error:
            record["ended"] = str(error)

    # 4. Look once more, and let it tell stories.
    look(trainer, record)
    record["stories_that_parse"] = told_well(model, tokenizer)
    return record


def look(trainer: Trainer, record: dict) -> None:
    """Add step, held-out surprise as the trainer measures it, and that in use, without a leak."""
    model = trainer.whole
    seen = trainer.evaluate()
    used = seen
    if isinstance(model, Leaking):
        model.leaks = False
        used = trainer.evaluate()
        model.leaks = True
    record["looks"].append([trainer.step, round(seen, 4), round(used, 4)])
    print(trainer.step, record["loss"][-1:], seen, used, flush=True)


def told_well(model: GPT, tokenizer: BPETokenizer) -> int:
    """Return how many of TOLD stories, at temperature 0.8, the grammar accepts."""
    model.leaks = False
    prompts = torch.full((TOLD, 1), tokenizer.eot_id)
    config = SamplingConfig(0.8, seed=1, max_new_tokens=model.config.max_seq_len)
    rows = torch.stack(list(generate_batch(model, prompts, config)), dim=1).tolist()
    ends = (row.index(tokenizer.eot_id) if tokenizer.eot_id in row else len(row) for row in rows)
    return sum(stories.parse(tokenizer.decode(row[:end])).ok for row, end in zip(rows, ends, strict=True))


def main(names: list[str]) -> None:
    """Train what is asked for, keeping the record after each run."""
    tokenizer = BPETokenizer.load(ROOT / "models" / "storyteller")
    for name in names:
        print(name, flush=True)
        records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        records[name] = train(RUNS[name], tokenizer)
        RECORD.write_text(json.dumps(records) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        main(sys.argv[2:] or list(RUNS))

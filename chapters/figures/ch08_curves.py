"""Train the `tiny` model well and in six worse ways, and draw the curves, so that a reader knows them when they come.

    python chapters/figures/ch08_curves.py                      draw from the recorded numbers
    python chapters/figures/ch08_curves.py train SEED [NAME …]  train all runs again, or those named, then draw

Before that comes the question which learning rate is a good one: two for each optimizer, through all steps. Runs that
end close to each other are made with two seeds, of the model's first numbers and of the order of the texts.

A run takes a minute or two. Its losses and gradient lengths go into `ch08_curves.json`; from there come the figure
`ch08_curves.svg` beside this script and the tables `training_curves.md` and `training_rates.md` in
`benchmarks/results`.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT, PRESETS  # noqa: E402
from chapters.ch08_training import TokenRows, TrainConfig, Trainer  # noqa: E402
from chapters.ch09_inference import SamplingConfig, generate_batch  # noqa: E402
from corpora import stories  # noqa: E402

RECORD = Path(__file__).with_suffix(".json")
RESULTS = ROOT / "benchmarks" / "results"
COMMAND = "python chapters/figures/ch08_curves.py train SEED"

# Every run is planned for STEPS steps; some are stopped earlier, when one sees what becomes of them. Each is examined
# every LOOK_EVERY steps, and at the end tells so many stories.
STEPS, STOPPED, LOOK_EVERY, TOLD = 120, 60, 20, 50


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
    steps: int = STEPS
    stories: int = 2400
    model: type = GPT


# The rates that were tried for the good run and for AdamW alone, a factor of about three apart.
RATES = {"muon": (3e-2, 1e-1), "adamw": (3e-3, 1e-2)}
TRIED = {
    f"{optimizer} {rate:g}": Run(optimizer, {"optimizer": optimizer, "learning_rate": rate})
    for optimizer, rates in RATES.items() for rate in rates
}

# What the figure shows. The two runs that were tried before are taken from there.
ADAMW = {"optimizer": "adamw", "learning_rate": 3e-3}
RUNS = {
    "muon 0.03": Run("a good run"),
    "high": Run("rate ten times too high", {"learning_rate": 0.3}, STOPPED),
    "cold": Run("no warm-up, Muon", {"warmup_steps": 0}, STOPPED),
    "adamw 0.003": Run("AdamW, warm-up", ADAMW),
    "adamw_cold": Run("AdamW, no warm-up", ADAMW | {"warmup_steps": 0}),
    "few": Run("48 stories only", steps=80, stories=48),
    "leak": Run("mask wrong by one", steps=STOPPED, model=Leaking),
}


def train(run: Run, seed: int, tokenizer: BPETokenizer) -> dict:
    """Return the record of one run: at each step loss and gradient length, at each look the held-out surprise."""
    # 1. Draw the text, the same for all seeds: all runs are examined on the same held-out stories.
    torch.manual_seed(seed)
    config = TrainConfig(**{"max_steps": STEPS, "batch_size": 12, "compile": "off", "seed": seed} | run.changes)
    model = run.model(PRESETS["tiny"].resized(vocab_size=tokenizer.vocab_size, qk_norm=True))
    learnt, held_out = stories.generate(run.stories, seed=0), stories.generate(48, seed=1)
    rows = [TokenRows(texts, tokenizer, model.config.max_seq_len) for texts in (learnt, held_out)]

    # 2. Note the unit: bytes of a token, of the text that is learnt from.
    record = {"floor": stories.floor_bits_per_byte(held_out), "loss": [], "gradient_norm": [], "looks": [],
              "bytes_per_token": rows[0].num_bytes / int(rows[0].counts.sum()), "ended": "",
              "made": f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        trainer = Trainer(model, *rows, config, Path(folder))
        # 3. Step and look, until done or until the Trainer refuses to go on.
        try:
            while trainer.step < run.steps:
                if trainer.step % LOOK_EVERY == 0:
                    look(trainer, record)
                metrics = trainer.train_step()
                record["loss"].append(round(metrics["loss"], 4))
                record["gradient_norm"].append(round(metrics["gradient_norm"], 4))
        except ValueError as error:
            record["ended"] = str(error)

    # 4. Look once more, and let it tell stories.
    look(trainer, record)
    told = tell(model, tokenizer)
    record["stories_that_parse"] = sum(stories.parse(story).ok for story in told)
    # 5. Of a text that was read again and again, count the copies.
    if run.steps * config.batch_size > run.stories:
        record["copies"] = sum(story in learnt for story in told)
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


def tell(model: GPT, tokenizer: BPETokenizer) -> list[str]:
    """Return TOLD stories of the model, at temperature 0.8."""
    model.leaks = False
    prompts = torch.full((TOLD, 1), tokenizer.eot_id)
    config = SamplingConfig(0.8, seed=1, max_new_tokens=model.config.max_seq_len)
    rows = torch.stack(list(generate_batch(model, prompts, config)), dim=1).tolist()
    ends = (row.index(tokenizer.eot_id) if tokenizer.eot_id in row else len(row) for row in rows)
    return [tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]


def write(name: str, lines: list[str], note: str, records: dict[str, dict]) -> None:
    """Write a table with what stands below it, and print it."""
    made = next(iter(records["muon 0.03"].values()))
    how = f"Batches of 12 rows, bfloat16 products. {made['made']}, `{COMMAND}`"
    text = "\n".join([*lines, "", f"*Bits per byte; the floor of the held-out stories is {made['floor']:.3f}. {note}. "
                      f"{how}.*"]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def middle(values: list[float]) -> str:
    """Return the middle one of the seeds' numbers."""
    return f"{statistics.median(values):.3f}"


def span(values: list[float]) -> str:
    """Return the least and the greatest of the seeds' numbers, where there are several."""
    return f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""


def write_rates(records: dict[str, dict]) -> None:
    """Write a row for each rate that was tried: where its held-out text ended."""
    lines = ["| optimizer | highest rate | seeds | held out: end | range |", "|---|---|---|---|---|"]
    for name, run in TRIED.items():
        ends = [record["looks"][-1][1] for record in records[name].values()]
        words = "Muon, with AdamW" if run.title == "muon" else "AdamW alone"
        cells = [words, f"{run.changes['learning_rate']:g}", str(len(ends)), middle(ends), span(ends)]
        lines.append(f"| {' | '.join(cells)} |")
    write("training_rates", lines, f"{STEPS} steps; the middle of the seeds, and their range", records)


def write_curves(records: dict[str, dict]) -> None:
    """Write what a reader would look at in each run, in bits per byte where nothing else is said."""
    # 1. One row a run: where training ended, where the held-out text was best and ended, what it is in use.
    lines = ["| run | steps | seeds | training, last ten steps | held out: best | held out: end | range | in use | "
             "stories accepted |", "|---|---|---|---|---|---|---|---|---|"]
    for name, run in RUNS.items():
        made = records[name].values()
        lasts = [statistics.fmean(bits(record, record["loss"][-10:])) for record in made]
        bests = [min(seen for _, seen, _ in record["looks"]) for record in made]
        _, ends, used = zip(*(record["looks"][-1] for record in made), strict=True)

        # 2. Count what was told by the models of all seeds.
        told = f"{sum(record['stories_that_parse'] for record in made)} of {TOLD * len(made)}"
        if name == "few":
            told += f", {sum(record['copies'] for record in made)} are copies"
        steps = max(len(record["loss"]) for record in made)
        cells = [run.title, str(steps), str(len(made)), middle(lasts), middle(bests), middle(ends), span(ends),
                 middle(used), told]
        lines.append(f"| {' | '.join(cells)} |")

    # 3. Say how to read it.
    write("training_curves", lines, "The middle of the seeds, the range of the held-out loss at the end, and the "
          "stories of all seeds together", records)


def bits(record: dict, losses: list[float]) -> list[float]:
    """Return losses per token in bits per byte."""
    return [loss / math.log(2) / record["bytes_per_token"] for loss in losses]


def draw(records: dict[str, dict], target: Path) -> None:
    """Draw a panel for each run: training, held out, in use where that differs, and the good run behind it in grey."""
    # 1. Prepare as many panels as runs, and one for the legend.
    figure, panels = plt.subplots(2, 4, figsize=(9.6, 4.8), facecolor="white", layout="constrained", sharex=True,
                                  sharey=True)
    good = records["muon 0.03"]["0"]["looks"]
    for panel, (name, run) in zip(panels.flat, RUNS.items(), strict=False):
        panel.plot([step for step, *_ in good], [seen for _, seen, _ in good], color="#bbbbbb", linewidth=4)
        # 2. For each seed, draw training as a line and examinations as dots.
        for record in records[name].values():
            steps, seen, used = zip(*record["looks"], strict=True)
            panel.plot(range(1, len(record["loss"]) + 1), bits(record, record["loss"]), color="#0072b2", linewidth=0.7)
            panel.plot(steps, seen, color="#d55e00", marker="o", markersize=3, linewidth=0.7)
            if run.model is Leaking:
                panel.plot(steps, used, color="black", marker="s", markersize=3, linewidth=0.7, linestyle=":")

        # 3. Mark the floor, and use plain numbers on the scale.
        panel.axhline(record["floor"], color="#009e73", linestyle="--", linewidth=1)
        panel.set(title=run.title, yscale="log", ylim=(0.008, 6))
        panel.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5], "0.01 0.02 0.05 0.1 0.2 0.5 1 2 5".split())
        panel.minorticks_off()

    # 4. Explain the lines in the empty panel.
    legend = panels.flat[-1]
    for style in ({"color": "#0072b2", "label": "training"}, {"color": "#d55e00", "marker": "o", "label": "held out"},
                  {"color": "black", "marker": "s", "linestyle": ":", "label": "held out, in use"},
                  {"color": "#009e73", "linestyle": "--", "label": "floor of the stories"},
                  {"color": "#bbbbbb", "linewidth": 4, "label": "the good run, held out"}):
        legend.plot([], [], **style)
    legend.legend(loc="center", frameon=False)
    legend.axis("off")
    panels[0, -1].tick_params(labelbottom=True)

    # 5. Name the axes once.
    for panel in panels[1]:
        panel.set_xlabel("step")
    for panel in panels[:, 0]:
        panel.set_ylabel("bits per byte")
    figure.savefig(target, metadata={"Date": None})


def main(what: str = "", seed: str = "0", *names: str) -> None:
    """Train what is asked for, keeping the record after each run; then write the tables and draw the curves."""
    # 1. Train, or take what is recorded.
    records, runs = json.loads(RECORD.read_text()) if RECORD.exists() else {}, TRIED | RUNS
    tokenizer = BPETokenizer.load(ROOT / "models" / "storyteller")
    for name in (names or runs) if what == "train" else []:
        print(name, flush=True)
        made = records.setdefault(name, {})
        made[seed] = train(runs[name], int(seed), tokenizer)
        RECORD.write_text(json.dumps(records) + "\n", encoding="utf-8")

    # 2. Show it.
    if records.keys() >= runs.keys():
        write_rates(records)
        write_curves(records)
        draw(records, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "ch08"
    main(*sys.argv[1:])

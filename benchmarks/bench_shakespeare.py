"""Character-level tiny Shakespeare: seconds until the held-out loss is low, ours against nanoGPT's run on a CPU.

    python benchmarks/bench_shakespeare.py TEXT --nanogpt FOLDER --write

TEXT is tiny Shakespeare (1.1 MB), FOLDER a checkout of github.com/karpathy/nanoGPT, of which `model.py` is used.
All have the size of the CPU run in nanoGPT's README: 4 layers, 128 wide, 12 rows of 64 characters. The first
nine tenths of the text are learnt from; the loss is that of the whole last tenth, in nats a character.
Seconds are those of training steps alone. The runs take turns, a tenth of each at a time.
"""

import argparse
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import write_table  # noqa: E402
from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT, GPTConfig  # noqa: E402
from chapters.ch08_training import TokenRows, TrainConfig, Trainer, bits_per_byte, cosine_warmup_lr  # noqa: E402

ROWS, CONTEXT, TURNS, GOAL = 12, 64, 10, 1.88

# What each of our runs is trained with; the rest are the defaults.
ADAMW = {"optimizer": "adamw", "max_steps": 680, "learning_rate": 5e-3, "warmup_steps": 100, "beta2": 0.99}
MUON = {"optimizer": "muon", "max_steps": 270, "learning_rate": 1.5e-2, "warmup_steps": 60, "beta2": 0.99}


class Ours:
    """Our model and trainer; the tokenizer knows single bytes only, which in this text are characters."""

    def __init__(self, learnt: str, held_out: str, **settings):
        # 1. Count bytes as tokens: 256 of them and the end token leave no room for a merge.
        tokenizer = BPETokenizer.train(learnt, 257)
        learnt_rows, self.held_out = (TokenRows([text], tokenizer, CONTEXT) for text in (learnt, held_out))
        torch.manual_seed(0)
        config = GPTConfig(vocab_size=257, d_model=128, num_layers=4, num_heads=4, d_ff=344, max_seq_len=CONTEXT,
                           qk_norm=True)
        # 2. Leave the compiler out: it would need longer than the run.
        train = TrainConfig(batch_size=ROWS, dtype="float32", compile="off", **settings)
        self.trainer = Trainer(GPT(config), learnt_rows, self.held_out, train, Path(tempfile.mkdtemp()))
        self.steps = train.max_steps

    def step(self) -> None:
        """Do one training step."""
        self.trainer.train_step()

    def loss(self) -> float:
        """Return the nats per character of the whole held-out text."""
        return bits_per_byte(self.trainer.model, self.held_out) * math.log(2)


class NanoGPT:
    """nanoGPT's model, trained as its README's command for a CPU trains it."""

    steps = 2000

    def __init__(self, folder: Path, learnt: str, held_out: str):
        # 1. Load its file by path, for its name is taken by nobody.
        spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        # 2. Number the characters, and build model and optimizer.
        letters = {letter: i for i, letter in enumerate(sorted(set(learnt + held_out)))}
        self.learnt, self.held_out = (torch.tensor([letters[c] for c in text]) for text in (learnt, held_out))
        torch.manual_seed(0)
        self.model = module.GPT(module.GPTConfig(
            block_size=CONTEXT, vocab_size=len(letters), n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False))
        self.optimizer = self.model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        # 3. Draw windows anywhere, as its training does.
        self.dice, self.done = np.random.default_rng(0), 0

    def step(self) -> None:
        """Do one training step: the rate warms up over 100 steps and falls to a tenth along a cosine."""
        # 1. Draw a batch of windows.
        starts = torch.from_numpy(self.dice.integers(len(self.learnt) - CONTEXT, size=ROWS))
        window = self.learnt[starts[:, None] + torch.arange(CONTEXT + 1)]
        # 2. Step.
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_warmup_lr(self.done, 1e-3, 100, self.steps)
        self.model(window[:, :-1], window[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # 3. Move.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    @torch.no_grad()
    def loss(self) -> float:
        """Return the nats per character of the whole held-out text."""
        rows = (len(self.held_out) - 1) // CONTEXT
        x, y = (self.held_out[i : i + rows * CONTEXT].view(rows, CONTEXT) for i in (0, 1))
        losses = [F.cross_entropy(self.model(a, b.contiguous())[0].flatten(0, 1), b.flatten(), reduction="sum")
                  for a, b in zip(x.split(64), y.split(64), strict=True)]
        return (sum(losses) / y.numel()).item()


def tenths(contender) -> Iterator[float]:
    """Do a tenth of a contender's steps at a time, and yield the seconds it took."""
    for turn in range(TURNS):
        began = time.perf_counter()
        for _ in range(turn * contender.steps // TURNS, (turn + 1) * contender.steps // TURNS):
            contender.step()
        yield time.perf_counter() - began


def main() -> None:
    """Let all train in turn, and write the table."""
    # 1. Read the text.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--write", action="store_true", help="store the table in benchmarks/results")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    learnt, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]

    # 2. Train in turn.
    contenders = {
        "nanoGPT, AdamW": NanoGPT(args.nanogpt, learnt, held_out),
        "ours, AdamW": Ours(learnt, held_out, **ADAMW),
        "ours, Muon": Ours(learnt, held_out, **MUON),
    }
    seconds = np.array(list(zip(*(tenths(one) for one in contenders.values()), strict=True))).sum(axis=0)

    # 3. Say what each reached, and in what time.
    rows = [["run", "steps", f"held-out loss (goal {GOAL})", "seconds", "share of nanoGPT's time"]]
    for (name, one), took in zip(contenders.items(), seconds, strict=True):
        rows.append([name, str(one.steps), f"{one.loss():.3f}", f"{took:.1f}", f"{took / seconds[0]:.2f}"])
    write_table("shakespeare", rows)


if __name__ == "__main__":
    main()

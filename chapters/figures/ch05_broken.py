"""Take parts out of attention, train very small models without them, and record what happens.

    python chapters/figures/ch05_broken.py

Three kinds of model learn to continue the book's stories letter by letter: one as it should be, one without
the mask, one without the division by √D. Five seeds each. Recorded is the loss at the end of training and the
loss in use: on stories that were not trained on, with the mask in place. When a model writes, the future does
not exist.

Writes `ch05_broken.svg` beside this script and the table `benchmarks/results/attention_broken.md`.
"""

import contextlib
import datetime
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch07_config import GPTConfig  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from corpora.stories import generate  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "attention_broken.md"
COMMAND = "python chapters/figures/ch05_broken.py"

# Small enough for a second and a half a model: one block, two heads, texts of 24 letters.
LENGTH, BATCH, STEPS, SEEDS = 24, 16, 250, range(5)


@contextlib.contextmanager
def without_mask(model: GPT) -> Iterator[None]:
    """Let every token see the whole text, the future included, while the with-block runs."""

    # 1. Replace what the attention layer is given: a mask that allows everything.
    def open_eyes(attention, arguments):
        x, cos, sin, *_ = arguments
        everyone = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        return x, cos, sin, everyone, None

    # 2. Step in before each attention layer, and step out again at the end.
    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.attention.register_forward_pre_hook(open_eyes).remove)
        yield


@contextlib.contextmanager
def without_scale(model: GPT) -> Iterator[None]:
    """Undo the division by √D while the with-block runs, by making every query √D times larger."""
    size = math.sqrt(model.config.head_dim)
    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            queries = block.attention.query_norm
            hook = queries.register_forward_hook(lambda layer, given, made: made * size)
            stack.callback(hook.remove)
        yield


def loss_on(model: GPT, rows: Tensor) -> Tensor:
    """Return the mean surprise at the next letter, -ln of the probability it was given.

    Shapes: rows (B, T+1) of letter numbers -> one number.
    """
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def train(break_it: Callable, seed: int, letters: Tensor, held_out: Tensor) -> tuple[list[float], float]:
    """Return the loss at every step of training a broken model, and its loss in use, with the mask in place.

    Shapes: letters and held_out are texts as one long row of letter numbers each.
    """
    # 1. Begin with the same numbers and draw the same texts, whatever is broken.
    torch.manual_seed(seed)
    size = int(letters.max()) + 1
    model = GPT(GPTConfig(size, d_model=64, num_layers=1, num_heads=2, d_ff=128, max_seq_len=LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=7e-3)

    # 2. Train without the part.
    losses = []
    with break_it(model):
        for _ in range(STEPS):
            starts = torch.randint(len(letters) - LENGTH - 1, (BATCH,))
            loss = loss_on(model, torch.stack([letters[s : s + LENGTH + 1] for s in starts]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    # 3. Use it. Only the mask comes back: a model keeps the scale it was trained with.
    put_back = contextlib.nullcontext if break_it is without_mask else break_it
    with torch.no_grad(), put_back(model):
        return losses, loss_on(model, held_out.unfold(0, LENGTH + 1, 101)).item()


def main() -> None:
    """Train all kinds, write the table, draw the curves."""
    # 1. Number the letters; the last fifty stories are kept for the examination.
    stories = generate(450, seed=1)
    alphabet = sorted(set("\n".join(stories)))
    texts = ("\n".join(part) for part in (stories[:-50], stories[-50:]))
    letters, held_out = (torch.tensor([alphabet.index(letter) for letter in text]) for text in texts)

    # 2. Train every kind with every seed.
    kinds = {"as it should be": contextlib.nullcontext, "no mask": without_mask, "no √D": without_scale}
    runs = {name: [train(kind, seed, letters, held_out) for seed in SEEDS] for name, kind in kinds.items()}

    # 3. Write the table: the middle one of five, and the range.
    lines = ["| attention | loss, end of training | loss in use |", "|---|---|---|"]
    for name, results in runs.items():
        ends = [sum(losses[-25:]) / 25 for losses, _ in results], [in_use for _, in_use in results]
        cells = [f"{sorted(side)[2]:.2f} ({min(side):.2f} to {max(side):.2f})" for side in ends]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    size = len(alphabet)
    note = f"guessing blindly among {size} letters costs ln {size} = {math.log(size):.2f}"
    how = f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}, `{COMMAND}`"
    lines += ["", f"*Middle one of five seeds, and the range; {note}. {how}.*"]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(runs, Path(__file__).with_suffix(".svg"))


def draw(runs: dict[str, list[tuple[list[float], float]]], target: Path) -> None:
    """Draw the training curves of every kind, and where each kind ends up in use."""
    # 1. One colour and one dash per kind; one thin line per seed, averaged over 10 steps.
    figure, panel = plt.subplots(figsize=(7.2, 3.4), facecolor="white", layout="constrained")
    styles = {"as it should be": ("#0072b2", "-"), "no mask": ("#d55e00", "--"), "no √D": ("#009e73", ":")}
    for place, (name, results) in enumerate(runs.items()):
        colour, dash = styles[name]
        for number, (losses, in_use) in enumerate(results):
            smooth = [sum(losses[i : i + 10]) / 10 for i in range(0, STEPS, 10)]
            label = None if number else name
            panel.plot(range(10, STEPS + 1, 10), smooth, color=colour, linestyle=dash, label=label)
            panel.plot(STEPS + 11 + 4 * place, in_use, marker="o", markersize=4, color=colour)

    # 2. Say what stands where.
    panel.axvline(STEPS + 5, color="grey", linewidth=0.8)
    panel.annotate("in use", (STEPS + 15, 0.3), ha="center")
    panel.set(xlabel="step of training", ylabel="loss", ylim=(0, 6.2), xlim=(0, STEPS + 28))
    panel.legend(loc="upper left", frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "ch05"
    main()

"""Build blocks in which something is missing, train very small models of them, and record what happens.

    python chapters/figures/ch06_blocks.py

First the feed-forward layer: two blocks with SwiGLU, with the older two matrices around GELU or ReLU, and with none.
Then the road: towers of eight blocks, one kind as the book builds it (pre-norm), one with its norms moved onto the road
(post-norm), one without norms, one that replaces in place of adding. All learn to continue the book's stories letter by
letter, with five seeds each; recorded is the loss on stories that were kept back.

Writes `ch06_blocks.svg` beside this script and the tables `benchmarks/results/block_road.md` and
`benchmarks/results/block_thinking.md`.
"""

import datetime
import math
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch06_transformer_block import TransformerBlock  # noqa: E402
from chapters.ch07_config import GPTConfig  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from corpora.stories import generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
COMMAND = "python chapters/figures/ch06_blocks.py"

# Small enough for a few minutes in all: blocks of width 32, texts of 24 letters.
WIDTH, HIDDEN, LENGTH, RATE, SEEDS = 32, 96, 24, 1e-2, range(5)


class PostNorm(TransformerBlock):
    """The block of 2017: the sum itself is normalised, so a norm stands on the road after each addition."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return the stream, normalised twice on its way. Shapes: as in `TransformerBlock`."""
        x = self.attention_norm(x + self.attention(x, cos, sin, mask, cache))
        return self.feed_forward_norm(x + self.feed_forward(x))


class NoNorm(TransformerBlock):
    """A block whose layers hear the stream as loud as it is."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return the stream. Shapes: as in `TransformerBlock`."""
        x = x + self.attention(x, cos, sin, mask, cache)
        return x + self.feed_forward(x)


class Replace(TransformerBlock):
    """A block that hands on what its layers answer, and not what came in."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        """Return the answer of the second layer to that of the first. Shapes: as in `TransformerBlock`."""
        x = self.attention(self.attention_norm(x), cos, sin, mask, cache)
        return self.feed_forward(self.feed_forward_norm(x))


KINDS = {
    "pre-norm, as in this book": TransformerBlock,
    "post-norm": PostNorm,
    "no norm": NoNorm,
    "replace, do not add": Replace,
}


class TwoMatrices(nn.Module):
    """The older feed-forward layer: widen, bend each number by `activation`, narrow again."""

    def __init__(self, activation: Callable[[Tensor], Tensor], d_model: int, d_ff: int):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's vector after thinking about it alone. Shapes: x (B, T, C) -> the same."""
        return self.down(self.activation(self.up(x)))


class Silent(nn.Module):
    """A feed-forward layer that says nothing: what is added is zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros. Shapes: x (B, T, C) -> the same."""
        return torch.zeros_like(x)


def rebuilt(
    seed: int, vocab_size: int, num_layers: int, kind: type[TransformerBlock], thinking: Callable | None = None
) -> GPT:
    """Return a small GPT whose blocks are of another kind, or think with another layer, freshly drawn.

    `thinking` makes a feed-forward layer; None keeps SwiGLU.
    """
    # 1. Put other blocks into the tower.
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size, WIDTH, num_layers, num_heads=2, d_ff=HIDDEN, max_seq_len=LENGTH)
    model = GPT(config)
    model.blocks = nn.ModuleList(kind(block.attention, WIDTH, HIDDEN) for block in model.blocks)
    for block in model.blocks:
        if thinking is not None:
            block.feed_forward = thinking()

    # 2. Draw all numbers anew, by the same rule for all kinds.
    model._initialise()
    return model


def loss_on(model: GPT, rows: Tensor) -> Tensor:
    """Return the mean surprise at the next letter. Shapes: rows (B, T+1) of letter numbers -> one number."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def train(
    model: GPT, seed: int, steps: int, batch: int, letters: Tensor, held_out: Tensor
) -> tuple[list[float], float]:
    """Return the loss at every step of training, and at the end the loss on stories that were kept back.

    Shapes: letters and held_out are texts as one long row of letter numbers each.
    """
    # 1. Train: the same texts in the same order for every kind.
    dice, offsets = torch.Generator().manual_seed(seed), torch.arange(LENGTH + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(letters) - LENGTH - 1, (batch, 1), generator=dice)
        loss = loss_on(model, letters[starts + offsets])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    # 2. Examine it on what it has not seen.
    with torch.no_grad():
        return losses, loss_on(model, held_out.unfold(0, LENGTH + 1, 101)).item()


def cell(results: list[float]) -> str:
    """Return the middle one of five losses, and the range; or how many runs ended in "not a number", and the others."""
    kept = sorted(loss for loss in results if not math.isnan(loss))
    if len(kept) < len(results):
        others = f"; the others {kept[0]:.2f} to {kept[-1]:.2f}" if kept else ""
        return f"not a number ({len(results) - len(kept)} of {len(results)}{others})"
    return f"{kept[len(kept) // 2]:.2f} ({kept[0]:.2f} to {kept[-1]:.2f})"


def write(name: str, lines: list[str], note: str) -> None:
    """Write a table with what stands below it, and print it."""
    how = f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}, `{COMMAND}`"
    text = "\n".join([*lines, "", f"*Loss on stories that were kept back: the middle one of five seeds, and the "
                      f"range. {note} {how}.*"]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def compare_roads(letters: Tensor, held_out: Tensor) -> None:
    """Train eight blocks of every kind; write the table and draw the curves."""
    # 1. Train.
    size, runs = int(max(letters.max(), held_out.max())) + 1, {}
    for name, kind in KINDS.items():
        models = ((seed, rebuilt(seed, size, 8, kind)) for seed in SEEDS)
        runs[name] = [train(model, seed, 150, 8, letters, held_out) for seed, model in models]

    # 2. Write; for scale, what knowing only how frequent each letter is would cost.
    shares = torch.bincount(letters, minlength=size) / len(letters)
    frequency = -shares[held_out].log().mean().item()
    lines = ["| block | loss |", "|---|---|"]
    lines += [f"| {name} | {cell([end for _, end in results])} |" for name, results in runs.items()]
    known = f"Knowing how frequent each letter is and no more costs {frequency:.2f}"
    blind = f"guessing blindly among {size} letters {math.log(size):.2f}"
    write("block_road", lines, f"Eight blocks of width {WIDTH}, 150 steps, learning rate {RATE:g}. {known}, {blind}.")
    draw(runs, Path(__file__).with_suffix(".svg"))


def compare_thinking(letters: Tensor, held_out: Tensor) -> None:
    """Train two blocks with every kind of feed-forward layer and write the table."""
    # 1. Give the older layers as many numbers as SwiGLU has: two matrices of 3/2 the hidden size.
    size, wide = int(max(letters.max(), held_out.max())) + 1, HIDDEN * 3 // 2
    kinds = {
        "SwiGLU": (HIDDEN, None),
        "two matrices, GELU": (wide, lambda: TwoMatrices(F.gelu, WIDTH, wide)),
        "two matrices, ReLU": (wide, lambda: TwoMatrices(F.relu, WIDTH, wide)),
        "two matrices, nothing between": (wide, lambda: TwoMatrices(nn.Identity(), WIDTH, wide)),
        "no feed-forward layer": ("-", Silent),
    }

    # 2. Train each with every seed, and write.
    lines = ["| feed-forward layer | hidden size | its numbers, per block | loss |", "|---|---|---|---|"]
    for name, (hidden, thinking) in kinds.items():
        models = [rebuilt(seed, size, 2, TransformerBlock, thinking) for seed in SEEDS]
        numbers = sum(p.numel() for p in models[0].blocks[0].feed_forward.parameters())
        ends = [train(model, seed, 200, 16, letters, held_out)[1] for seed, model in enumerate(models)]
        lines.append(f"| {name} | {hidden} | {numbers} | {cell(ends)} |")
    write("block_thinking", lines, f"Two blocks of width {WIDTH}, 200 steps, learning rate {RATE:g}.")


def draw(runs: dict[str, list[tuple[list[float], float]]], target: Path) -> None:
    """Draw the training curves of every kind: one colour and one dash per kind, one thin line per seed."""
    # 1. Average over ten steps, so that the eye can follow.
    figure, panel = plt.subplots(figsize=(7.2, 3.6), facecolor="white", layout="constrained")
    styles = (("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", ":"), ("#666666", "-."))
    for (name, results), (colour, dash) in zip(runs.items(), styles, strict=True):
        for number, (losses, _) in enumerate(results):
            smooth = [sum(losses[i : i + 10]) / 10 for i in range(0, len(losses), 10)]
            label = None if number else name
            panel.plot(range(10, len(losses) + 1, 10), smooth, color=colour, linestyle=dash, label=label, linewidth=1.2)

    # 2. Say what stands where.
    panel.set(xlabel="step of training", ylabel="loss", ylim=(1.5, 4.8), xlim=(0, None))
    panel.legend(loc="upper center", frameon=False, ncols=4, fontsize=8)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Number the letters, keep the last fifty stories for the examination, and compare."""
    stories = generate(450, seed=1)
    alphabet = sorted(set("\n".join(stories)))
    texts = ("\n".join(part) for part in (stories[:-50], stories[-50:]))
    letters, held_out = (torch.tensor([alphabet.index(letter) for letter in text]) for text in texts)
    compare_thinking(letters, held_out)
    compare_roads(letters, held_out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "ch06"
    main()

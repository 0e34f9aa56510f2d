"""Give positions to small models in four ways, and read with the storyteller beyond the length it was trained on.

    python chapters/figures/ch04_positions.py [small | beyond]

First, small models learn to continue the book's stories letter by letter: with RoPE, with sines added, with
learned vectors added, and with nothing. Recorded is the surprise in bits at each letter of fresh stories, within
the trained length and in the stretch behind it. Second, the trained storyteller reads rows of fresh stories four
times as long as its training rows: as it is, with slower turns, with a window, and trained on for a short while.
A word behind the command does one of the two alone; each takes some minutes.

Writes the tables `benchmarks/results/positions_small.md` and `positions_beyond.md`, and `ch04_positions.svg`.
"""

import copy
import dataclasses
import datetime
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch04_positional_encoding import rope_tables, sinusoidal_positions  # noqa: E402
from chapters.ch07_config import GPTConfig  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from corpora.stories import generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
HOW = f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}, `python chapters/figures/ch04_positions.py`"

# Small models of two layers: texts of 48 letters. Every kind with five seeds.
LENGTH, BATCH, STEPS, SEEDS, LAYERS = 48, 16, 500, range(5), 2
KINDS = {"RoPE": "turned", "sines added": "sines", "learned vectors added": "learned", "nothing": "nothing"}

# The storyteller: rows of fresh stories, and how many times the trained length they have.
# Trained on means a few steps on rows of the new length, of stories that the examination does not have.
ROWS, TIMES, FURTHER_STEPS, FURTHER_ROWS = 24, 4, 25, 4


class PositionedGPT(GPT):
    """A GPT that is told positions in another way than by turning; `kind` is a value of KINDS."""

    def __init__(self, config: GPTConfig, kind: str):
        super().__init__(config)
        # 1. Turn by nothing, unless turning is the way.
        if kind != "turned":
            self.rope_cos.fill_(1)
            self.rope_sin.fill_(0)

        # 2. Give the embedding something of its own size to add: rows for the trained length, or sines for any.
        width = config.d_model
        if kind == "learned":
            self.added = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        elif kind == "sines":
            self.register_buffer("added", 0.02 * sinusoidal_positions(config.max_seq_len, width))
        if kind in ("learned", "sines"):
            self.token_embedding.register_forward_hook(lambda layer, given, rows: rows + self.added[: rows.shape[1]])


def bits_at(model: GPT, rows: Tensor) -> Tensor:
    """Return the surprise in bits at every token that comes next.

    Shapes: rows (B, T+1) -> (B, T).
    """
    with torch.no_grad():
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none") / math.log(2)


def train(kind: str, seed: int, letters: Tensor, held_out: Tensor) -> tuple[float, float | None]:
    """Return the bits per letter of a small model: in the trained length's second half, and in the stretch behind.

    Learned vectors end with the trained length, so there the second one is None.
    Shapes: letters and held_out are texts as one long row of letter numbers each.
    """
    # 1. Begin with the same numbers and draw the same texts, whatever the kind.
    torch.manual_seed(seed)
    size = int(letters.max()) + 1
    config = GPTConfig(size, d_model=64, num_layers=LAYERS, num_heads=2, d_ff=128, max_seq_len=2 * LENGTH)
    model, draw = PositionedGPT(config, kind), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    # 2. Train on texts of the length.
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
        starts = torch.randint(len(letters) - LENGTH - 1, (BATCH,), generator=draw)
        rows = torch.stack([letters[s : s + LENGTH + 1] for s in starts])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # 3. Examine on fresh stories, twice as long where the kind allows it.
    length = LENGTH if kind == "learned" else 2 * LENGTH
    bits = bits_at(model, held_out.unfold(0, length + 1, 97)).mean(0)
    return bits[LENGTH // 2 : LENGTH].mean().item(), bits[LENGTH:].mean().item() if length > LENGTH else None


def small_models() -> str:
    """Return the table of all kinds: the middle one of five seeds, and the range."""
    # 1. Number the letters; the last stories are kept for the examination.
    stories = generate(900, seed=1)
    alphabet = sorted(set("\n".join(stories)))
    texts = ("\n".join(part) for part in (stories[:-100], stories[-100:]))
    letters, held_out = (torch.tensor([alphabet.index(letter) for letter in text]) for text in texts)

    # 2. Train them all.
    lines = ["| position told by | bits per letter, trained length | bits per letter, the stretch behind |"]
    lines.append("|---|---|---|")
    for name, kind in KINDS.items():
        results = [train(kind, seed, letters, held_out) for seed in SEEDS]
        lines.append(f"| {name} | {' | '.join(map(_middle, zip(*results, strict=True)))} |")
        print(lines[-1], flush=True)
    note = f"Texts of {LENGTH} letters, {LAYERS} layers, {STEPS} steps. Middle one of five seeds, and the range. {HOW}."
    return "\n".join([*lines, "", f"*{note}*"]) + "\n"


def _middle(values: tuple[float | None, ...]) -> str:
    """Return the middle one of some results and their range; words where there are none."""
    if None in values:
        return "impossible: no vector"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def stretched(model: GPT) -> Iterator[tuple[str, GPT]]:
    """Yield the model made ready for rows TIMES its length, in several ways, with their names.

    No weight is changed: only the table of turns, or what each token may see.
    """
    # 1. Leave the turns as they are, and go on with the table.
    c = model.config
    length, theta = TIMES * c.max_seq_len, c.rope_theta
    llama3 = {"rope_type": "llama3", "factor": TIMES, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = c.max_seq_len
    ways = {
        "as it is": (theta, None, None),
        "all turns slower (linear)": (theta, {"rope_type": "linear", "factor": TIMES}, None),
        "slow turns slower (llama3)": (theta, llama3, None),
        "higher theta": (theta * TIMES**2, None, None),
        f"window of {c.max_seq_len}": (theta, None, c.max_seq_len),
    }
    # 2. Build the table that each way needs.
    for name, (base, scaling, window) in ways.items():
        other = copy.deepcopy(model)
        other.config = dataclasses.replace(c, max_seq_len=length, sliding_window=window)
        other.rope_cos, other.rope_sin = rope_tables(c.head_dim, length, base, scaling)
        yield name, other


def train_on(model: GPT, rows: Tensor) -> GPT:
    """Return a copy of the model after a short training on long rows, FURTHER_ROWS at a step.

    Shapes: rows (B, T+1).
    """
    # 1. Step gently: the model knows nearly all it needs.
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step, chosen in enumerate(rows.split(FURTHER_ROWS)):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * (1 - step / FURTHER_STEPS)
        loss = F.cross_entropy(model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def long_rows(tokenizer: BPETokenizer, length: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows of fresh stories, end to end, and how many bytes each token holds.

    Shapes: -> rows (B, T+1), bytes of each token that comes next (B, T).
    """
    # 1. Join the stories as in training: each behind the end of the one before.
    stream = [tokenizer.eot_id]
    for story in generate(count * length // 50, seed=seed):
        stream += [*tokenizer.encode(story), tokenizer.eot_id]
    starts = [i for i, number in enumerate(stream) if number == tokenizer.eot_id]

    # 2. Let each row begin with a story. The end token counts no bytes.
    chosen = starts[:: len(starts) // (2 * count)][:count]
    rows = torch.tensor([stream[start : start + length + 1] for start in chosen])
    sizes = {number: len(token) for number, token in tokenizer.vocab.items()} | {tokenizer.eot_id: 0}
    return rows, torch.tensor([[sizes[number] for number in row] for row in rows[:, 1:].tolist()])


def beyond() -> None:
    """Measure how the storyteller reads beyond its length, write the table, draw the curves."""
    # 1. Make the models: each way as it is, and two of them trained on.
    model, tokenizer = GPT.from_pretrained("models/storyteller"), BPETokenizer.load("models/storyteller")
    trained = model.config.max_seq_len
    models = dict(stretched(model))
    lessons, _ = long_rows(tokenizer, TIMES * trained, FURTHER_STEPS * FURTHER_ROWS, seed=7)
    for name in list(models)[:2]:
        models[f"{name}, trained on"] = train_on(models[name], lessons)

    # 2. Read the same rows with each.
    rows, sizes = long_rows(tokenizer, TIMES * trained, ROWS, seed=99)
    header = [f"tokens {i * trained + 1} to {(i + 1) * trained}" for i in range(TIMES)]
    lines, curves = [f"| bits per byte | {' | '.join(header)} |", "|---" * (TIMES + 1) + "|"], {}
    for name, other in models.items():
        bits = bits_at(other, rows)
        cells = [b.sum() / s.sum() for b, s in zip(bits.split(trained, 1), sizes.split(trained, 1), strict=True)]
        lines.append(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
        curves[name] = [b.sum() / s.sum() for b, s in zip(bits.split(20, 1), sizes.split(20, 1), strict=True)]

    # 3. Say how.
    note = f"{ROWS} rows of fresh stories. Trained with {trained} tokens; factor {TIMES}, theta times {TIMES**2}; "
    note += f"trained on for {FURTHER_STEPS} steps of {FURTHER_ROWS} long rows. {HOW}."
    table = "\n".join([*lines, "", f"*{note}*"]) + "\n"
    (RESULTS / "positions_beyond.md").write_text(table, encoding="utf-8")
    print(table)
    draw(curves, trained, Path(__file__).with_suffix(".svg"))


def draw(curves: dict[str, list[Tensor]], trained: int, target: Path) -> None:
    """Draw bits per byte against the position in the row, twenty tokens to a mark."""
    # 1. One colour and one dash for each way.
    figure, panel = plt.subplots(figsize=(7.2, 3.6), facecolor="white", layout="constrained")
    styles = [("#000000", "-"), ("#d55e00", "--"), ("#0072b2", "-."), ("#cc79a7", ":"), ("#009e73", "-")]
    styles += [("#999999", "-"), ("#e69f00", "-")]
    for (name, curve), (colour, dash) in zip(curves.items(), styles, strict=True):
        panel.plot([20 * i + 10 for i in range(len(curve))], curve, color=colour, linestyle=dash, label=name)

    # 2. Mark where training ended.
    panel.axvline(trained, ymax=0.74, color="grey", linewidth=0.8)
    panel.annotate("trained length", (trained + 6, 0.05), color="dimgrey")
    panel.set(xlabel="position of the token", ylabel="bits per byte", xlim=(0, TIMES * trained), ylim=(0, 2.3))
    panel.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "ch04"
    if sys.argv[1:] != ["small"]:
        beyond()
    if sys.argv[1:] != ["beyond"]:
        (RESULTS / "positions_small.md").write_text(small_models(), encoding="utf-8")

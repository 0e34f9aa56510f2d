"""Draw how loud the stream of an untrained tower becomes, and who owns the parameters of six models.

    python chapters/figures/ch07_sizes.py

Writes `ch07_sizes.svg` beside this script. Its ground is opaque, so it reads the same on a light and a dark
page; lines differ in their dashes and bars carry their shares, so nothing depends on colour alone.
"""

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch07_gpt_model import GPT, PRESETS, GPTConfig, count_parameters  # noqa: E402

# Two presets, the small model with the vocabulary of GPT-2, and the sizes in three published config.json files.
MODELS = {
    "tiny": PRESETS["tiny"],
    "17 M, V 50 257": GPTConfig(),
    "base": PRESETS["base"],
    "Qwen3 0.6B": GPTConfig(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True),
    "Llama 3.2 1B": GPTConfig(128256, 2048, 16, 32, 8, 64, 8192),
    "Mistral 7B": GPTConfig(32000, 4096, 32, 32, 8, 128, 14336, tie_embeddings=False),
}

# The parts of a model, from the bottom of a bar upwards, and colours that a colour-blind eye tells apart.
PARTS = {
    "embedding": ("embedding", "#0072b2", "white"), "output_head": ("output head", "#56b4e9", "black"),
    "attention": ("attention", "#e69f00", "black"), "feed_forward": ("feed-forward", "#009e73", "white"),
}


@torch.no_grad()
def stream_sizes(layers: int, divided: bool) -> list[float]:
    """Return the typical size of an untrained `nano`'s stream after each of its blocks.

    With `divided` the matrices that write into the stream begin at 0.02 / √(2·layers), as in the book; else at 0.02.
    """
    # 1. Build it, and listen after each block.
    torch.manual_seed(0)
    model, sizes = GPT(PRESETS["nano"].resized(num_layers=layers)), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, answer: sizes.append(answer.square().mean().sqrt().item()))

        # 2. Undo the division where it shall not be.
        if not divided:
            for matrix in (block.attention.output.weight, block.feed_forward.down.weight):
                matrix *= math.sqrt(2 * layers)

    # 3. Let it read noise: what it reads makes no difference yet.
    model(torch.randint(model.config.vocab_size, (4, 64)))
    return sizes


def draw(target: Path) -> None:
    """Measure and count with the book's own code, and write the picture to `target`."""
    # 1. Draw the stream of a tall tower and of a low one.
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), facecolor="white", layout="constrained")
    for divided, colour, dashes in ((True, "#0072b2", "-"), (False, "#d55e00", "--")):
        label = "divided by √(2·L)" if divided else "not divided"
        left.plot(range(1, 49), stream_sizes(48, divided), dashes, color=colour, label=f"48 layers, {label}")
        left.plot(range(1, 5), stream_sizes(4, divided), "o", color=colour, markersize=4, label=f"4 layers, {label}")
    left.set(xlabel="block", ylabel="typical size of the stream", title="an untrained tower", ylim=(0, None))
    left.legend(fontsize=8)

    # 2. Stack the parts of each model to 100 percent.
    for place, config in enumerate(MODELS.values()):
        counts, foot = count_parameters(config), 0.0
        for part, (name, colour, ink) in PARTS.items():
            share = 100 * counts[part] / counts["total"]
            right.bar(place, share, bottom=foot, color=colour, label=name if place == 0 else None)
            if share > 4:
                right.text(place, foot + share / 2, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=8)
            foot += share
    right.set_xticks(range(len(MODELS)), MODELS, fontsize=8, rotation=20)
    right.set(ylabel="% of the parameters", title="who owns the parameters")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)

    # 3. Save without a date, so that the same numbers give the same file.
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch07"
    draw(Path(__file__).with_suffix(".svg"))

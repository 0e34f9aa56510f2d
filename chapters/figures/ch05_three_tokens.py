"""Draw the two tables of attention weights of the running example, one per head.

    python chapters/figures/ch05_three_tokens.py

Writes `ch05_three_tokens.svg` beside this script. Its ground is opaque, so it reads the same on a light and
a dark page; every cell carries its number, so nothing depends on colour.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch05_attention import causal_mask, scaled_dot_product_attention  # noqa: E402
from chapters.running_example import TOKENS, attention_layer, embed, no_rotation  # noqa: E402

TITLES = ("first head: looks for the name", "second head: looks for the action")


def draw(target: Path) -> None:
    """Compute the weights with the chapter's own code and write the picture to `target`."""
    # 1. Compute.
    q, k, v = attention_layer().project(embed()[None], *no_rotation(len(TOKENS)))
    _, weights = scaled_dot_product_attention(q, k, v, causal_mask(len(TOKENS), len(TOKENS)))

    # 2. Paint one table per head. Hidden cells stay empty: they are not small, they do not exist.
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.3), facecolor="white", layout="constrained")
    for panel, table, title in zip(panels, weights[0], TITLES, strict=True):
        panel.imshow(table.tril(), cmap="Blues", vmin=0, vmax=1)
        panel.set_title(title, fontsize=11)
        panel.set_xticks(range(len(TOKENS)), TOKENS)
        panel.set_yticks(range(len(TOKENS)), TOKENS)
        panel.set_xlabel("looked at")
        panel.tick_params(length=0)
        # 3. Write the number into each cell, in the colour that its background needs.
        for row in range(len(TOKENS)):
            for column in range(row + 1):
                share = table[row, column].item()
                colour = "white" if share > 0.5 else "black"
                panel.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=12)
    panels[0].set_ylabel("who asks")

    # 4. Save without a date, so that the same numbers give the same file.
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch05"
    draw(Path(__file__).with_suffix(".svg"))

"""Draw the trained storyteller's words as a map, and how such a map comes about in the training of a smaller model.

    python chapters/figures/ch03_map.py

Writes `ch03_map.svg` and `ch03_ladder.svg` beside this script. A table row has hundreds of numbers and paper has two
directions, so a map keeps the two in which the words are spread most and drops the rest. Chapter 3 quotes `flatten`
and uses `GROUPS` and `rows_of`.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402

# Words of the stories that a person would put together. Each is a single token, with the space before it.
GROUPS = {
    "girls": "Lily Mia Anna Ella Kate Lucy",
    "boys": "Tom Ben Sam Max Leo Jack",
    "people": "king queen prince princess man woman",
    "friends": "Amy Emma Zoe Sue Tim Bob Dan Joe",
    "colours": "red blue green yellow white brown black pink",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "numbers": "two three four five six seven eight nine",
    "animals": "fox bear rabbit mouse duck bird cat dog goat hen",
    "toys": "ball doll drum train car flute bell cart puppet whistle",
    "places": "tree bridge gate wall hill well mill barn pond fence farm school park shop church stone",
    "food": "bread cheese soup pie rice",
}

# Colours that colour-blind readers can tell apart, and marks for those who see none.
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#000000", "#b8860b", "#7f3c8d", "#666666")
MARKS = "osD^vP*Xhd<"


def rows_of(model: GPT, tokenizer: BPETokenizer, words: str) -> Tensor:
    """Return the table's rows of these words, each scaled to length 1, so that a dot product is a cosine.

    Shapes: n words, split by spaces -> (n, C).
    """
    ids = [tokenizer.encode(" " + word)[0] for word in words.split()]
    return F.normalize(model.token_embedding.weight.detach()[ids].float(), dim=-1)


def flatten(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a flat map of the rows, and what share of all their variance the map keeps.

    Shapes: rows (n, C) -> places (n, 2), share ().
    """
    # 1. Put the middle of all words at zero. Only the differences between words are of interest.
    centred = rows - rows.mean(dim=0)

    # 2. Find the directions of greatest spread. They come sorted, at right angles to each other.
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)

    # 3. Read off each word's place along the first two. Squared, the spreads are shares of the variance.
    places = centred @ directions[:2].T
    return places, spread[:2].square().sum() / spread.square().sum()


def draw(folder: str, panel, labels: bool) -> None:
    """Paint the map of one model's words into `panel`, group by group."""
    # 1. Flatten all groups together, so that they share one map.
    model, tokenizer = GPT.from_pretrained(ROOT / "models" / folder), BPETokenizer.load(ROOT / "models" / folder)
    places, share = flatten(rows_of(model, tokenizer, " ".join(GROUPS.values())))
    panel.set_xticks([])
    panel.set_yticks([])

    # 2. Paint each group with a mark and a colour of its own.
    start, written = 0, []
    for number, (group, words) in enumerate(GROUPS.items()):
        here = places[start : start + len(words.split())]
        start += len(here)
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number]
        panel.scatter(*here.T, s=16, color=colour, marker=mark, label=group)
        # 3. Write the words, but none over another, and none over a mark.
        for word, (x, y) in zip(words.split() if labels else (), here.tolist(), strict=labels):
            far = all(abs(x - a) > 0.08 or abs(y - b) > 0.018 for a, b in written)
            if far and not any(0 < a - x < 0.013 * len(word) + 0.01 and 0 < b - y < 0.02 for a, b in places.tolist()):
                panel.annotate(word, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=8, color=colour)
                written.append((x, y))
    panel.set_title(f"{folder.replace('ladder/step_', 'step ')}: {100 * share:.0f} % of the variance", fontsize=10)


def main() -> None:
    """Write both pictures."""
    # 1. Import the painter here, so that a page that needs only the numbers starts without it.
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "ch03"

    # 2. Draw the large map, with words.
    figure, panel = plt.subplots(figsize=(9, 7), facecolor="white", layout="constrained")
    draw("storyteller", panel, labels=True)
    panel.legend(fontsize=8, frameon=False, ncols=2)
    figure.savefig(Path(__file__).with_name("ch03_map.svg"), metadata={"Date": None})

    # 3. Draw the four moments of the smaller model, without words.
    figure, panels = plt.subplots(1, 4, figsize=(11, 3.3), facecolor="white", layout="constrained")
    for panel, step in zip(panels, (0, 25, 100, 400), strict=True):
        draw(f"ladder/step_{step}", panel, labels=False)
    marks = panels[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=11, fontsize=8, frameon=False)
    figure.savefig(Path(__file__).with_name("ch03_ladder.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()

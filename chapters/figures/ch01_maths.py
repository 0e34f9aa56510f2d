"""Draw the pictures of chapter 1: dot products as angles, exp and ln, the spread of dot products, a slope.

    python chapters/figures/ch01_maths.py

Writes `ch01_dot.svg`, `ch01_exp_log.svg`, `ch01_variance.svg` and `ch01_slope.svg` beside this script. Their ground
is opaque, so they read the same on a light and a dark page; lines differ by dash as well as by colour.
"""

import math
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

FOLDER = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"


def panels(count: int, height: float = 3.0) -> tuple[plt.Figure, list[Axes]]:
    """Return a white figure with so many panels side by side."""
    figure, axes = plt.subplots(1, count, figsize=(7.6, height), facecolor="white", layout="constrained", squeeze=False)
    return figure, list(axes[0])


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure beside this script, without a date: the same numbers give the same file."""
    figure.savefig(FOLDER / f"ch01_{name}.svg", metadata={"Date": None})
    plt.close(figure)


def draw_dot() -> None:
    """Draw three pairs of arrows: nearly the same way, at a right angle, nearly opposite."""
    # 1. Keep one arrow and turn the other: what changes is the angle alone.
    figure, axes = panels(3, 1.9)
    still, pairs = (2.0, 1.0), ((1.0, 2.0), (-1.0, 2.0), (-2.0, 1.0))
    for panel, turned in zip(axes, pairs, strict=True):
        for (x, y), colour in ((still, BLUE), (turned, ORANGE)):
            panel.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
            panel.annotate(f"({x:.0f}, {y:.0f})", (x, y), (1.15 * x, 1.1 * y + 0.12), color=colour, ha="center")

        # 2. Work the numbers out; a title typed by hand could be wrong.
        product = still[0] * turned[0] + still[1] * turned[1]
        angle = math.degrees(math.acos(product / (math.hypot(*still) * math.hypot(*turned))))
        panel.set_title(f"dot product {product:.0f}, angle {angle:.0f}°", fontsize=10)
        panel.set(xlim=(-3.1, 3.1), ylim=(-0.5, 2.9), aspect="equal", xticks=range(-3, 4), yticks=range(3))
        panel.grid(color="#dddddd")
    save(figure, "dot")


def draw_exp_log() -> None:
    """Draw exp and ln, each with the points that the page names."""
    # 1. Draw exp: doubling steps on the way up.
    figure, (left, right) = panels(2)
    x = torch.linspace(-3, 2.2, 200)
    left.plot(x, x.exp(), color=BLUE)
    for point in (0, 1, 2):
        left.plot(point, math.exp(point), "o", color=ORANGE)
        left.annotate(f"exp({point}) = {math.exp(point):.3g}", (point, math.exp(point)), (-8, 4),
                      textcoords="offset points", ha="right")
    left.set(title="exp: always above 0", xlabel="x", xlim=(-3, 2.4), ylim=(-0.3, 9))

    # 2. Draw ln, and its mirror image where probabilities live: the next section calls it surprise.
    x = torch.linspace(0.02, 4, 400)
    right.plot(x, x.log(), color=BLUE, label="ln x")
    inside = x[x <= 1]
    right.plot(inside, -inside.log(), color=ORANGE, linestyle="--", label="−ln x, where x is between 0 and 1")
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set(title="ln: steep near 0, slow later", xlabel="x")
    right.legend(frameon=False, fontsize=9)
    save(figure, "exp_log")


def draw_variance() -> None:
    """Draw how far dot products of random vectors spread, for three lengths, and once divided by √D."""
    # 1. Draw random vectors, many of each length.
    figure, axes = panels(2)
    generator = torch.Generator().manual_seed(0)
    for D, colour, dash in ((4, BLUE, "-"), (16, ORANGE, "--"), (64, GREEN, ":")):
        a, b = (torch.randn(100_000, D, generator=generator) for _ in range(2))
        products = (a * b).sum(dim=-1)
        # 2. Count how many fall into each bin, before and after the division.
        for panel, numbers, reach in zip(axes, (products, products / math.sqrt(D)), (25, 5), strict=True):
            heights = torch.histc(numbers, bins=50, min=-reach, max=reach) / len(numbers)
            centres = torch.linspace(-reach, reach, 51)[:-1] + reach / 50
            panel.plot(centres, heights, color=colour, linestyle=dash, label=f"D = {D}")
    # 3. Say what stands where.
    axes[0].set(title="dot products", xlabel="value", ylabel="share of all")
    axes[1].set(title="the same, divided by √D", xlabel="value")
    axes[0].legend(frameon=False)
    save(figure, "variance")


def draw_slope() -> None:
    """Draw x² three times, each ten times nearer to the point (3, 9), beside the line of slope 6."""
    # 1. Come nearer and keep the line: it is the curve that changes its looks.
    figure, axes = panels(3, 2.7)
    for panel, reach in zip(axes, (2.0, 0.2, 0.02), strict=True):
        x = torch.linspace(3 - reach, 3 + reach, 100)
        panel.plot(x, x * x, color=BLUE, label="x²")
        panel.plot(x, 9 + 6 * (x - 3), color=ORANGE, linestyle="--", label="slope 6")
        panel.plot(3, 9, "o", color="black", markersize=4)
        panel.set(title=f"{reach:g} to each side", xlabel="x")
    axes[0].legend(frameon=False)
    save(figure, "slope")


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch01"
    for draw in (draw_dot, draw_exp_log, draw_variance, draw_slope):
        draw()

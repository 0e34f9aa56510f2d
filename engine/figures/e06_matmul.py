"""Draw the pictures of tutorial 6: how the loops walk over memory, and the ladder of matrix products.

    python engine/figures/e06_matmul.py

Writes `e06_walk.svg` and `e06_ladder.svg` beside this script; the ladder's numbers are those of
`benchmarks/results/matmul.md`. Their ground is opaque, so they read the same on a light and a dark page.
"""

import math
import re
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "benchmarks" / "results" / "matmul.md"

# Colours that everybody can tell apart, the used numbers also marked by their step.
USED, FETCHED, EMPTY, INK, PEAK = "#0072b2", "#bcdcf0", "#ffffff", "#222222", "#d55e00"
CELL, LINE, ROWS, COLUMNS = 20, 4, 8, 12


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", colour: str = INK) -> str:
    """Return words at a place."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, edge: str = "none") -> str:
    """Return a filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}" stroke="{edge}"/>'


def write(name: str, width: int, height: int, parts: list[str]) -> None:
    """Write a picture on white ground."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    body = "\n".join([head, box(0, 0, width, height, "#ffffff"), *parts, "</svg>"])
    (HERE / name).write_text(body + "\n", encoding="utf-8")


def grid(left: float, top: float, steps: list[tuple[int, int]], titles: tuple[str, str, str]) -> list[str]:
    """Return a matrix whose cells say in which step they are read; whole lines come along."""
    # 1. Which cells are read when, and which lines that fetches.
    order = {place: number for number, place in enumerate(steps, 1)}
    lines = {(row, column // LINE) for row, column in steps}
    parts = [text(left, top - 30, titles[0], 14), text(left, top - 11, titles[1], 12)]
    for row in range(ROWS):
        for column in range(COLUMNS):
            x, y, number = left + column * CELL, top + row * CELL, order.get((row, column))
            colour = USED if number else FETCHED if (row, column // LINE) in lines else EMPTY
            parts.append(box(x, y, CELL, CELL, colour, "#c8c8c8"))

            # 2. Number the cells that are read.
            if number:
                parts.append(text(x + CELL / 2, y + 14, str(number), 11, "middle", "#ffffff"))

    # 3. Frame the lines, and say what was counted.
    for row in range(ROWS):
        for column in range(0, COLUMNS, LINE):
            parts.append(box(left + column * CELL, top + row * CELL, LINE * CELL, CELL, "none", "#666666"))
    return [*parts, text(left, top + ROWS * CELL + 20, titles[2], 12)]


def walk() -> None:
    """Draw the first eight steps of two loop orders over b, and a block that stays."""
    # 1. Down a column, along a row, inside a block.
    down = [(k, 1) for k in range(8)]
    along = [(0, j) for j in range(8)]
    block = [(k, j) for k in range(4) for j in range(4)]
    pictures = [(down, ("i-j-k", "8 steps down a column of b", "8 lines fetched for 8 numbers")),
                (along, ("i-k-j", "8 steps along a row of b", "2 lines fetched for 8 numbers")),
                (block, ("in blocks", "16 steps, then all again", "4 lines, fetched once, used often"))]

    # 2. Put them side by side.
    parts = []
    for number, (steps, titles) in enumerate(pictures):
        parts += grid(20 + number * (COLUMNS * CELL + 30), 55, steps, titles)
    write("e06_walk.svg", 20 + 3 * (COLUMNS * CELL + 30), 55 + ROWS * CELL + 35, parts)


def ladder() -> None:
    """Draw the rungs as bars on a scale where each mark is ten times the one before."""
    # 1. Read name, cores and speed of each row.
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in TABLE.read_text("utf-8").splitlines() if re.match(r"\|.*\d", line)]
    left, width, height = 205, 470, 24
    most = max(float(row[2]) for row in rows)

    def place(speed: float) -> float:
        """Return how far to the right a speed stands; the scale begins at 0.01."""
        return width * math.log10(speed / 0.01) / math.log10(most / 0.01)

    # 2. Draw the scale.
    bottom = 34 + height * len(rows)
    parts = [text(left, 18, "GFLOP/s: each mark is ten times the one before", 13)]
    for power in range(-2, 3):
        x = left + place(10.0**power)
        parts.append(f'<path d="M{x:.1f} 26V{bottom}" stroke="#c8c8c8"/>')
        parts.append(text(x, bottom + 16, f"{10.0**power:g}", 12, "middle"))

    # 3. Draw the bars, the others' in a colour of their own.
    for number, (name, cores, speed, *_) in enumerate(rows):
        y, label = 30 + number * height, f"{name}, {cores} core{'s' if cores != '1' else ''}"
        colour = PEAK if name == "peak" else "#999999" if name == "OpenBLAS" else USED
        parts += [text(left - 8, y + 14, label, 12, "end"), box(left, y, place(float(speed)), height - 6, colour),
                  text(left + place(float(speed)) + 6, y + 14, speed, 12)]
    write("e06_ladder.svg", left + width + 65, bottom + 26, parts)


if __name__ == "__main__":
    walk()
    ladder()

"""What each idea of the matrix product is worth: rungs of the ladder with one thing spoiled, against the whole ones.

    python benchmarks/bench_matmul_broken.py --write

Float32, one core, square matrices; each spoiled loop and its whole twin take turns in one process, after a compiling
run that does not count. The results are the same numbers, only later.
"""

import math
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from engine import matmul as ladder  # noqa: E402
from engine.machine import compiled  # noqa: E402

ROUNDS, STRIP = 15, 64


@compiled()
def dot_in_order(a, turned, out):
    """Dot products whose additions must be made one after the other, as Python makes them."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = np.float32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * turned[j, k]
            out[i, j] = total


@compiled(fastmath={"contract"})
def ikj_with_min(a, b, out):
    """The rows of b in strips, the last of which ends at a `min`: a bound that the compiler cannot see through."""
    for first in range(0, out.shape[1], STRIP):
        for i in range(out.shape[0]):
            for k in range(a.shape[1]):
                factor = a[i, k]
                for j in range(first, min(first + STRIP, out.shape[1])):
                    out[i, j] += factor * b[k, j]


@compiled()
def blocked_without_line(a, turned, out):
    """The blocked product, its rows exactly 4096 bytes apart."""
    block = np.empty((ladder.BLOCK_ROWS, ladder.BLOCK_DEPTH), np.float32)
    for k in range(0, a.shape[1], ladder.BLOCK_DEPTH):
        for j in range(0, out.shape[1], ladder.BLOCK_ROWS):
            part = turned[j:j + ladder.BLOCK_ROWS, k:k + ladder.BLOCK_DEPTH]
            block[:part.shape[0], :part.shape[1]] = part
            ladder._add_product(a, block, out, (j, k), part.shape)


def pairs() -> list[tuple]:
    """Return (what is spoiled, the sizes, the spoiled work, the whole one)."""
    # 1. Make matrices of two sizes. In the larger one a row takes 4096 bytes.
    random = np.random.default_rng(0)
    made = {size: random.standard_normal((2, size, size), dtype=np.float32) for size in (512, 1024)}
    turned = {size: np.ascontiguousarray(b.T) for size, (_, b) in made.items()}
    far, near = (random.standard_normal((1024, width), dtype=np.float32)[:, :1024] for width in (2048, 1040))

    def filled(loops, a, b):
        """Return the work of filling a new matrix; b is square, turned or not."""
        return lambda: loops(a, b, np.zeros((len(a), len(b)), np.float32))

    # 2. Spoil one thing each.
    (small, right), (large, _), few = made[512], made[1024], made[1024][0][:32]
    return [("i-k-j: `min` in the bound of the inner loop", (512, 512, 512),
             filled(ikj_with_min, small, right), filled(ladder._ikj, small, right)),
            ("dot products: additions in order", (512, 512, 512),
             filled(dot_in_order, small, turned[512]), filled(ladder._dot, small, turned[512])),
            ("i-j-k: rows of b 8192 bytes apart, not 4160", (32, 1024, 1024),
             filled(ladder._ijk, few, far), filled(ladder._ijk, few, near)),
            ("in blocks: no line between the rows", (1024, 1024, 1024),
             filled(blocked_without_line, large, turned[1024]), filled(ladder._blocked, large, turned[1024]))]


def main() -> None:
    """Measure each pair in turn and write the table."""
    table = [["spoiled", "T × C × V", "GFLOP/s, whole", "GFLOP/s, spoiled", "times as long"]]
    for name, sizes, spoiled, whole in pairs():
        times = seconds_in_turn({"spoiled": spoiled, "whole": whole}, ROUNDS)
        speed = {which: 2 * math.prod(sizes) / statistics.median(times[which]) / 1e9 for which in times}
        table.append([name, " × ".join(map(str, sizes)), f"{speed['whole']:.3g}", f"{speed['spoiled']:.3g}",
                      f"{ratio(times, 'spoiled', 'whole'):.2g}"])
    write_table("matmul_broken", table)


if __name__ == "__main__":
    main()

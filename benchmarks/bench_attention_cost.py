"""What attention costs as a text grows: the four matrices, attention by hand, and the fused kernel.

    python benchmarks/bench_attention_cost.py --write

One layer of the `tiny` preset (d_model 256, 4 heads), float32, forward only. A cell is the fastest of its
rounds, since other programs only ever slow one down; in brackets, the growth since the row above. The ratio
divides one such time by the other. The last column is the memory of the weights that the by-hand way writes
down and the fused kernel does not.
"""

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import seconds_in_turn, write_table  # noqa: E402
from chapters.ch05_attention import MultiHeadAttention, causal_mask, scaled_dot_product_attention  # noqa: E402

D_MODEL, NUM_HEADS, ROUNDS = 256, 4, 12
LENGTHS = (256, 512, 1024, 2048, 4096)


@torch.no_grad()
def measure(length: int) -> dict[str, list[float]]:
    """Return the seconds of each part in every round, for a text of this length."""
    # 1. Prepare everything that is not to be measured.
    layer = MultiHeadAttention(D_MODEL, NUM_HEADS)
    x, mask = torch.randn(1, length, D_MODEL), causal_mask(length, length)
    cos, sin = torch.ones(length, layer.head_dim // 2), torch.zeros(length, layer.head_dim // 2)
    q, k, v = (part.contiguous() for part in layer.project(x, cos, sin))
    matrices = (layer.query, layer.key, layer.value, layer.output)

    # 2. Take turns.
    return seconds_in_turn(
        {
            "matrices": lambda: [matrix(x) for matrix in matrices],
            "by hand": lambda: scaled_dot_product_attention(q, k, v, mask),
            "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        },
        ROUNDS,
    )


def main() -> None:
    """Measure every length, print the table, and store it when asked to."""
    timed = ["four matrices, ms", "by hand, ms", "fused, ms"]
    rows = [["tokens", *timed, "by hand / fused", "table of weights, MB"]]
    before: dict[str, float] = {}
    for length in LENGTHS:
        # 1. Measure one length, and compare with the one before.
        times = measure(length)
        now = {part: 1000 * min(rounds) for part, rounds in times.items()}
        cells = [f"{ms:.{0 if ms >= 10 else 1}f}" for ms in now.values()]
        growth = [f" (×{now[part] / before[part]:.1f})" if before else "" for part in now]

        # 2. Write the row: times with their growth, the ratio, the bytes of H tables of T·T float32.
        megabytes = NUM_HEADS * length**2 * 4 / 2**20
        timed = [cell + grown for cell, grown in zip(cells, growth, strict=True)]
        rows.append([str(length), *timed, f"{now['by hand'] / now['fused']:.1f}", f"{megabytes:g}"])
        before = now
    write_table("attention_cost", rows)


if __name__ == "__main__":
    # Two cores: what a reader's small machine has.
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    main()

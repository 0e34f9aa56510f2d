"""What attention costs as a text grows: the four matrices, attention by hand, and the fused kernel.

    python benchmarks/bench_attention_cost.py

One layer of the `tiny` preset (d_model 256, 4 heads), float32, forward only. Each length is measured in rounds
that run all three in turn, so that a busy moment hits all of them; a cell is the median of its rounds. The column
"table" is the memory of the weights that the by-hand way writes down and the fused kernel does not.
"""

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from chapters.ch05_attention import MultiHeadAttention, causal_mask, scaled_dot_product_attention  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "attention_cost.md"
D_MODEL, NUM_HEADS = 256, 4
LENGTHS = (256, 512, 1024, 2048, 4096)
ROUNDS = 9


def machine() -> str:
    """Return the processor's name and the number of threads in use."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((row.split(":")[1].strip() for row in rows if row.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}"


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def measure(length: int) -> dict[str, float]:
    """Return the median milliseconds of each part for a text of this length, taken in turns."""
    # 1. Prepare everything that is not to be measured.
    layer = MultiHeadAttention(D_MODEL, NUM_HEADS)
    x, mask = torch.randn(1, length, D_MODEL), causal_mask(length, length)
    cos, sin = torch.ones(length, layer.head_dim // 2), torch.zeros(length, layer.head_dim // 2)
    q, k, v = (part.contiguous() for part in layer.project(x, cos, sin))
    matrices = (layer.query, layer.key, layer.value, layer.output)

    # 2. Take turns, and forget the first round: it warms caches and memory.
    parts = {
        "matrices": lambda: [matrix(x) for matrix in matrices],
        "by hand": lambda: scaled_dot_product_attention(q, k, v, mask),
        "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    rounds = [{name: 1000 * seconds(work) for name, work in parts.items()} for _ in range(ROUNDS + 1)][1:]
    return {name: statistics.median(row[name] for row in rounds) for name in parts}


def main() -> None:
    """Measure every length and write the table."""
    # 1. Draw up one row per length; the factor in brackets is the growth since the row above.
    lines = [
        "| tokens | four matrices, ms | by hand, ms | fused, ms | by hand / fused | table of weights, MB |",
        "|---|---|---|---|---|---|",
    ]
    before: dict[str, float] = {}
    for length in LENGTHS:
        now = measure(length)
        cells = [f"{now[p]:.3g}" + (f" (×{now[p] / before[p]:.1f})" if before else "") for p in now]
        table = NUM_HEADS * length * length * 4 / 2**20
        lines.append(f"| {length} | {' | '.join(cells)} | {now['by hand'] / now['fused']:.1f} | {table:g} |")
        before = now

    # 2. Say where and how it was measured: such numbers hold for one machine.
    command = "python benchmarks/bench_attention_cost.py"
    lines += ["", f"*{machine()}; {datetime.date.today()}; `{command}`. In brackets: growth since the row above.*"]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    # A table for two cores: as many threads as a reader's small machine has.
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    main()

"""The ladder of matrix products, rung by rung, against OpenBLAS and against what a core can do at most.

    python benchmarks/bench_matmul.py --write

Float32, 1024 × 1024 times 1024 × 1024; Python lists 96 × 96. Each rung gets b in the order in which it reads it: the
dot products on its side, as a layer's weights are stored. OpenBLAS is what NumPy's own product calls. The peak is a
loop of multiply-adds in registers. All works of one table take turns in one process, once for one core and once for
all. Before each there is a rest and a run that does not count: idle threads of one library keep its cores busy for
some tenths of a second, and would slow down the other.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from engine import matmul as ladder  # noqa: E402
from engine.machine import HAS_AVX2  # noqa: E402

SIZE, LISTS, ROUNDS, PEAK_ROUNDS, PAUSE = 1024, 96, 15, 1 << 20, 0.2
OPERATIONS = 2 * SIZE**3
DOTS = {"dot products": ladder.matmul_dot, "4 × 4 in registers": ladder.matmul_registers,
        "in blocks": ladder.matmul_blocked}


def one_core(a: np.ndarray, b: np.ndarray) -> dict:
    """Return the works of the table for one core, and how many operations each is."""
    rows = [[0.5] * LISTS] * LISTS
    works = {"Python lists": (lambda: ladder.matmul_lists(rows, rows), 2 * LISTS**3),
             "i-j-k": (lambda: ladder.matmul_ijk(a, b), OPERATIONS),
             "i-k-j": (lambda: ladder.matmul_ikj(a, b), OPERATIONS)}
    works |= {name: (lambda rung=rung: rung(a, b.T), OPERATIONS) for name, rung in DOTS.items()}
    works["OpenBLAS"] = (lambda: a @ b, OPERATIONS)
    works["vector tiles, packed"] = (lambda: ladder.matmul_packed(a, b), OPERATIONS)
    if HAS_AVX2:
        kernel = ladder.micro_kernel
        step = 2 * kernel.TILE_ROWS * kernel.TILE_COLUMNS
        works["peak"] = (lambda: kernel.multiply_adds(PEAK_ROUNDS), PEAK_ROUNDS * step)
    return works


def measure(cores: int) -> None:
    """Print, as JSON, each work's GFLOP/s and its speed in OpenBLAS's; run in a process that has so many cores."""
    # 1. The slow ones once, the others in turn, with a rest before each.
    a, b = np.random.default_rng(0).standard_normal((2, SIZE, SIZE), dtype=np.float32)
    works = one_core(a, b) if cores == 1 else {"OpenBLAS": (lambda: a @ b, OPERATIONS)}
    if cores > 1:
        works["vector tiles, all cores"] = (lambda: ladder.matmul_threads(a, b), OPERATIONS)
    slow, turns = {name: works[name][0] for name in ("Python lists", "i-j-k") if name in works}, {}
    for name in [name for name in works if name not in slow]:
        turns |= {("rest", name): lambda work=works[name][0]: (time.sleep(PAUSE), work()), name: works[name][0]}
    times = seconds_in_turn(turns, ROUNDS, warmup=2) | (seconds_in_turn(slow, 1) if slow else {})

    # 2. Speed is operations by seconds.
    speed = {name: works[name][1] / statistics.median(times[name]) / 1e9 for name in works}
    times |= {name: times[name] * ROUNDS for name in slow}
    share = {name: ratio(times, "OpenBLAS", name) * works[name][1] / OPERATIONS for name in works}
    print(json.dumps([speed, share]))


def measured(cores: int) -> tuple[dict, dict]:
    """Return GFLOP/s and shares of OpenBLAS, from a process in which both libraries have so many threads."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    command = [sys.executable, __file__, "--cores", str(cores)]
    environment = os.environ | dict.fromkeys(names, str(cores))
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def main() -> None:
    """Measure in two processes and write the table."""
    rows, cores = [["rung", "cores", "GFLOP/s", "of OpenBLAS", "of the peak"]], os.cpu_count()
    peak = None
    for count in dict.fromkeys((1, cores)):
        speed, share = measured(count)
        peak = peak or speed.get("peak", float("nan"))
        for name in speed:
            rows.append([name, str(count), f"{speed[name]:.3g}", f"{100 * share[name]:.3g} %",
                         f"{100 * speed[name] / peak / count:.3g} %"])
    write_table("matmul", rows)


if __name__ == "__main__":
    if "--cores" in sys.argv:
        measure(int(sys.argv[sys.argv.index("--cores") + 1]))
    else:
        main()

"""How every benchmark here measures: pairs in one run, in turn, and a table that says on which machine.

Absolute seconds move by a quarter from run to run on a shared or warm machine. Ratios of things that were
measured in turn move much less, so ratios are what the book quotes.
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

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """Return the processor's name, the number of threads in use, and the version of PyTorch."""
    # 1. Ask Linux for the name on the box; elsewhere Python knows less.
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        rows = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((row.split(":")[1].strip() for row in rows if row.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}"


def seconds_in_turn(works: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in every round; all are run once in each round, in turn."""
    # 1. Warm up: first calls compile, reserve memory and wake threads.
    for _ in range(warmup):
        for work in works.values():
            work()

    # 2. Take turns, so that a busy moment hits all alike.
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times as long `slow` takes as `fast`: the median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def write_table(name: str, rows: list[list[str]], where: str = "") -> None:
    """Print a Markdown table with machine, date and command; with --write also store it in benchmarks/results.

    `where` comes before the machine: what is measured, when that is not the processor.
    """
    # 1. The first row is the header.
    command = f"python benchmarks/{Path(sys.argv[0]).name}"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    lines += ["", f"{where}{machine()}; {datetime.date.today()}; `{command}`"]

    # 2. Replace the stored table in one move.
    print("\n".join(lines))
    if "--write" in sys.argv[1:]:
        RESULTS.mkdir(exist_ok=True)
        partial = RESULTS / f"{name}.md.partial"
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, RESULTS / f"{name}.md")

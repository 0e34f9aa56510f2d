"""Learning merges: counting every pair anew for each merge, against keeping the counts up to date.

    python benchmarks/bench_merges.py --write

Both learn the same merges from the source of Python's standard library, which is asserted. Time is that of
learning alone, the words being cut and counted before. A ratio is the median of the rounds' own ratios.
"""

import statistics
import sys
import sysconfig
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import ratio, seconds_in_turn, write_table  # noqa: E402
from chapters.ch02_merges import learn_merges, learn_merges_slow  # noqa: E402
from chapters.ch02_splitting import GPT2_PATTERN, WordSplitter  # noqa: E402

# Characters of text, and merges to learn from them.
SIZES = ((40_000, 100), (40_000, 400), (160_000, 100), (160_000, 400))
ROUNDS = 3


def measure(text: str, num_merges: int) -> list[str]:
    """Return the table's row for one text and one number of merges."""
    # 1. Count the words once; the learning begins behind that.
    words = WordSplitter(GPT2_PATTERN, ()).words(text)
    counts = {word.encode("utf-8"): count for word, count in Counter(words).items()}
    if learn_merges(counts, num_merges) != learn_merges_slow(counts, num_merges):
        raise AssertionError("the two ways learned different merges: nothing to compare")

    # 2. Take turns.
    works = {"slow": lambda: learn_merges_slow(counts, num_merges), "fast": lambda: learn_merges(counts, num_merges)}
    times = seconds_in_turn(works, ROUNDS, warmup=0)
    slow, fast = (statistics.median(times[name]) for name in ("slow", "fast"))
    sizes = [f"{len(text):,}", f"{len(counts):,}", f"{num_merges:,}"]
    return [*sizes, f"{slow:.1f}", f"{fast:.2f}", f"{ratio(times, 'slow', 'fast'):.0f}"]


def main() -> None:
    """Measure every size and write the table."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join(path.read_text("utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
    header = ["characters", "different words", "merges", "counting anew, s", "up to date, s", "ratio"]
    write_table("merges", [header, *(measure(text[:size], merges) for size, merges in SIZES)])


if __name__ == "__main__":
    main()

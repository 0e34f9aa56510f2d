"""Text larger than the memory: gigabytes are made, tokenized and trained on, and the memory they took is measured.

    python benchmarks/bench_data.py --write

Writes stories, shuffled together into ever new documents, to a text file, and lets `main.py train` learn from it for
a few steps, twice: the second run finds the tokens of the first. The memory is the most that the process ever had,
as the system counts it: libraries, model, text and mapped files together. A small file shows what is left without the
text. Needs about twice the text's size on the disk, for a while.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import write_table  # noqa: E402
from corpora.readers import END_OF_TEXT  # noqa: E402
from corpora.stories import generate  # noqa: E402

# What the process that is measured runs: main.py with its own folder of runs, and at the end the memory it had.
MEASURED = """
import pathlib, resource, sys
import main
main.RUNS = pathlib.Path(sys.argv.pop(1))
code = main.main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print("peak memory", peak, file=sys.stderr)
sys.exit(code)
"""


def write_text(path: Path, size: int) -> None:
    """Write a text file of about `size` bytes: documents of four stories each, in ever new company."""
    # 1. Tell some stories once; telling gigabytes of them would take long and show nothing more.
    dice, told, written = random.Random(0), generate(4000, seed=0), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            document = " ".join(dice.choices(told, k=4))
            # 2. Separate them as GPT-2's authors did.
            file.write(f"{document}\n{END_OF_TEXT}\n")
            written += len(document) + len(END_OF_TEXT) + 2


def train(path: Path, runs: Path, steps: int) -> tuple[int, dict]:
    """Train on a file in a process of its own; return the most memory it had, in bytes, and what its store says."""
    # 1. Leave the compiler out: it works in processes of its own.
    options = ["--preset", "nano", "--batch-size", "2", "--max-steps", str(steps), "--compile", "off"]
    result = subprocess.run([sys.executable, "-c", MEASURED, str(runs), "train", "--data", str(path), *options],
                            cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
    # 2. Show what went wrong, if anything did.
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    about = max((runs / ".tokens").glob("*/about.json"), key=lambda file: file.stat().st_mtime)
    return int(result.stderr.split("peak memory ")[-1]), json.loads(about.read_text(encoding="utf-8"))


def main() -> None:
    """Measure a small and a large text, and write the table."""
    # 1. Read how much text.
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=2_000_000_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    rows = [["text", "documents", "tokens", "run", "most memory, MB"]]

    # 2. Train on each, and again on the large one.
    with tempfile.TemporaryDirectory() as folder:
        for size, kinds in ((1_000_000, ["small text"]), (args.bytes, ["first run", "tokens found"])):
            path = Path(folder) / f"{size}.txt"
            write_text(path, size)
            for kind in kinds:
                peak, about = train(path, Path(folder) / "runs", args.steps)
                counts = [about["train"][what] + about["validation"][what] for what in ("documents", "tokens")]
                rows.append([f"{path.stat().st_size / 1e6:,.0f} MB", *(f"{count:,}" for count in counts), kind,
                             f"{peak / 1e6:,.0f}"])
    write_table("data", rows)


if __name__ == "__main__":
    main()

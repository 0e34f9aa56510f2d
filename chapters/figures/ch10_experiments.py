"""Run chapter 10's experiments, record what came out, and draw it.

    python chapters/figures/ch10_experiments.py                       draw from the recorded numbers
    python chapters/figures/ch10_experiments.py train SEED [NAME …]   run them all again, or those named
    python chapters/figures/ch10_experiments.py time                  time a step of each, in turn

Those that come out close to the baseline, or to each other, are run with three seeds. Those that end much further from
the baseline than its own seeds lie apart have one or two. The results go into `ch10_experiments.jsonl`, a line for
each; from there come the figure `ch10_experiments.svg` beside this script and the table
`benchmarks/results/experiments.md`.
"""

import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch10_experiments import EXPERIMENTS, HELD_OUT, prepare, run  # noqa: E402
from corpora import stories  # noqa: E402

RECORD = Path(__file__).with_suffix(".jsonl")
RESULT = ROOT / "benchmarks" / "results" / "experiments.md"
COMMAND = "python chapters/figures/ch10_experiments.py train SEED"
ROUNDS = 9


def note(result: dict) -> None:
    """Add a line to the record."""
    result["made"] = f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}"
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(result, flush=True)


def recorded() -> dict[str, dict]:
    """Return for each experiment its runs and the time of its step; a later line replaces an earlier one."""
    # 1. Sort the lines by what they tell of.
    lines, found = map(json.loads, RECORD.read_text(encoding="utf-8").splitlines()), {}
    for line in lines:
        found[line["name"], line.get("seed", "time")] = line
    # 2. Put together what belongs to one experiment.
    runs = {name: [made for (whose, what), made in found.items() if whose == name and what != "time"]
            for name in EXPERIMENTS}
    return {name: {"time": found[name, "time"], "runs": runs[name]} for name in EXPERIMENTS}


def time_steps() -> None:
    """Record how long a step of each experiment takes, measured in turn, as a multiple of the baseline's."""
    with tempfile.TemporaryDirectory() as folder:
        # 1. Take turns, so that a busy moment hits all alike.
        trainers = {name: prepare(name, 0, Path(folder)) for name in EXPERIMENTS}
        times = {name: [] for name in trainers}
        for _ in range(ROUNDS + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer.train_step()
                times[name].append(time.perf_counter() - began)

    # 2. Compare within each round. The first one warms up.
    chip, threads = platform.processor() or platform.machine(), torch.get_num_threads()
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds[1:], times["baseline"][1:], strict=True)]
        note({"name": name, "ratio": statistics.median(ratios), "machine": f"{chip}, {threads} threads"})


def write_table(found: dict[str, dict]) -> None:
    """Write a row for each experiment: the middle of its seeds, and the range where there are several."""
    lines = ["| name | experiment | parameters | time of a step | training loss, end | held out | range | seeds |",
             "|---|---|---|---|---|---|---|---|"]
    # 1. One row an experiment.
    for name, experiment in EXPERIMENTS.items():
        runs, ratio = found[name]["runs"], found[name]["time"]["ratio"]
        ends, middle = sorted(made["held_out"] for made in runs), statistics.median(made["held_out"] for made in runs)
        cells = [f"`{name}`", experiment.title, f"{runs[0]['parameters']:,}", f"{ratio:.2f}",
                 f"{statistics.median(made['loss'] for made in runs):.2f}", f"{middle:.3f}",
                 f"{ends[0]:.3f} to {ends[-1]:.3f}" if len(ends) > 1 else "", str(len(ends))]
        lines.append(f"| {' | '.join(cells)} |")

    # 2. Say how it was made.
    base = found["baseline"]
    floor = stories.floor_bits_per_byte(stories.generate(HELD_OUT, seed=1))
    lines += ["", f"*Training loss: nats per token. Held out: bits per byte in use, the middle of the seeds "
              f"and their range; the floor of these stories is {floor:.2f}. Time of a "
              f"step: as a multiple of the baseline's, middle one of {ROUNDS} rounds in turn, on "
              f"{base['time']['machine']}. {base['runs'][0]['made']}, `{COMMAND}`.*"]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def draw(found: dict[str, dict], target: Path) -> None:
    """Draw a row of dots for each experiment, and the range of the baseline's seeds behind all."""
    # 1. Shade where the baseline's seeds fell: what lies inside may be chance.
    figure, panel = plt.subplots(figsize=(7.2, 4.8), facecolor="white", layout="constrained")
    base = [made["held_out"] for made in found["baseline"]["runs"]]
    panel.axvspan(min(base), max(base), color="#cccccc", linewidth=0)

    # 2. Put a mark for each seed: better than all of the baseline's, worse than all, or neither.
    for row, name in enumerate(EXPERIMENTS):
        ends = [made["held_out"] for made in found[name]["runs"]]
        better, worse = max(ends) < min(base), min(ends) > max(base)
        colour, marker = ("#009e73", "^") if better else ("#d55e00", "s") if worse else ("#0072b2", "o")
        panel.plot(ends, [row] * len(ends), marker=marker, linestyle="", markersize=6, color=colour)

    # 3. Label the rows.
    panel.set_yticks(range(len(EXPERIMENTS)), [experiment.title for experiment in EXPERIMENTS.values()])
    panel.set(xlabel="bits per byte on held-out stories, in use (further left is better)", xscale="log")
    panel.set_xticks([0.3, 0.4, 0.5, 0.7, 1, 1.5, 2], "0.3 0.4 0.5 0.7 1 1.5 2".split())
    panel.minorticks_off()
    panel.invert_yaxis()
    figure.savefig(target, metadata={"Date": None})


def main(what: str = "", *names: str) -> None:
    """Train or time, if asked to; otherwise, and after timing, draw what is recorded."""
    # 1. Train with one seed.
    if what == "train":
        seed, *names = names
        for name in names or EXPERIMENTS:
            note(run(name, int(seed)))
        return
    # 2. Time, then draw.
    if what == "time":
        time_steps()
    found = recorded()
    write_table(found)
    draw(found, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    plt.rcParams["svg.hashsalt"] = "ch10"
    main(*sys.argv[1:])

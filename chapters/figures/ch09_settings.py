"""Let the storyteller tell a hundred stories at each of several settings, and count those that hold together.

    python chapters/figures/ch09_settings.py

A story counts when the grammar that made the training stories accepts it from the first letter to the last: every
name, thing and pronoun is right, and the story ends. Variety is measured too, as the share of
four-word runs that are said only once: a model that always tells one perfect story is no storyteller.

Writes `ch09_settings.svg` beside this script and the table `benchmarks/results/sampling_settings.md`.
"""

import datetime
import math
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from chapters.ch02_tokenization import BPETokenizer  # noqa: E402
from chapters.ch07_gpt_model import GPT  # noqa: E402
from chapters.ch09_inference import SamplingConfig, generate_batch  # noqa: E402
from corpora import stories  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "sampling_settings.md"
COMMAND = "python chapters/figures/ch09_settings.py"
STORIES, COMPARED = 100, 30

# What is compared: no filter at rising temperatures, then the same with one filter each, then the penalty.
PLAIN = [{"temperature": t} for t in (0.0, 0.4, 0.8, 1.0, 1.2, 1.5)]
TOP_P = [{"temperature": t, "top_p": 0.9} for t in (1.0, 1.2, 1.5)]
MIN_P = [{"temperature": t, "min_p": 0.1} for t in (1.0, 1.2, 1.5)]
TOP_K = [{"temperature": 1.2, "top_k": 10}]
PENALTY = [{"temperature": 0.8, "repetition_penalty": p} for p in (1.1, 1.3)]


def tell(model: GPT, tokenizer: BPETokenizer, setting: dict) -> list[str]:
    """Return a hundred stories told at one setting, each with dice of its own."""
    # 1. Leave room for the longest story: the context less the mark that opens it.
    config = SamplingConfig(**setting, max_new_tokens=model.config.max_seq_len - 1)
    told = generate_batch(model, [tokenizer.start_ids] * STORIES, config, stop_ids=tokenizer.stop_ids)

    # 2. Keep of each row what came before its end.
    rows = torch.stack(list(told), dim=1).tolist()
    return [tokenizer.decode([i for i in row if i >= 0 and i not in tokenizer.stop_ids]) for row in rows]


def count(texts: list[str]) -> tuple[int, float, str]:
    """Return how many texts are stories, how different these are, and the slips of the others.

    How different: of all runs of four words in the first thirty stories, the percentage that is said once only.
    Where there are fewer stories, nan.
    """
    # 1. Ask the grammar.
    results = [stories.parse(text) for text in texts]
    told = [text.split() for text, result in zip(texts, results, strict=True) if result.ok]
    slips = Counter(result.kind for result in results if not result.ok)

    # 2. Count runs in equally many stories: among more of them, more is said twice.
    runs = Counter(tuple(words[i : i + 4]) for words in told[:COMPARED] for i in range(len(words) - 3))
    once = 100 * sum(times == 1 for times in runs.values()) / max(1, runs.total())
    once = once if len(told) >= COMPARED else math.nan
    return len(told), once, ", ".join(f"{kind} {n}" for kind, n in slips.most_common(3))


def write_table(counts: list[tuple[dict, tuple[int, float, str]]]) -> None:
    """Write one row for each setting, the grammar's own stories last."""
    # 1. Name each filter as the command line does.
    names = {"top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "repetition_penalty": "penalty"}
    lines = ["| temperature | filter | accepted | said once only | slips |", "|---|---|---|---|---|"]
    for setting, (accepted, once, slips) in counts:
        filters = " ".join(f"{names[name]} {value:g}" for name, value in setting.items() if name in names)
        warmth = f"{setting['temperature']:.1f}" if setting else "(the grammar itself)"
        new = "" if math.isnan(once) else f"{once:.0f}%"
        lines.append(f"| {warmth} | {filters} | {accepted} | {new} | {slips} |")

    # 2. Say what was counted, and how to count again.
    lines += ["", f"*{STORIES} stories for each row, the rows' dice beginning at seeds 0 to {STORIES - 1}. "
              f"{datetime.date.today()}, PyTorch {torch.__version__.split('+')[0]}, `{COMMAND}`.*"]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(counts: list[tuple[dict, tuple[int, float, str]]], target: Path) -> None:
    """Draw accepted stories and their variety against the temperature, a line for each kind of filter."""
    # 1. One panel for what is right, one for what is new.
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    kinds = (("no filter", PLAIN, "#0072B2", "-", "o"), ("top-p 0.9", TOP_P, "#D55E00", "--", "s"),
             ("min-p 0.1", MIN_P, "#009E73", ":", "^"))
    titles = f"accepted, of {STORIES}", "said once only, %"
    for panel, column, title in zip(panels, (0, 1), titles, strict=True):
        for label, settings, colour, dash, marker in kinds:
            points = [(s["temperature"], numbers[column]) for s, numbers in counts if s in settings]
            panel.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker=marker, label=label)

        # 2. Say what stands where.
        panel.set(title=title, xlabel="temperature", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[1].axhline(counts[-1][1][1], color="grey", linewidth=0.8)
    panels[1].annotate("the grammar itself", (0.05, counts[-1][1][1]), va="bottom")
    panels[1].legend(loc="lower right")
    figure.savefig(target, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Tell, count, write the table, draw the curves."""
    # 1. Measure each setting.
    model, tokenizer = GPT.from_pretrained(ROOT / "models/storyteller"), BPETokenizer.load(ROOT / "models/storyteller")
    counts = []
    for setting in [*PLAIN, *TOP_P, *MIN_P, *TOP_K, *PENALTY]:
        counts.append((setting, count(tell(model, tokenizer, setting))))
        print(*counts[-1], flush=True)

    # 2. Set the bar: what the grammar itself would score.
    counts.append(({}, count(stories.generate(STORIES, seed=99))))
    draw(counts, Path(__file__).with_suffix(".svg"))
    write_table(counts)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "ch09"
    torch.set_num_threads(1)
    main()

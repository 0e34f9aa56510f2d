"""The run folder: where a training run writes what it made and how it went.

    runs/NAME/  config.json, model.safetensors, tokenizer.json, generation_config.json   the model folder
                README.md         a card: data, steps, bits per byte
                metrics.jsonl     one line per evaluation        loss.png     the same as a picture
                samples.txt       what the model said, and when  checkpoint/  from which it can go on
"""

import contextlib
import json
import math
import re
from pathlib import Path

from chapters.ch02_writing import explained, replacing, write_atomically

# What a run may be called: a name, never a path.
RUN_NAME = r"\w[\w.-]{0,59}"


def name_of_run(asked: str | None, made_up: str, runs: Path) -> str:
    """Return what a new run is called: as asked for, or as made up.

    Raises ValueError for a name that is a path, or is taken: a made-up one would get the next free number.
    """
    # 1. Let no name lead out of the folder of runs.
    name = made_up if asked is None else asked
    if not re.fullmatch(RUN_NAME, name):
        raise ValueError(f"--name {name!r}: a name has at most 60 letters, digits, '.', '-' and '_', begins with a "
                         "letter or a digit, and is no path; give the place by --runs FOLDER")

    # 2. Never guess whether a run that is there was meant.
    if asked is not None and (runs / name).exists():
        raise ValueError(f"--name {name}: {runs / name} exists; choose another name, or go on with it by "
                         f"--resume {runs / name} alone")
    return name


def new_run_folder(root: Path, name: str) -> Path:
    """Make and return `root/name`, or `root/name-2`, `-3`, … if that exists: no run overwrites another.

    Raises ValueError when the numbers run out, and OSError where no folder may be made.
    """
    # 1. Try names until one is free. Making the folder is the test: to look first and make it later would
    # leave a moment in which another run can take it.
    for number in range(1, 10000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        with explained(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise ValueError(f"{root} holds 9999 runs called {name}: give another --name, or remove old runs")


def read_metrics(folder: Path) -> list[dict]:
    """Return the lines of a run's `metrics.jsonl`, oldest first, each as a dict.

    A line has at least the step, the training loss in nats per token (None at the first look, before any
    step) and `validation_bits_per_byte`. Raises FileNotFoundError where no run has written one, and ValueError
    naming the line that is not such a line.
    """
    # 1. Read each line, and look for what a curve is drawn from. A line that lacks it would be noticed only at the
    # end of the training.
    path, metrics = folder / "metrics.jsonl", []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            metrics.append(json.loads(line))
            metrics[-1]["step"], metrics[-1]["loss"], metrics[-1]["validation_bits_per_byte"]

        # 2. Name one that is damaged.
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}: line {number} is damaged; mend or remove it") from None
    return metrics


def draw_loss_curve(
    metrics: list[dict], path: Path, bytes_per_token: float, floor: float | None = None
) -> None:
    """Draw training and validation loss over the steps, with the floor and the share of stories that parse.

    All losses are in bits per byte; `bytes_per_token`, an average over training text, converts the training
    loss. That of a step is a mean since the evaluation before. `floor` is the entropy of the stories'
    grammar, where it is known. The file's ending says which kind of picture it becomes.
    """
    # 1. Draw without a screen: a server has none. matplotlib is slow to load, so nothing else waits for it.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # 2. Draw the two losses in one unit, on a logarithmic scale, where the last stretch can be seen.
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    trained = [m for m in metrics if m["loss"] is not None]
    axes.plot([m["step"] for m in trained], [m["loss"] / math.log(2) / bytes_per_token for m in trained],
              color="#0072B2", label="training loss", linewidth=1.5)
    axes.plot([m["step"] for m in metrics], [m["validation_bits_per_byte"] for m in metrics],
              color="#D55E00", marker="o", markersize=4, label="validation loss", linewidth=1.5)
    axes.set(xlabel="step", ylabel="bits per byte", yscale="log", title="How the model's surprise fell")

    # 3. Mark the line below which no model can fall.
    if floor is not None:
        axes.axhline(floor, color="#555555", linestyle="--", label=f"floor of the grammar, {floor:.3f}")

    # 4. Find how many samples the grammar accepted. Other data has no grammar to ask, and a line of
    # zeros would say that every sample was wrong.
    looks = [m for m in metrics if m.get("stories_that_parse") is not None]
    shares = [(m["step"], m["stories_that_parse"]) for m in looks]
    style = {"color": "#009E73", "marker": "s", "markersize": 4, "linestyle": ":"}

    # 5. Show them on a second axis, for shares and bits have no common scale. The empty line on the first
    # one puts them into its legend.
    if shares:
        right = axes.twinx()
        right.plot(*zip(*shares, strict=True), **style)
        right.set(ylabel="share of samples the grammar accepts", ylim=(-0.02, 1.02))
        axes.plot([], [], **style, label="samples that are stories")

    # 6. Write plain numbers on the scale: nobody reads 3 · 10⁻¹ as quickly as 0.3.
    for write_numbers in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        write_numbers(matplotlib.ticker.FormatStrFormatter("%g"))

    # 7. Save, and close: matplotlib keeps every open figure in memory.
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center")
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])


# The card of a model, in the form that Hugging Face shows: settings between dashes, then Markdown. The
# Python in it must run as it stands, because a reader tries that first.
CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A GPT of {parameters:,} parameters (Llama architecture), trained from nothing on `{data}` by the code of this
book: {steps} steps of {tokens_per_step} tokens, seed {seed}.

| measured on held-out documents | |
|---|---|
{rows}

Command: `{command}`

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
prompt = tokenizer("<|endoftext|>Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, do_sample=True, temperature=0.8)[0]))
```

It tells stories of the kind it was trained on and nothing else. It knows no facts.
"""


def write_card(folder: Path, results: dict[str, str], **fields) -> None:
    """Write the model folder's README.md, its card: what the model is, from which data, and how good it is.

    A model without a card is soon a riddle, even to those who trained it.

    `results` becomes a table, name by value; `fields` fills the other places of CARD by their names.
    Raises KeyError naming a place that is left empty.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in results.items())
    write_atomically(folder / "README.md", CARD.format(rows=rows, **fields))

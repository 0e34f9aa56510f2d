"""Make the trained models that come with the book: the storyteller, and four moments in the life of a smaller one.

    python models/make.py

`models/storyteller` is the `tiny` preset, trained longer than `python main.py` trains it, so that every page has a
trained model to look into. `models/ladder/step_N` are moments in the training of the `nano` preset, so that pages can
show learning. All are stored in bfloat16, two bytes a number. About a quarter of an hour on two cores.
"""

import contextlib
import io
import shlex
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

import torch

# The chapters are found from this file.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import main
from chapters.ch08_training import TrainConfig
from chapters.ch10_journey import Journey

# The moments of the ladder: knows nothing, knows letters and words, knows sentences, remembers.
STORY_SEED, STORYTELLER_STEPS, LADDER_STEPS, MOMENTS = 1, 600, 400, (0, 25, 100, 400)


def store(journey: Journey, folder: Path) -> None:
    """Write a journey's model in bfloat16, its tokenizer and, where there is one, its card into `folder`."""
    # 1. Begin with an empty folder, so that no file of an older model stays.
    shutil.rmtree(folder, ignore_errors=True)
    journey.model.save_pretrained(folder, torch.bfloat16, journey.tokenizer.eot_id)
    journey.tokenizer.save(folder)

    # 2. Take along what the run says of itself.
    for name in ("README.md", "loss.png"):
        if (journey.folder / name).exists():
            shutil.copy(journey.folder / name, folder / name)


def begin(command: str, name: str, runs: Path) -> Journey:
    """Return the journey that `python main.py` begins at this command, which then stands on the model's card."""
    args = main.read_arguments(shlex.split(command))
    settings = TrainConfig(**main.chosen(TrainConfig, args))
    return Journey.begin(args.data, name, main.sized(args), settings, runs, f"python main.py {command}")


def make_storyteller(runs: Path) -> None:
    """Train the storyteller and store it."""
    journey = begin(f"train --max-steps {STORYTELLER_STEPS}", "storyteller", runs)
    if journey.train():
        store(journey, ROOT / "models" / "storyteller")


def write_story() -> None:
    """Let the storyteller tell the story that the README shows, exactly as the command beneath it does."""
    # 1. Run the command itself, so that the README cannot promise another story.
    command = ["generate", "--model", "models/storyteller", "--seed", str(STORY_SEED)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main.main(command)

    # 2. Quote it where tools/book.py looks for what the README quotes.
    lines = textwrap.wrap(said.getvalue().strip(), 110)
    shown = "\n".join(f"> {line}" for line in lines) + f"\n\n`python main.py {shlex.join(command)}`\n"
    (ROOT / "benchmarks" / "results" / "story.md").write_text(shown, encoding="utf-8")


def make_ladder(runs: Path) -> None:
    """Train the smaller model, and store it whenever a moment of the ladder has come."""
    # 1. Watch in silence; what a moment can do is for the pages to show.
    journey = begin(f"train --preset nano --max-steps {LADDER_STEPS} --eval-every 25", "ladder", runs)

    def look(trainer, metrics):
        if trainer.step in MOMENTS:
            store(journey, ROOT / "models" / "ladder" / f"step_{trainer.step}")

    # 2. Train.
    journey.trainer.on_evaluation = look
    journey.trainer.train()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make_storyteller(Path(folder))
        write_story()
        make_ladder(Path(folder))

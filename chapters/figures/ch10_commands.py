"""Type the commands of chapter 10 that take long, or that wait for somebody to type, and record what they print.

    python chapters/figures/ch10_commands.py [NAME …]       all of them, or those named

What a command prints goes to `benchmarks/results/command_NAME.md`, with the line that was typed above it and long
lines folded, as a terminal folds them. Everything is done in an empty folder, which is removed afterwards.
"""

import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STORYTELLER = "--model models/storyteller"

# What is typed at the shell, and what is typed into the running program.
COMMANDS = {
    "train": ("main.py train --preset nano --max-steps 40 --batch-size 16 --eval-every 20 --runs runs", ""),
    "doctor": ("main.py doctor", ""),
    "chat": (f"main.py chat {STORYTELLER} --max-new-tokens 24",
             "Once upon a time, there lived a boy named Tom.\nOne sunny day, his friend Ella"),
    "eval": (f"main.py eval {STORYTELLER} --documents 100", ""),
    "export": (f"main.py export {STORYTELLER} --to gguf --out storyteller.gguf", ""),
    "onefile": ("gpt.py --steps 40", ""),
}


def folded(text: str) -> str:
    """Return the text in lines of at most 110 characters, which fit on a page."""
    lines = (textwrap.wrap(line, 110, drop_whitespace=len(line) > 110) for line in text.splitlines())
    return "\n".join("\n".join(parts).rstrip() for parts in lines)


def record(name: str, folder: Path) -> None:
    """Run one command in `folder` and write down its answer: standard output, without progress bar and remarks."""
    # 1. Run.
    line, typed = COMMANDS[name]
    arguments = shlex.split(line)
    program = ROOT / arguments[0] if arguments[0] == "main.py" else arguments[0]
    given = [str(ROOT / part) if part.startswith("models/") else part for part in arguments[1:]]
    done = subprocess.run([sys.executable, program, *given], cwd=folder, input=typed, capture_output=True, text=True,
                          check=True)

    # 2. Leave out where this machine keeps its files. Put in the lines typed: a terminal shows them, a pipe does not.
    shown = done.stdout.replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    for answer in typed.splitlines():
        shown = shown.replace("> ", f"\0{answer}\n", 1)
    text = folded(shown.replace("\0", "> ")).strip("\n")
    (RESULTS / f"command_{name}.md").write_text(f"```text\n$ python {line}\n{text}\n```\n", encoding="utf-8")
    print(text, flush=True)


def main(*names: str) -> None:
    """Record the commands that are named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        if "onefile" in (names or COMMANDS):
            subprocess.run([sys.executable, ROOT / "main.py", "onefile"], cwd=folder, check=True)
        for name in names or COMMANDS:
            record(name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

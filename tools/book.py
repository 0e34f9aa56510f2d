"""Every copy has one source: this tool fills the copies and says which one is stale.

    python tools/book.py                         refill excerpts and tables in all pages
    python tools/book.py --check                 change nothing, show what is stale, exit with 1
    python tools/book.py --notebooks [NAME ...]  build, run and write all notebooks, or those named
    python tools/book.py --execute [NAME ...]    run notebooks, write nothing, exit with 1 if a cell fails

The modules own the code, the benchmarks own the tables, a script `notebooks/NAME.py` owns its notebook:

    <!-- code: FILE#Symbol -->              the python fence right below becomes that symbol's source
    <!-- code: FILE#Class.method/2-3 -->    … its numbered paragraphs 2 and 3
    <!-- code: FILE#function/signature -->  … its def line and docstring
    <!-- table: NAME -->                    the lines up to <!-- /table --> become benchmarks/results/NAME.md
    # code: FILE#Symbol                     in a cell of a notebook script: the source is put under this line

Reading and checking need the standard library only; running notebooks needs nbclient.
"""

import argparse
import difflib
import json
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Started as a script, this file's own folder is searched for modules, not the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.source import ROOT, excerpt

# The one place for the public address of this book, which is not public yet. Set it on the day it is,
# then run --notebooks: every first cell carries it.
REPOSITORY = "https://github.com/OWNER/NAME"

# Where pages live, as patterns under the root.
PAGES = ("README.md", "chapters/*.md", "engine/*.md", "explanations/*.md", "fine-tuning/*.md")

# What a mark and a fence look like. A fence's language is the first word behind its ticks.
MARK = re.compile(r"\s*<!--\s*(code|table):\s*(.*?)\s*-->\s*")
FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*([^\s`]*)[^`]*")

# The first code cell of every notebook.
SETUP = f"""\
# On Colab, fetch the book and install what it needs. Anywhere else, find the folder this notebook is in.
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("book").exists():
    subprocess.run(["git", "clone", "--depth", "1", "{REPOSITORY}", "book"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", "book/requirements.txt"], check=True)

places = [Path("book").resolve(), Path.cwd(), *Path.cwd().parents]
root = next((place for place in places if (place / "chapters").is_dir()), None)
if root is None:
    raise FileNotFoundError("open this notebook inside the book's folder: it needs the chapters")
os.chdir(root)
sys.path.insert(0, str(root))"""

# What a notebook says about itself: nothing that differs from machine to machine.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page: `lines[first]` opens it, `lines[last]` closes it."""

    first: int
    last: int
    language: str
    indent: str


def fences(lines: list[str]) -> list[Fence]:
    """Return the fenced blocks of a page, top to bottom. Raises ValueError for one that never closes."""
    # 1. Walk down. Inside a fence nothing opens another: only its own kind of ticks, alone, closes it.
    found, first, match = [], 0, None
    for number, line in enumerate(lines):
        if match is None:
            first, match = number, FENCE.fullmatch(line)
        elif (ticks := line.strip()).startswith(match[2]) and not ticks.strip(match[2][0]):
            # 2. Close it, and look for the next.
            found.append(Fence(first, number, match[3], match[1]))
            match = None

    # 3. Refuse an open end: everything below it would silently be code.
    if match is not None:
        raise ValueError(f"line {first + 1}: this fence is never closed, add a line of {match[2]}")
    return found


def is_excerpt(lines: list[str], fence: Fence) -> bool:
    """Return whether a code mark stands directly above the fence."""
    mark = MARK.fullmatch(lines[fence.first - 1]) if fence.first else None
    return mark is not None and mark[1] == "code"


def copy_for(root: Path, lines: list[str], number: int, blocks: list[Fence]) -> tuple[list[str], int, int]:
    """Return the text that the mark on `lines[number]` asks for, and the slice of lines it replaces.

    Raises ValueError when the source is missing, or the place for the copy.
    """
    # 1. Fill a fence from a module.
    kind, name = MARK.fullmatch(lines[number]).groups()
    if kind == "code":
        fence = next((f for f in blocks if f.first == number + 1 and f.language == "python"), None)
        if fence is None:
            raise ValueError("the line below a code mark must open a ```python fence")
        # 2. Indent the code as the fence is: inside a list a fence stands further right.
        return textwrap.indent(excerpt(root, name), fence.indent).split("\n"), number + 2, fence.last

    # 3. Fill a table from the benchmark that measured it.
    end = next((i for i in range(number, len(lines)) if lines[i].strip() == "<!-- /table -->"), None)
    source = root / "benchmarks" / "results" / f"{name}.md"
    if end is None or not source.is_file():
        missing = "<!-- /table --> below it" if end is None else f"{source.name}, which its benchmark writes"
        raise ValueError(f"table {name}: there is no {missing}")
    return source.read_text(encoding="utf-8").strip("\n").split("\n"), number + 1, end


def refilled(root: Path, page: Path) -> str:
    """Return the text of a page with every excerpt and table as its source has it now.

    Raises ValueError naming page and line of a mark that cannot be filled.
    """
    # 1. Find the marks. One inside a fence is only being shown.
    lines, number, result, done = page.read_text(encoding="utf-8").split("\n"), 0, [], 0
    try:
        blocks = fences(lines)
        shown = {i for fence in blocks for i in range(fence.first, fence.last)}
        marks = [i for i, line in enumerate(lines) if MARK.fullmatch(line) and i not in shown]

        # 2. Copy what is between the marks, and renew what is under them.
        for number in marks:
            text, start, stop = copy_for(root, lines, number, blocks)
            result, done = result + lines[done:start] + text, stop
    except ValueError as error:
        raise ValueError(f"{page.relative_to(root)}:{number + 1}: {error}") from None
    return "\n".join(result + lines[done:])


def notebook_cells(root: Path, script: Path) -> list[tuple[str, str]]:
    """Return (kind, text) of each cell that a notebook script describes, the setup cell included.

    Raises ValueError for a cell mark or an address that is not known.
    """
    # 1. Cut at the marks. What stands above the first is the script's own header.
    cells, pieces = [], re.split(r"^# %%(.*)\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for mark, body in zip(pieces[1::2], pieces[2::2], strict=True):
        body = body.strip("\n")
        if mark.strip() == "[markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)))
        # 2. Put the quoted source under the line that asks for it.
        elif not mark.strip():
            quote = re.compile(r"^# code: (.*)$", flags=re.MULTILINE)
            cells.append(("code", quote.sub(lambda m: f"{m[0]}\n{excerpt(root, m[1].strip())}", body)))
        else:
            raise ValueError(f"{script.name}: cell mark '# %%{mark}': use '# %%' or '# %% [markdown]'")

    # 3. Let the setup cell come before all other code.
    first_code = next((i for i, (kind, _) in enumerate(cells) if kind == "code"), len(cells))
    return cells[:first_code] + [("code", SETUP)] + cells[first_code:]


def executed(root: Path, script: Path) -> str:
    """Return the notebook of a script after a run from top to bottom, as the text of its file.

    Raises ValueError when a cell fails, or when an output names a folder of this machine.
    """
    # 1. Import here: only this function needs more than the standard library.
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    # 2. Build. Numbered cell ids, no clock, no machine: a second build of the same source is the same file.
    cells = []
    for number, (kind, text) in enumerate(notebook_cells(root, script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    notebook = nbformat.from_dict({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})

    # 3. Run it where a reader's Jupyter would: in the folder of the notebook.
    options = {"record_timing": False, "coalesce_streams": True, "timeout": 1200}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(script.parent)}}, **options)
    try:
        client.execute()
    except CellExecutionError as error:
        raise ValueError(f"{script.name}: {error}") from None

    # 4. Write it down, unless it tells whose machine this is.
    notebook.metadata = nbformat.from_dict(METADATA)
    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    for folder in (root, Path.home(), sys.prefix, tempfile.gettempdir()):
        if f"{folder}/" in text:
            raise ValueError(f"{script.name}: an output names {folder}: print no absolute path")
    return text


def notebook_scripts(root: Path, names: list[str]) -> list[Path]:
    """Return the scripts of the named notebooks, or of all. Raises ValueError for a name without a script."""
    scripts = [root / "notebooks" / f"{name}.py" for name in names] or sorted(root.glob("notebooks/*.py"))
    for script in scripts:
        if not script.is_file():
            raise ValueError(f"there is no notebooks/{script.name}: name a notebook without its ending")
    return scripts


def difference(name: str, current: str, wanted: str) -> str:
    """Return a unified diff from what a copy says to what its source says."""
    both = (current.splitlines(), wanted.splitlines())
    return "\n".join(difflib.unified_diff(*both, f"{name} (the copy)", f"{name} (its source)", lineterm=""))


def notebook_problems(root: Path) -> Iterator[str]:
    """Yield what is wrong with the built notebooks: missing, stale, never run, failed, without a script."""
    # 1. Pair scripts and notebooks by name: neither may be alone.
    built = {path.stem: path for path in root.glob("notebooks/*.ipynb")}
    for script in notebook_scripts(root, []):
        if (path := built.pop(script.stem, None)) is None:
            yield f"notebooks/{script.stem}.ipynb is missing: python tools/book.py --notebooks {script.stem}"
            continue

        # 2. Compare the cells, joined to one text, so that the diff can be read.
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        copy = "".join(f"[{cell['cell_type']}]\n{''.join(cell['source'])}\n" for cell in cells)
        wanted = "".join(f"[{kind}]\n{text}\n" for kind, text in notebook_cells(root, script))
        if copy != wanted:
            yield difference(f"notebooks/{path.name}", copy, wanted)

        # 3. Look at what the run left: every code cell ran, none failed.
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        failed = any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
        if failed or any(cell["execution_count"] is None for cell in code):
            yield f"notebooks/{path.name} has a cell that {'failed' if failed else 'was never run'}"

    # 4. Report the notebooks that are left over.
    yield from (f"notebooks/{path.name} has no script beside it" for path in built.values())


def page_problems(root: Path, check: bool) -> Iterator[str]:
    """Renew every page, or with `check` yield what a renewal would change."""
    # 1. Fill. A mark that cannot be filled spoils its own page alone.
    for page in [page for pattern in PAGES for page in sorted(root.glob(pattern))]:
        try:
            current, wanted = page.read_text(encoding="utf-8"), refilled(root, page)
        except ValueError as error:
            yield str(error)
            continue

        # 2. Compare before writing: a page that is current keeps its date.
        if current != wanted and check:
            yield difference(str(page.relative_to(root)), current, wanted)
        elif current != wanted:
            page.write_text(wanted, encoding="utf-8")


def run_notebooks(root: Path, names: list[str], write: bool) -> list[str]:
    """Run the named notebooks, or all, and write each if asked. Raises ValueError at the first that fails."""
    for script in notebook_scripts(root, names):
        text = executed(root, script)
        if write:
            script.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return []


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Do what the command line asks; return 0 when every copy is current and every notebook ran, else 1."""
    # 1. Read the command line.
    parser = argparse.ArgumentParser(description="Fill the copies from their sources, or check them.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="change nothing, show what is stale")
    choice.add_argument("--notebooks", nargs="*", metavar="NAME", help="build, run and write notebooks")
    choice.add_argument("--execute", nargs="*", metavar="NAME", help="run notebooks, write nothing")

    # 2. Run notebooks, or look after the copies. The first error ends it: its message names the place.
    options = parser.parse_args(arguments)
    names = options.notebooks if options.execute is None else options.execute
    try:
        problems = run_notebooks(root, names, write=options.execute is None) if names is not None else [
            *page_problems(root, options.check), *notebook_problems(root)
        ]
    except ValueError as error:
        problems = [str(error)]

    # 3. Say what is left to do.
    print("\n".join(problems) or "every copy is current", file=sys.stderr if problems else sys.stdout)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""The copies tool must notice every stale copy, and must not invent one."""

import json
from pathlib import Path

import pytest

from tools import book
from tools.source import ROOT, excerpt

MODULE = '''"""A module."""

SIZES = (2, 3)


@staticmethod
def outer(x: int) -> int:
    """Return more than x.

    Shapes: none.
    """
    # 1. Prepare.
    y = x + 1

    # 2. Define a helper, which numbers its own steps.
    def inner(z):
        # 1. Not a step of outer.
        return z

    # 3. Finish. "# 4. no comment"
    return inner(y)


class Box:
    """A box."""

    def method(self) -> int:
        """Return one."""
        return 1
'''

PAGE = """# A page

<!-- code: chapters/ch01.py#outer/3 -->
```python
old
```

<!-- table: speed -->
<!-- /table -->

~~~markdown
<!-- code: chapters/nowhere.py#only_shown -->
~~~
"""

SCRIPT = """# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A title
#
# Words.

# %%
# code: chapters/ch01.py#SIZES

print(sum(SIZES))

# %%
SIZES
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small book: one module, one page, one benchmark's table, one notebook script."""
    for name, text in {
        "chapters/ch01.py": MODULE,
        "chapters/01_page.md": PAGE,
        "benchmarks/results/speed.md": "| a |\n|---|\n| 1 |\n",
        "notebooks/01_first.py": SCRIPT,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def pages_only(root: Path) -> Path:
    """The small book without its notebook."""
    (root / "notebooks/01_first.py").unlink()
    return root


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("SIZES", "SIZES = (2, 3)"),
        ("Box.method", 'def method(self) -> int:\n    """Return one."""\n    return 1'),
        ("outer/1", "# 1. Prepare.\ny = x + 1"),
        ("outer/3", '# 3. Finish. "# 4. no comment"\nreturn inner(y)'),
        ("outer.inner/1", "# 1. Not a step of outer.\nreturn z"),
        ("Box/signature", 'class Box:\n    """A box."""'),
        ("outer.inner/signature", "def inner(z):\n    # 1. Not a step of outer."),
    ],
)
def test_an_address_gives_the_source_to_the_letter(root: Path, address: str, text: str):
    assert excerpt(root, f"chapters/ch01.py#{address}") == text


def test_a_whole_function_comes_with_its_decorator_and_a_range_with_the_lines_between(root: Path):
    assert excerpt(root, "chapters/ch01.py#outer").startswith("@staticmethod\ndef outer(")
    both = excerpt(root, "chapters/ch01.py#outer/1-2")
    assert both.startswith("# 1. Prepare.") and both.endswith("    return z") and "\n\n# 2. Define" in both


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("chapters/ch01.py", "no address"),
        ("chapters/ch99.py#outer", "no file chapters/ch99.py"),
        ("chapters/ch01.py#missing", "defines no missing"),
        ("chapters/ch01.py#Box.missing", "defines no Box.missing"),
        ("chapters/ch01.py#outer/4", r"are \[1, 2, 3\]"),
        ("chapters/ch01.py#outer/3-2", r"are \[1, 2, 3\]"),
        ("chapters/ch01.py#SIZES/1", "is a value"),
    ],
)
def test_an_unknown_address_is_named(root: Path, address: str, words: str):
    with pytest.raises(ValueError, match=words):
        excerpt(root, address)


def test_a_refreshed_page_has_its_excerpts_and_tables_and_then_is_current(pages_only: Path, capsys):
    assert book.main([], pages_only) == 0
    text = (pages_only / "chapters/01_page.md").read_text(encoding="utf-8")
    assert '```python\n# 3. Finish. "# 4. no comment"\nreturn inner(y)\n```' in text
    assert "<!-- table: speed -->\n| a |\n|---|\n| 1 |\n<!-- /table -->" in text
    assert book.main(["--check"], pages_only) == 0


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("chapters/ch01.py", "return inner(y)", "return inner(y + 1)"),
        ("chapters/01_page.md", "return inner(y)", "return inner( y )"),
        ("benchmarks/results/speed.md", "| 1 |", "| 2 |"),
    ],
)
def test_a_stale_copy_fails_the_check_with_a_diff_and_is_left_alone(pages_only: Path, capsys, file, old, new):
    book.main([], pages_only)
    rewrite(pages_only / file, old, new)
    page = (pages_only / "chapters/01_page.md").read_text(encoding="utf-8")
    assert book.main(["--check"], pages_only) == 1
    assert "\n-" in (diff := capsys.readouterr().err) and "\n+" in diff and "chapters/01_page.md" in diff
    assert (pages_only / "chapters/01_page.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("#outer/3", "#outer/9", "chapters/01_page.md:3: .*the numbered paragraphs"),
        ("-->\n```python", "-->\n\n```python", "chapters/01_page.md:3: .*must open a ```python fence"),
        ("table: speed", "table: weight", "chapters/01_page.md:8: .*weight.md"),
        ("<!-- /table -->", "", "chapters/01_page.md:8: .*/table"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_named_with_page_and_line(pages_only: Path, old, new, words):
    rewrite(pages_only / "chapters/01_page.md", old, new)
    with pytest.raises(ValueError, match=words):
        book.refilled(pages_only, pages_only / "chapters/01_page.md")


def test_a_fence_that_never_closes_is_an_error():
    with pytest.raises(ValueError, match="line 2: .*never closed"):
        book.fences(["text", "````python", "x", "```"])


def test_cells_are_cut_as_jupytext_cuts_them(root: Path):
    jupytext = pytest.importorskip("jupytext")
    rewrite(root / "notebooks/01_first.py", "# code: ", "# no quote: ")
    script = root / "notebooks/01_first.py"
    theirs = [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert [cell for cell in book.notebook_cells(root, script) if cell[1] != book.SETUP] == theirs


def test_a_notebook_is_run_with_the_quoted_code_and_tells_nothing_about_the_machine(root: Path, capsys):
    book.main([], root)
    assert book.main(["--notebooks"], root) == 0
    path = root / "notebooks/01_first.ipynb"
    title, setup, quoting, last = cells(path)
    assert "".join(title["source"]) == "# A title\n\nWords." and "".join(setup["source"]) == book.SETUP
    assert "SIZES = (2, 3)" in "".join(quoting["source"]) and quoting["outputs"][0]["text"] == ["5\n"]
    assert last["outputs"][0]["data"]["text/plain"] == ["(2, 3)"] and last["metadata"] == {}
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"] == book.METADATA

    # A second build of the same source is the same file, and the check accepts it.
    before = path.read_bytes()
    assert book.main(["--notebooks", "01_first"], root) == 0 and path.read_bytes() == before
    assert book.main(["--check"], root) == 0

    # Each fault that a copy can have is found.
    capsys.readouterr()
    for old, new, words in [
        ("SIZES = (2, 3)", "SIZES = (2, 4)", "+SIZES = (2, 3)"),
        ('"execution_count": 3', '"execution_count": null', "was never run"),
        ('"output_type": "stream"', '"output_type": "error"', "failed"),
    ]:
        rewrite(path, old, new)
        assert book.main(["--check"], root) == 1 and words in capsys.readouterr().err
        path.write_bytes(before)
    path.rename(path.with_stem("02_other"))
    assert book.main(["--check"], root) == 1
    assert "01_first.ipynb is missing" in (error := capsys.readouterr().err) and "no script" in error


@pytest.mark.parametrize("cell", ["1 / 0", "print(root)"])
def test_a_notebook_that_fails_or_prints_a_folder_of_the_machine_is_refused(root: Path, capsys, cell: str):
    rewrite(root / "notebooks/01_first.py", "print(sum(SIZES))", cell.replace("root", "f'{root}/'"))
    assert book.main(["--execute"], root) == 1 and not list(root.glob("notebooks/*.ipynb"))
    assert ("ZeroDivisionError" if cell == "1 / 0" else "an output names") in capsys.readouterr().err


def test_every_copy_in_this_repository_is_current(capsys):
    assert book.main(["--check"], ROOT) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_every_notebook_of_this_repository_runs(capsys):
    assert book.main(["--execute"], ROOT) == 0, capsys.readouterr().err

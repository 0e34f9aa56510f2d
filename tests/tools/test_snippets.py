"""The snippet runner must run what a reader would run, and accept no output that the code did not print."""

import os
from pathlib import Path

import pytest
from sybil import Sybil

from tools.snippets import agree, close, prepare, restore, snippets
from tools.source import ROOT

PAGE = """# A page

```python
from pathlib import Path

third = 1 / 3
```

Words.

```python
print(f"a third is {third:.3f}   ")
print("shape", (2, 3), Path("chapters").is_dir())
```

```text
a third is 0.334
shape (2, 3) True
```

<!-- code: chapters/ch05_attention.py#softmax -->
```python
this is a copy, not run
```

<details>

1. Inside a list:

   ```python
   if third:
       print("  indented")
   ```
   ```text
     indented
   ```

</details>
"""


@pytest.fixture
def run(tmp_path: Path):
    """A function that runs every snippet of a page with some text replaced."""

    def evaluate(old: str = "", new: str = "") -> int:
        assert old in PAGE
        path = tmp_path / "page.md"
        path.write_text(PAGE.replace(old, new, 1) if old else PAGE, encoding="utf-8")
        document = Sybil([snippets]).parse(path)
        prepare(document.namespace)
        try:
            return len([example.evaluate() for example in document])
        finally:
            restore(document.namespace)

    return evaluate


def test_a_true_page_passes_wherever_it_is_run_from(run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run() == 3
    assert os.getcwd() == str(tmp_path) != str(ROOT)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a third is 0.334", "a third is 0.335", r"\+a third is 0.333"),
        ("shape (2, 3) True\n```", "shape (2, 4) True\n```", r"\+shape \(2, 3\)"),
        ("a third is 0.334", "a half is 0.334", "a third"),
        ("     indented\n   ```\n", "   indented\n   ```\n", r"\+  indented"),
        ("```text\na third is 0.334\nshape (2, 3) True\n```\n", "", "no text block stands below"),
        ("\n```text\na third", "\nIt prints:\n\n```text\na third", "no text block stands below"),
        ("Words.", "```text\nnothing\n```", "which prints nothing"),
        ("```text\na third", "```\na third", "no text block stands below"),
    ],
)
def test_a_false_page_fails(run, old: str, new: str, words: str):
    with pytest.raises(AssertionError, match=words):
        run(old, new)


def test_an_error_in_a_snippet_is_an_error_at_the_line_of_the_page(run):
    with pytest.raises(ZeroDivisionError) as caught:
        run("third = 1 / 3", "third = 1 / 0")
    assert caught.traceback[-1].lineno + 1 == 6


@pytest.mark.parametrize("block", ["```py\n1\n```", "```Python\n```", "```python3\n```", "> ```python\n> 1"])
def test_a_block_that_would_never_be_run_is_refused(run, block: str):
    with pytest.raises(ValueError, match="page.md:9: open a block"):
        run("Words.", block)


def test_a_snippet_cannot_reach_the_network(run):
    with pytest.raises(ConnectionError, match="offline"):
        run("third = 1 / 3", 'import socket; third = socket.create_connection(("127.0.0.1", 9))')


def test_a_snippet_that_forgot_its_seed_prints_something_else_each_time(run):
    draw = ("third = 1 / 3", 'import torch; third = 1 / 3; raise OSError(torch.rand(4))')
    messages = []
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            run(*draw)
        messages.append(str(caught.value))
    assert messages[0] != messages[1]


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("0.458", "0.459", True),
        ("0.458", "0.460", False),
        ("0.47", "0.471", True),
        ("0.47", "0.4725", False),
        ("-0.00", "0.00", True),
        ("9.99", "10.00", True),
        ("1.2e-05", "1.3e-05", True),
        ("1.2e-05", "1.4e-05", False),
        ("9.9e-06", "1e-05", True),
        ("17", "17", True),
        ("17", "18", False),
        ("2", "2.0", True),
    ],
)
def test_rounded_numbers_may_differ_by_one_unit_and_whole_ones_not_at_all(one: str, other: str, near: bool):
    assert close(one, other) == near == close(other, one)


@pytest.mark.parametrize(
    ("page", "printed", "same"),
    [
        ("loss 4.10, bf16", "loss 4.11, bf16 \n\n", True),
        ("dtype bf16", "dtype bf17", False),
        ("[0.1, 0.2]", "[0.1, 0.2, 0.3]", False),
        ("x 3.5×", "x 3.6×", True),
        ("  x", "x", False),
        ("nan", "0.1", False),
    ],
)
def test_everything_but_rounding_must_be_equal(page: str, printed: str, same: bool):
    assert agree(page, printed) == same

"""Run the python blocks of a page as its reader would, and hold what they print against the page.

Top to bottom, in one namespace, offline, on one CPU thread, at the repository's root. The `text` block right
below a snippet is what it prints: a number with a decimal point may differ by one unit of its last digit, a
whole number and everything else may not. A snippet that prints needs a text block, one that prints nothing
may have none. Blocks under a `<!-- code: … -->` mark are copies of a module and are not run.

`snippets` is a parser for Sybil, which makes every snippet a test.
"""

import difflib
import io
import re
import socket
from collections.abc import Iterator
from contextlib import redirect_stdout
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
import torch
from sybil import Document, Example, Region

from tools.book import Fence, fences, is_excerpt
from tools.source import ROOT

# A number by itself (the 16 of "bf16" is part of a name), and the threads that a test run starts with.
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
THREADS = torch.get_num_threads()


class Snippet(NamedTuple):
    """A block to run: its code, what the page says it prints (None: no text block), its first line."""

    code: str
    expected: str | None
    line: int


def close(one: str, other: str) -> bool:
    """Return whether two printed numbers agree to one unit of the last digit; whole ones must be equal."""
    # 1. Shapes, counts and token ids have no rounding.
    first, second = Decimal(one), Decimal(other)
    if not re.search("[.eE]", one + other):
        return first == second

    # 2. Take the finer of the two: 0.47 may stand for 0.470.
    unit = Decimal(1).scaleb(min(first.as_tuple().exponent, second.as_tuple().exponent))
    return abs(first - second) <= unit


def agree(expected: str, printed: str) -> bool:
    """Return whether a page may show `expected` for what was `printed`."""
    # 1. Forget blanks at the end of lines, and empty lines at the end.
    sides = ["\n".join(map(str.rstrip, text.rstrip().split("\n"))) for text in (expected, printed)]
    words, numbers = [NUMBER.sub("#", side) for side in sides], [NUMBER.findall(side) for side in sides]

    # 2. The words must be equal and the numbers close.
    return words[0] == words[1] and all(map(close, *numbers))


def evaluate(example: Example) -> str | None:
    """Run one snippet; return what is wrong with its output, or None. Errors of the snippet pass through."""
    # 1. Put it where a reader is, at the root, without a network to lean on. The empty lines in front let a
    # traceback name the page's own lines.
    snippet, printed = example.parsed, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(ROOT)
        patch.setattr(socket.socket, "connect", refuse)
        exec(compile("\n" * snippet.line + snippet.code, example.path, "exec"), example.namespace)

    # 2. Ask for a text block where there is output, and only there.
    found, expected = printed.getvalue(), snippet.expected
    if found.strip() and expected is None:
        return f"this snippet prints, but no text block stands below it:\n{found}"
    if expected is not None and not found.strip():
        return "a text block stands below this snippet, which prints nothing"

    # 3. Compare.
    return None if agree(expected or "", found) else difference(expected, found)


def difference(expected: str, printed: str) -> str:
    """Return a diff from the page to what was printed."""
    sides = (expected.rstrip().split("\n"), printed.rstrip().split("\n"))
    return "\n".join(difflib.unified_diff(*sides, "the page", "what was printed", lineterm=""))


def refuse(*arguments: Any) -> None:
    """Stand in for the network."""
    raise ConnectionError("a page's snippets run offline: use what is in the repository")


def prepare(namespace: dict[str, Any]) -> None:
    """Begin a page as a script begins, and so that a snippet that forgot its seed cannot pass by luck."""
    namespace["__name__"] = "__main__"
    torch.set_num_threads(1)
    torch.seed()


def restore(namespace: dict[str, Any]) -> None:
    """End a page: the other tests have all threads again."""
    torch.set_num_threads(THREADS)


def content(lines: list[str], fence: Fence) -> str:
    """Return what stands inside a fence, moved left by as much as the fence itself is indented."""
    return "\n".join(line.removeprefix(fence.indent) for line in lines[fence.first + 1 : fence.last])


def output_below(lines: list[str], fence: Fence, below: Fence | None) -> str | None:
    """Return the content of the text block that follows a snippet, blank lines apart, or None."""
    if below is None or below.language != "text" or any(map(str.strip, lines[fence.last + 1 : below.first])):
        return None
    return content(lines, below)


def snippets(document: Document) -> Iterator[Region]:
    """Yield a page's snippets to Sybil.

    Raises ValueError for a block that looks like Python but would never be run.
    """
    # 1. Find the blocks.
    lines = document.text.split("\n")
    blocks = fences(lines)
    inside = {i for fence in blocks for i in range(fence.first, fence.last + 1)}

    # 2. Refuse those under another name or inside a quotation: they would rot unseen.
    odd = [f.first for f in blocks if f.language != "python" and re.match("py|Python", f.language)]
    odd += [i for i, line in enumerate(lines) if i not in inside and re.search("(```|~~~) *py", line)]
    if odd:
        raise ValueError(f"{document.path}:{odd[0] + 1}: open a block with ```python, outside of quotations")

    # 3. Hand over each snippet with its place in the text, which Sybil wants in characters.
    for fence, below in zip(blocks, [*blocks[1:], None], strict=True):
        if fence.language == "python" and not is_excerpt(lines, fence):
            snippet = Snippet(content(lines, fence), output_below(lines, fence, below), fence.first + 1)
            start = len("\n".join(lines[: fence.first])) + 1 if fence.first else 0
            yield Region(start, start + len(snippet.code), snippet, evaluate)

"""Read modules: their comments, steps and shape notes, and any piece of text that has an address.

An address names a piece of a module: `FILE#Symbol`, `FILE#Class.method`, `FILE#function/2` for its numbered
paragraph 2, `/2-4` for several, `/signature` for the def line and the docstring. Pieces are cut out of the
file as it stands, so that a copy equals its source to the byte. Standard library only.
"""

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The folder that holds everything.
ROOT = Path(__file__).resolve().parent.parent

# What an address looks like.
ADDRESS = re.compile(r"([\w./-]+\.py)#([\w.]+?)(?:/(signature|\d+)(?:-(\d+))?)?")

# Batch, tokens, channels, heads, head size, vocabulary, hidden, keys, key/value heads: the same everywhere.
LETTERS = list("BTCHDVFSK")
ARITHMETIC = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Load)


@dataclass(frozen=True)
class Comment:
    """A comment of a module: its line (from 1), its text with the #, whether it stands alone on the line."""

    line: int
    text: str
    alone: bool


def comments(source: str) -> list[Comment]:
    """Return the comments of a module in order; a # inside a string is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        Comment(token.start[0], token.string, not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    ]


def first_line(node: ast.stmt) -> int:
    """Return the line on which a statement begins, decorators included."""
    return min([node.lineno] + [decorator.lineno for decorator in getattr(node, "decorator_list", [])])


def lines_of(nodes: Iterable[ast.stmt]) -> set[int]:
    """Return the numbers of all lines that these statements cover, decorators included."""
    return {line for node in nodes for line in range(first_line(node), node.end_lineno + 1)}


def nested_definitions(node: ast.stmt) -> list[ast.stmt]:
    """Return the functions and classes defined anywhere inside a statement."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [inner for inner in ast.walk(node) if isinstance(inner, kinds) and inner is not node]


def steps(function: ast.stmt, remarks: list[Comment]) -> list[tuple[int, int]]:
    """Return (number, line) of each numbered comment of a function; a nested function keeps its own."""
    lines = lines_of([function]) - lines_of(nested_definitions(function))
    own = [r for r in remarks if r.alone and r.line in lines]
    return [(int(match[1]), r.line) for r in own if (match := re.match(r"# (\d+)\. ", r.text))]


def definitions(node: ast.AST) -> dict[str, ast.stmt]:
    """Return the functions, classes and assignments directly inside a module, class or function, by name."""
    found: dict[str, ast.stmt] = {}
    for statement in getattr(node, "body", []):
        for target in getattr(statement, "targets", [getattr(statement, "target", statement)]):
            found.setdefault(getattr(target, "name", getattr(target, "id", "")), statement)
    return found


def excerpt(root: Path, address: str) -> str:
    """Return the source text that an address names, moved to the left margin.

    Raises ValueError for a file, a symbol or a step that does not exist.
    """
    # 1. Take the address apart.
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address!r} is no address: write FILE.py#name, and /2, /2-4 or /signature")
    file, symbol, part, until = match.groups()
    if not (root / file).is_file():
        raise ValueError(f"{address}: there is no file {file}")

    # 2. Climb down to the symbol, one name at a time.
    source = (root / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for name in symbol.split("."):
        if (node := definitions(node).get(name)) is None:
            raise ValueError(f"{address}: {file} defines no {symbol}")
    if part is not None and not hasattr(node, "body"):
        raise ValueError(f"{address}: {symbol} is a value and has no parts")

    # 3. Narrow its lines to the part asked for.
    first, last = first_line(node), node.end_lineno
    if part == "signature":
        last = node.body[0].end_lineno if ast.get_docstring(node) else first_line(node.body[0]) - 1
    elif part is not None:
        first, last = step_lines(address, steps(node, comments(source)), int(part), int(until or part), last)

    # 4. Cut them out as they stand.
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : last])).strip("\n")


def step_lines(
    address: str, found: list[tuple[int, int]], start: int, stop: int, end: int
) -> tuple[int, int]:
    """Return the first and last line of paragraphs `start` to `stop` of a function whose last line is `end`.

    Raises ValueError, naming the address and the paragraphs there are, for one that does not exist.
    """
    lines = dict(found)
    if start not in lines or stop not in lines or stop < start:
        raise ValueError(f"{address}: the numbered paragraphs there are {sorted(lines) or 'none'}")
    return lines[start], lines.get(stop + 1, end + 1) - 1


def parse_note(comment: str) -> list[ast.Tuple]:
    """Return the shapes in a comment such as `# (B, T), (T+1,)`.

    Raises ValueError for anything that is not shapes alone, or a letter without a meaning.
    """
    # 1. Read the text as Python, in which a shape is a tuple.
    wrong = f"{comment!r} is no shape note: write shapes alone, such as # (B, T, C) or # (V,), (B, H*D)"
    try:
        whole = ast.parse(comment.lstrip("# "), mode="eval").body
    except SyntaxError:
        raise ValueError(wrong) from None

    # 2. Tell one shape from several, which make a tuple of tuples.
    parts = getattr(whole, "elts", [])
    shapes = parts if parts and all(isinstance(part, ast.Tuple) for part in parts) else [whole]

    # 3. Accept arithmetic on known letters, nothing else.
    nodes = [node for shape in shapes for dim in getattr(shape, "elts", []) for node in ast.walk(dim)]
    sizes = [n for n in nodes if getattr(n, "id", "") in LETTERS or type(getattr(n, "value", "")) is int]
    signs = [n for n in nodes if isinstance(n, ARITHMETIC)]
    if not isinstance(shapes[0], ast.Tuple) or len(sizes) + len(signs) != len(nodes):
        raise ValueError(wrong)
    return shapes

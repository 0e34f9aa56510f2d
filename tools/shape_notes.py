"""Test the shape notes: run a module and compare each `# (B, T, C)` with the array on its line.

    traced = trace("chapters/ch05_attention.py")
    with traced.sizes(B=2, T=7, S=7, C=20, H=4, K=2, D=5, same=["TS"]):
        traced.module.MultiHeadAttention(20, 4, 2)(x, cos, sin)    # a false note raises AssertionError
    assert not traced.unreached()

A note stands at the end of an assignment or return, on its first or last line; several targets take several
notes, `# (B, H, T, D), (B, K, S, D)`. Different letters must have different sizes, or a transposed array
would go unseen; letters that may be equal (a prompt has T = S) are named in `same`. Outside of `with`
nothing is checked. Notes on a module's constants need the sizes at once: `trace(path, T=3, C=4)`.
"""

import ast
import re
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

from tools.source import ROOT, comments, parse_note


class _Recorder(ast.NodeTransformer):
    """Sends the value of every statement with a note through `__shape_note__(line, value)`."""

    def __init__(self, lines: Iterable[int]):
        self.waiting = set(lines)

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        """Rewrite one assignment or return whose first or last line has a note."""
        # 1. Find the note that belongs here. An annotation without a value has nothing to check.
        node = self.generic_visit(node)
        kinds = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
        ours = {node.lineno, node.end_lineno} & self.waiting if isinstance(node, kinds) else set()
        if not ours or node.value is None:
            return node

        # 2. Look at the value, or after `x += y` at the x that it left.
        line = ours.pop()
        self.waiting.remove(line)
        after = isinstance(node, ast.AugAssign)
        value = ast.parse(ast.unparse(node.target), mode="eval").body if after else node.value
        call = ast.Call(ast.Name("__shape_note__", ast.Load()), [ast.Constant(line), value], [])

        # 3. Put the look in place.
        if after:
            return [node, ast.copy_location(ast.Expr(call), node)]
        node.value = call
        return node


class Traced:
    """A module whose shape notes are compared with its arrays while `sizes` are set."""

    def __init__(self, path: str, source: str):
        remarks = [remark for remark in comments(source) if not remark.alone]
        self.notes = {r.line: f"{path}:{r.line} {r.text}" for r in remarks if re.match(r"# *\(", r.text)}
        self._shapes = {r.line: parse_note(r.text) for r in remarks if r.line in self.notes}
        self._reached, self._sizes = set(), None
        self.module = types.ModuleType(f"traced_{Path(path).stem}")

    @contextmanager
    def sizes(self, same: Iterable[str] = (), **sizes: int) -> Iterator[None]:
        """Check every note that is reached inside, with these sizes for its letters.

        Raises ValueError when two letters have one size and no word of `same` holds both.
        """
        # 1. Insist on different sizes, so that no two axes can be mistaken for each other.
        for one, other in combinations(sizes, 2):
            if sizes[one] == sizes[other] and not any(one in word and other in word for word in same):
                raise ValueError(f"{one} and {other} are both {sizes[one]}: choose different sizes")

        # 2. Check for as long as the block lasts, even when it ends in an error.
        self._sizes = sizes
        try:
            yield
        finally:
            self._sizes = None

    def unreached(self) -> list[str]:
        """Return `file:line note` for each note that no scenario has come by."""
        return [note for line, note in sorted(self.notes.items()) if line not in self._reached]

    def _record(self, line: int, value: Any) -> Any:
        """Compare a value with the note on its line, and hand it on."""
        # 1. Stay out of the way where no scenario runs.
        if self._sizes is None:
            return value
        self._reached.add(line)
        where, shapes = self.notes[line], self._shapes[line]

        # 2. Pair values and shapes. A generator must be emptied to be seen, so its values go on instead.
        value = tuple(value) if len(shapes) > 1 and not isinstance(value, (tuple, list)) else value
        values = value if len(shapes) > 1 else [value]
        if len(values) != len(shapes):
            raise AssertionError(f"{where}: the line has {len(values)} values, the note {len(shapes)} shapes")

        # 3. Compare each pair.
        for shape, one in zip(shapes, values, strict=True):
            said, real = self._evaluate(where, shape), tuple(getattr(one, "shape", [type(one)]))
            if real != said:
                raise AssertionError(f"{where}: the note says {said}, the value has {real}")
        return value

    def _evaluate(self, where: str, shape: ast.Tuple) -> tuple:
        """Return the numbers that a noted shape stands for now."""
        unknown = {node.id for node in ast.walk(shape) if isinstance(node, ast.Name)} - set(self._sizes)
        if unknown:
            raise AssertionError(f"{where}: the scenario gives no size for {', '.join(sorted(unknown))}")
        return eval(compile(ast.Expression(shape), where, "eval"), {"__builtins__": {}}, self._sizes)


def trace(path: str, same: Iterable[str] = (), **sizes: int) -> Traced:
    """Return a module under watch, loaded from its path in the repository.

    `sizes` and `same` hold while the module is loaded, for notes on its constants. Raises ValueError
    for a note that is not shapes alone or does not stand on an assignment or return.
    """
    # 1. Find the notes, and send their values through the recorder.
    source = (ROOT / path).read_text(encoding="utf-8")
    traced = Traced(path, source)
    recorder = _Recorder(traced.notes)
    tree = ast.fix_missing_locations(recorder.visit(ast.parse(source)))
    if recorder.waiting:
        raise ValueError(f"{path}:{min(recorder.waiting)}: a shape note stands on an assignment or a return")

    # 2. Load the rewritten module under a name of its own; the real one stays untouched.
    sys.modules[traced.module.__name__] = traced.module
    traced.module.__dict__.update(__file__=str(ROOT / path), __shape_note__=traced._record)
    with traced.sizes(same, **sizes) if sizes else nullcontext():
        exec(compile(tree, str(ROOT / path), "exec"), traced.module.__dict__)
    return traced

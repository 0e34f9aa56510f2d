"""Check that every statement is explained, each kind of sentence in its fixed place.

    python tools/annotations.py [FILE ...]     print what is wrong, exit with 1 if anything is

    docstring         opens the module and every class and function; not __init__ and its like, not inner ones
    # 1. Verb first   opens each paragraph of at most five statements, in a function that has more than five
    # (B, T, C)       shapes, and nothing else, stand at the end of a line of code
    # reason          stands above each group of statements outside of functions and classes

Nested statements count; an inner function with numbers of its own counts as one. What explains itself does
not count: docstrings, imports, super().__init__(), a raise (its message says why), `if __name__`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

# Started as a script, this file's own folder is searched for modules, not the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.source import ROOT, Comment, comments, first_line, lines_of, nested_definitions, parse_note, steps

# The modules that a reader reads, and the limits they keep.
MODULES = ("chapters/*.py", "corpora/*.py", "engine/*.py", "explanations/*.py", "fine-tuning/*.py", "main.py")
MAX_STATEMENTS, MAX_FUNCTION_LINES, MAX_FILE_LINES = 5, 50, 450
MIN_WORDS_PER_CODE = 0.6

# What is found, a line and what is wrong there; and what may have a docstring.
Problems = Iterator[tuple[int, str]]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def is_routine(node: ast.stmt) -> bool:
    """Return whether a statement explains itself, as a docstring, an import or a raise does."""
    words = isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
    starts = ("import ", "from ", "raise", "super().__init__(", "__all__ = ", "if __name__ == ")
    return words or ast.unparse(node).startswith(starts)


def counted_lines(function: ast.stmt, remarks: list[Comment]) -> list[int]:
    """Return the first lines of the statements that the paragraphs of a function must explain, in order."""
    numbered = [inner for inner in nested_definitions(function) if steps(inner, remarks)]
    apart = {node for inner in numbered for node in ast.walk(inner)} - set(numbered) | {function}
    every = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node not in apart]
    return sorted(first_line(node) for node in every if not is_routine(node))


def paragraph_problems(function: ast.stmt, remarks: list[Comment]) -> Problems:
    """Yield what is wrong with the numbered comments of one function."""
    # 1. Let a short function go without numbers.
    lines, found = counted_lines(function, remarks), steps(function, remarks)
    if not found:
        if len(lines) > MAX_STATEMENTS:
            yield function.lineno, f"{function.name} has {len(lines)} statements and no numbered comments"
        return

    # 2. Hold the numbers to 1, 2, 3 …: they are addresses. And let no statement escape before the first.
    numbers, starts = [number for number, _ in found], [line for _, line in found]
    if numbers != list(range(1, len(found) + 1)):
        yield starts[0], f"{function.name} numbers its comments {numbers}: count from 1 without gaps"
    if lines and lines[0] < starts[0]:
        yield lines[0], f"{function.name} has a statement before its first numbered comment"

    # 3. Count each paragraph.
    for start, stop in pairwise([*starts, function.end_lineno + 1]):
        if (size := sum(start < line < stop for line in lines)) > MAX_STATEMENTS:
            yield start, f"this numbered comment opens {size} statements, more than {MAX_STATEMENTS}"


def definition_problems(tree: ast.Module, remarks: list[Comment]) -> Problems:
    """Yield missing docstrings and what is wrong inside of functions."""
    # 1. Ask for docstrings wherever a reader may look a name up: not inside functions, not for __init__.
    inner = {node for f in ast.walk(tree) if isinstance(f, DEFINITIONS[:2]) for node in nested_definitions(f)}
    for node in (node for node in ast.walk(tree) if isinstance(node, DEFINITIONS)):
        if not (node in inner or node.name.startswith("__") or ast.get_docstring(node)):
            yield node.lineno, f"{node.name} has no docstring"

        # 2. Look into functions, the inner ones only if they number their own paragraphs.
        if not isinstance(node, ast.ClassDef) and (node not in inner or steps(node, remarks)):
            yield from paragraph_problems(node, remarks)
            start = node.body[0].end_lineno if ast.get_docstring(node) else first_line(node.body[0]) - 1
            if (length := node.end_lineno - start) > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, more than {MAX_FUNCTION_LINES}: split it"


def comment_problems(source: str, remarks: list[Comment], words: set[int]) -> Problems:
    """Yield comments at the end of a line that are no shape note, and labels among the words."""
    # 1. Keep the right-hand column to shapes. Marks for the linter are no words.
    for remark in remarks:
        if not remark.alone and not remark.text.startswith(("# noqa", "# type:")):
            try:
                parse_note(remark.text)
            except ValueError as error:
                yield remark.line, str(error)

    # 2. Refuse labels and leftovers: the place of a sentence says what kind it is.
    for number, line in enumerate(source.splitlines(), 1):
        if number in words and (label := re.search(r"\b(WHAT:|WHY:|TODO|FIXME|XXX)", line)):
            yield number, f"the label {label[0]} does not belong into a comment or docstring"


def module_problems(tree: ast.Module, remarks: list[Comment]) -> Problems:
    """Yield each group of statements outside of functions and classes that no comment stands above."""
    explained = {remark.line for remark in remarks if remark.alone}
    for node in (node for node in tree.body if not (isinstance(node, DEFINITIONS) or is_routine(node))):
        if node.lineno - 1 not in explained:
            yield node.lineno, "no comment stands above this statement or its group"
        explained.add(node.end_lineno)


def check(name: str, source: str) -> list[str]:
    """Return `file:line: what is wrong` for one module, top to bottom; an empty list: all is explained."""
    # 1. Tell lines of words from lines of code. An import is neither.
    tree, remarks = ast.parse(source), comments(source)
    filled = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()}
    owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, *DEFINITIONS))]
    docstrings = [node.body[0] for node in owners if node.body and ast.get_docstring(node)]
    words = lines_of(docstrings) & filled | {remark.line for remark in remarks if remark.alone}

    # 2. Apply the rules for each kind of sentence.
    found = [*definition_problems(tree, remarks), *module_problems(tree, remarks)]
    found += comment_problems(source, remarks, words)
    if filled and not ast.get_docstring(tree):
        found.append((1, "the module has no docstring"))

    # 3. Weigh words against code. A shape note counts as a line of words.
    imports = lines_of([node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))])
    spoken, code = len(words) + sum(not remark.alone for remark in remarks), len(filled - words - imports)
    if re.match(r"chapters/ch\d\d", name) and spoken < MIN_WORDS_PER_CODE * code:
        found.append((1, f"{spoken} lines of words on {code} of code: at least {MIN_WORDS_PER_CODE} to 1"))

    # 4. Measure the whole.
    if (length := source.count("\n")) > MAX_FILE_LINES:
        found.append((1, f"the file has {length} lines, more than {MAX_FILE_LINES}: split it"))
    return [f"{name}:{line}: {message}" for line, message in sorted(found)]


def main(names: list[str]) -> int:
    """Print the problems of the named modules, or of all; return 1 if there are any."""
    paths = [Path(name).resolve() for name in names] or [p for glob in MODULES for p in ROOT.glob(glob)]
    found = [p for path in sorted(paths) for p in check(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
    print("\n".join(found) or f"{len(paths)} modules are explained")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

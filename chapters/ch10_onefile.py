"""One file: the whole GPT of this book, with tokenizer, training and generation, to carry away.

    chapters/ch02 … ch10  ->  gpt.py, which runs alone in an empty folder

Nothing is written twice. The file is put together from the modules' own lines: it begins with what the last module,
`ch10_alone.py`, calls, goes on to what that calls, and so on, and leaves out the rest. Imports between chapters
disappear, because everything is in one place now, and a text that `corpora` would make is written down as it came out.

A name is followed wherever it stands, and a method is kept if anything calls something of its name. So it may keep a
little too much, and never too little.
"""

import ast
import dataclasses
import functools
import importlib
import pprint
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from chapters.ch02_writing import write_atomically

# Where the modules are, the module to begin with, and the methods that PyTorch calls under no name of ours.
ROOT = Path(__file__).resolve().parent.parent
ENTRY, CALLED_BY_PYTORCH = "chapters.ch10_alone", {"forward"}

# A definition: the module it is in, and its name there.
Place = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of the book, taken apart.

        lines        its text, line by line
        words        its docstring
        pieces       what it defines outside of functions and classes, by name
        links        names that it takes from other modules of the book, and where these are
        before       the modules of the book that it reads before anything else
        imports      names that it takes from libraries: (library, name there or None)
    """

    lines: list[str]
    words: ast.stmt
    pieces: dict[str, ast.stmt]
    links: dict[str, Place]
    before: list[str]
    imports: dict[str, tuple[str, str | None]]


@functools.cache
def read_module(name: str) -> Module:
    """Return a module of the book, such as "chapters.ch05_attention", taken apart.

    It is read and not run, and only once.
    """
    # 1. Find what it defines. One line may define several names.
    source = (ROOT / name.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    tree, pieces, links, imports = ast.parse(source), {}, {}, {}
    for node in tree.body:
        pieces |= dict.fromkeys(defined_by(node), node)

    # 2. Find what it takes from the book's other modules, also inside functions.
    for node in filter(is_ours, ast.walk(tree)):
        links |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    before = [node.module for node in filter(is_ours, tree.body)]

    # 3. Find what it takes from libraries. Their imports inside functions stay where they are.
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and not is_ours(node):
            library = getattr(node, "module", None)
            imports |= {a.asname or a.name: (library or a.name, library and a.name) for a in node.names}
    return Module(source.splitlines(), tree.body[0], pieces, links, before, imports)


def defined_by(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines: one for a function or class, some for an assignment.

    What it defines inside of itself is nobody else's business.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [name for target in targets if target for name in ast.walk(target)]
    return [name.id for name in names if isinstance(name, ast.Name) and name.id != "__all__"]


def is_ours(node: ast.AST) -> bool:
    """Return whether a statement imports from this book, and not from a library."""
    return isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("chapters", "corpora")


def kept(node: ast.stmt, called: set[str]) -> Iterator[ast.AST]:
    """Yield what stays of a definition: all of it, but of a class only the methods whose names are called.

    Methods with two underscores are called by Python itself.
    """
    # 1. Keep what is no class.
    if not isinstance(node, ast.ClassDef):
        yield node
        return

    # 2. Keep what makes the class what it is, then its fields and such methods.
    yield from [*node.decorator_list, *node.bases, *node.keywords]
    for part in node.body:
        if not isinstance(part, ast.FunctionDef) or part.name in called or part.name.startswith("__"):
            yield part


def is_data(module: Module, node: ast.stmt) -> bool:
    """Return whether a piece is a value that is made by `corpora`: it is written down, not made again."""
    ours = {name for name, (where, _) in module.links.items() if where.startswith("corpora")}
    used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return isinstance(node, ast.Assign) and bool(ours & used)


def follow(start: Place, called: set[str]) -> set[Place]:
    """Return all definitions that one needs, itself among them, where methods of these names are called.

    Raises ValueError where code would need `corpora`, which is data and does not come along.
    """
    # 1. Go from name to name. One that a module only passes on is looked for where it comes from.
    found, waiting = set[Place](), [start]
    while waiting:
        where, name = place = waiting.pop()
        if name in (module := read_module(where)).links:
            waiting.append(module.links[name])

        # 2. Leave out names of libraries and of variables inside of functions.
        elif name in module.pieces and place not in found:
            found.add(place)
            if where.startswith("corpora"):
                raise ValueError(f"{name} of {where} is used by code: make the data in a constant of {ENTRY}")

            # 3. Note what this piece needs in turn.
            if not is_data(module, node := module.pieces[name]):
                parts = [part for stays in kept(node, called) for part in ast.walk(stays)]
                waiting += [(where, part.id) for part in parts if isinstance(part, ast.Name)]
    return found


def needed() -> tuple[set[Place], set[str]]:
    """Return all definitions that the file must hold, and the names of the methods that are called in it.

    Each affects the other, so both are found again until nothing changes.
    """
    # 1. Begin with what is called from outside.
    called = set(CALLED_BY_PYTORCH)
    while True:
        found = follow((ENTRY, "main"), called)
        stay = [part for where, name in found for part in kept(read_module(where).pieces[name], called)]
        more = {part.attr for node in stay for part in ast.walk(node) if isinstance(part, ast.Attribute)}
        # 2. End when a round finds no new name.
        if more <= called:
            return found, called
        called |= more


def in_order(name: str = ENTRY) -> list[str]:
    """Return the names of a module and of all that it leans on, by chapter, each after those that it leans on."""
    before = [other for where in read_module(name).before for other in in_order(where)]
    return sorted(dict.fromkeys([*before, name]), key=lambda name: name[: len("chapters.ch00")])


def first_line(module: Module, node: ast.stmt) -> int:
    """Return the number, from 0 on, of the line where a piece begins, with what stands above it.

    Decorators and comments belong to what is below them.
    """
    line = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
    while module.lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line


def text_of(module: Module, node: ast.stmt, called: set[str]) -> str:
    """Return the lines of a piece as they stand in its module, without methods that nobody calls and our imports."""
    # 1. Find what goes.
    stays, gone = list(kept(node, called)), set[int]()
    dropped = [part for part in getattr(node, "body", []) if isinstance(node, ast.ClassDef) and part not in stays]
    dropped += [part for part in ast.walk(node) if is_ours(part)]
    for part in dropped:
        gone |= set(range(first_line(module, part), part.end_lineno))

    # 2. Copy the rest, and close the gaps.
    lines = [module.lines[i] for i in range(first_line(module, node), node.end_lineno) if i not in gone]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip()


def import_lines(taken: set[tuple[str, str | None, str]]) -> str:
    """Return the imports of a file in the usual order, from (library, name there, name here).

    Python's own come before those of libraries, whole ones before parts.
    """
    # 1. Gather what is taken out of each library; constants, classes and functions in this order.
    taken = sorted(taken, key=lambda row: (row[0], not row[2].isupper(), not row[2][0].isupper(), row[2]))
    lines = {f"import {library}" + (f" as {alias}" if alias != library else ""): library
             for library, name, alias in taken if name is None}
    for library in dict.fromkeys(library for library, name, _ in taken if name is not None):
        names = ", ".join(name for where, name, _ in taken if where == library and name is not None)
        lines[f"from {library} import {names}"] = library

    # 2. Write Python's own, an empty line, and the others.
    groups = ([line for line, library in lines.items() if (library.split(".")[0] in sys.stdlib_module_names) == own]
              for own in (True, False))
    return "\n\n".join("\n".join(group) for group in groups if group)


def installation(taken: set[tuple[str, str | None, str]]) -> str:
    """Return the command that installs the libraries of the file, in the versions of this book.

    The same versions, because another one may draw other random numbers.
    """
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    libraries = {library.split(".")[0] for library, *_ in taken} - sys.stdlib_module_names
    return "pip install " + " ".join(pin for pin in pins if pin.split("==")[0] in libraries)


def section(where: str, names: set[str], called: set[str]) -> str:
    """Return what the file takes from one module: its words, then its pieces in the order in which they stand."""
    # 1. Say where this is from, and what it is about.
    module = read_module(where)
    title = f"# {'─' * 10} {where.replace('.', '/')}.py {'─' * 10}"
    words = "\n".join(module.lines[module.words.lineno - 1 : module.words.end_lineno])

    # 2. Copy. A piece that defines two names is copied once, and data comes at the end of the file.
    nodes = {id(node): node for name in names if not is_data(module, node := module.pieces[name])}
    texts = [text_of(module, node, called) for node in sorted(nodes.values(), key=lambda node: node.lineno)]
    return "\n\n\n".join([f"{title}\n\n{words}" if where != ENTRY else title, *texts])


def libraries_of(found: set[Place], called: set[str]) -> set[tuple[str, str | None, str]]:
    """Return what these definitions take from libraries, as (library, name there or None, name here).

    Raises ValueError where one name means two things: what modules keep apart, one file would mix up.
    """
    # 1. Look which of its module's imports each definition uses.
    taken = set()
    for where, name in found:
        imports, stays = read_module(where).imports, kept(read_module(where).pieces[name], called)
        used = {part.id for node in stays for part in ast.walk(node) if isinstance(part, ast.Name)}
        taken |= {(*imports[name], name) for name in used & imports.keys()}

    # 2. Insist that each name is there once.
    names = [name for *_, name in taken] + [name for _, name in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} means two things in two modules: rename one")
    return taken


def assemble() -> str:
    """Return the text of the file: words, imports, a section for each module, and at its end the data and the start.

    Raises ValueError where two modules use one name for two things.
    """
    # 1. Find what is needed, module by module.
    found, called = needed()
    by_module = {where: {name for there, name in found if there == where} for where in in_order()}
    sections = [section(where, names, called) for where, names in by_module.items() if names]

    # 2. Say what the file is, as the last module does, and how to install what it takes from others.
    entry, taken = read_module(ENTRY), libraries_of(found, called)
    words = [*entry.lines[: entry.words.end_lineno - 1], "", f"    {installation(taken)}", '"""']
    head = "\n\n".join(["\n".join(words), import_lines(taken), ""])

    # 3. End with the data.
    data = [data_text(entry, name) for name in sorted(by_module[ENTRY]) if is_data(entry, entry.pieces[name])]

    # 4. Start the program last of all: now everything is defined.
    start = 'if __name__ == "__main__":\n    sys.exit(main())\n'
    return head + "\n\n\n".join([*sections, *data, start])


def data_text(module: Module, name: str) -> str:
    """Return a constant with its value written out, under the comment that stands above it in its module.

    The module is imported for it: what its line would give is what is written.
    """
    node = module.pieces[name]
    comments = module.lines[first_line(module, node) : node.lineno - 1]
    value = pprint.pformat(getattr(importlib.import_module(ENTRY), name), width=118 - len(f"{name} = "))
    return "\n".join([*comments, f"{name} = {value}"])


def write_onefile(path: Path) -> None:
    """Write the file to a new path.

    Raises ValueError where the path exists, and OSError where it cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists: name a new file for --out, nothing is overwritten")
    write_atomically(path, assemble())

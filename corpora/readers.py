"""Readers: whatever text `--data` names, as a stream of documents.

    python             the standard library of the Python that runs: its source and its help pages
    FILE               .jsonl, .parquet, or text with <|endoftext|> between its documents
    FOLDER, "GLOB"     all files in it, in the order of their names
    hf:NAME[:SPLIT]    a data set of the Hugging Face hub, read while it comes

A stream holds one document at a time, so a text may be larger than the memory. Nothing is guessed and nothing
is left out silently: what cannot be read ends in one line that says where.
"""

import codecs
import glob
import hashlib
import importlib
import io
import json
import os
import queue
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# The mark between documents in a text file, as GPT-2's authors wrote it.
END_OF_TEXT = "<|endoftext|>"

# Bytes read from a file at a time; and the length in characters from which a document comes in parts, and theirs. So
# a file without marks may be larger than the memory, and still there are parts enough to hold one in twenty out.
BLOCK_BYTES, LONGEST_DOCUMENT, PART_CHARACTERS = 1 << 20, 1 << 24, 1 << 18

# How many seconds to wait for the hub's first word. A download itself may take as long as it takes.
PATIENCE = 3.0

# Folders of the standard library that hold other people's packages, tests, or what is no source.
NOT_THE_LIBRARY = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data", "encodings",
}


class Source(NamedTuple):
    """Text that can be read from its start as often as needed, and a short text that changes when the source does."""

    read: Callable[[], Iterator[str]]
    identity: str


def fingerprint(*parts) -> str:
    """Return a text of 64 letters and digits that differs whenever the parts (texts, numbers, lists) do."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_source(data: str, text_field: str = "text") -> Source:
    """Return the text that `--data` names; `text_field` is the field of .jsonl, .parquet and hub data sets to read.

    Empty documents are left out. Raises ValueError, here or while it is read, naming the place and the rule.
    """
    # 1. Tell apart what comes from a library and from the hub; everything else is files. An empty name would be
    # the folder in which the reader happens to be.
    if not data:
        raise ValueError("--data is empty; give 'stories', 'python', a file, a folder, a quoted glob or hf:NAME")
    if data == "python":
        source = python_library()
    elif data.startswith("hf:"):
        source = hub_dataset(data, text_field)
    # 2. Find files now, so that a wrong name is noticed at once, and read them later.
    else:
        files = find_files(data)
        source = Source(lambda: read_files(files, text_field), fingerprint(text_field, stamps(files)))
    # 3. Drop what holds nothing but spaces: there is nothing to learn from it.
    return Source(lambda: (text for text in source.read() if text and not text.isspace()), source.identity)


def find_files(data: str) -> list[Path]:
    """Return the files that a path or a glob names: a file, everything in a folder, or all that match.

    Files in a folder come in the order of their names, hidden ones (.git, .DS_Store) not at all.
    Raises ValueError where there is none.
    """
    # 1. Look into folders.
    path = Path(data).expanduser()
    if path.is_dir():
        inside = (found.relative_to(path) for found in path.rglob("*") if found.is_file())
        files = [path / name for name in inside if not any(part.startswith(".") for part in name.parts)]
    # 2. Look for matches, unless a file has a star in its very name.
    elif glob.has_magic(data) and not path.exists():
        files = [found for found in map(Path, glob.glob(str(path), recursive=True)) if found.is_file()]
    else:
        files = [path]

    # 3. Say what is wrong in the words of the person who typed it.
    if not files or not files[0].exists():
        raise ValueError(f"--data {data}: no such file, folder or match; "
                         "give 'stories', 'python', a file, a folder, a quoted glob or hf:NAME")
    return sorted(files)


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return where each file is, how large, and when it was last written: another text has another stamp."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def read_files(files: Iterable[Path], text_field: str) -> Iterator[str]:
    """Yield the documents of several files, each read as its name's ending says.

    Raises ValueError naming the file that cannot be read.
    """
    # 1. Choose the reader of each file. Whatever has another ending is text.
    readers = {".jsonl": read_json_lines, ".parquet": read_parquet}
    for path in files:
        try:
            yield from readers.get(path.suffix.lower(), read_text)(path, text_field)
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise ValueError(f"--data {path}: {reason}; give a file that can be read") from error


def decoded(path: Path) -> Iterator[str]:
    """Yield the characters of a UTF-8 file, a block at a time, with line ends as one character.

    Raises ValueError naming the first byte that is no text.
    """
    # 1. Read blocks. A character may begin in one and end in the next: the decoder keeps the half.
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), io.IncrementalNewlineDecoder(None, translate=True)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK_BYTES), None):
            start = file.tell() - len(block)
            # 2. Recognise a picture or a program by its zeros, before it is blamed for its encoding.
            if (zero := block.find(0)) >= 0:
                raise ValueError(f"--data {path}: byte {start + zero} is NUL, so this is no text file; give text")

            # 3. Decode, and say where it fails, counted from the beginning of the file.
            kept = len(decoder.getstate()[0])
            try:
                yield lines.decode(decoder.decode(block, final=not block), final=not block)
            except UnicodeDecodeError as error:
                at = start - kept + error.start
                raise ValueError(f"--data {path}: byte {at} is not UTF-8 text; convert the file to UTF-8") from error
            # 4. Stop behind the last block, which is empty.
            if not block:
                return


def read_text(path: Path, text_field: str = "") -> Iterator[str]:
    """Yield the documents of a text file, which stand between <|endoftext|> marks; a file without is one document.

    A document above LONGEST_DOCUMENT characters comes in parts, cut where a paragraph ends.
    """
    # 1. Cut at the marks. The last piece may go on in the next block.
    rest, limit = "", LONGEST_DOCUMENT
    for piece in decoded(path):
        *whole, rest = (rest + piece).split(END_OF_TEXT)
        yield from (text.strip("\n") for text in whole)
        limit = LONGEST_DOCUMENT if whole else limit

        # 2. Hand over what is too long to wait for its end. Half a mark may stand at the end: it must stay whole.
        while len(rest) >= limit:
            paragraph = rest.rfind("\n\n", 0, PART_CHARACTERS)
            at = paragraph if paragraph > 0 else PART_CHARACTERS - len(END_OF_TEXT)
            yield rest[:at].strip("\n")
            rest, limit = rest[at:], PART_CHARACTERS
    # 3. Give the last one: the end of the file is a mark too.
    yield rest.strip("\n")


def read_json_lines(path: Path, text_field: str) -> Iterator[str]:
    """Yield one field of each line of a .jsonl file; empty lines are passed over.

    Raises ValueError naming the line that is no JSON, or that lacks the field.
    """
    # 1. Read line by line, with numbers as an editor shows them.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            # 2. Parse. The error's own line number would always be 1.
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", type(error).__name__)
                raise ValueError(f"--data {path}: line {number} is no JSON ({reason}); mend or remove it") from error
            yield text_of(row, text_field, f"{path}: line {number}")


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Yield one column of a .parquet file, some rows at a time; the other columns are not even read.

    Raises ValueError where the package `pyarrow` is missing, the file is damaged, or has no such column.
    """
    # 1. Load the reader only now: nobody else should need it.
    parquet = optional("pyarrow.parquet", "pyarrow", path)
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            if text_field not in table.schema_arrow.names:
                raise without_field(path, text_field, table.schema_arrow.names)
            # 2. Ask for few rows at a time. Some tables hold a whole book in each.
            for batch in table.iter_batches(batch_size=256, columns=[text_field]):
                yield from (text_of({text_field: text}, text_field, str(path)) for text in batch.column(0).to_pylist())
    except (importlib.import_module("pyarrow").ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--data {path}: not a parquet file that can be read ({reason}); get it again") from error


def hub_dataset(data: str, text_field: str) -> Source:
    """Return a data set of the Hugging Face hub, `hf:NAME` or `hf:NAME:SPLIT`, which is read while it comes.

    The split is "train" where none is named. The network is asked when the first document is read. The name stands
    for the content: a data set that was tokenized once is not tokenized anew because its authors changed it.
    """
    # 1. Take the name apart.
    name, _, split = data.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError("--data hf: names no data set; write hf:NAME or hf:NAME:SPLIT")

    # 2. Count the rows, so that a mistake in one can be found.
    def read() -> Iterator[str]:
        for number, row in enumerate(hub_rows(data, name, split or "train"), 1):
            yield text_of(row, text_field, f"{data}: row {number}")

    return Source(read, fingerprint("hf", name, split or "train", text_field))


def hub_rows(data: str, name: str, split: str) -> Iterator[dict]:
    """Yield the rows of a data set of the hub while they come.

    Raises ValueError where the package `datasets` is missing, or for whatever goes wrong on the way: much can.
    """
    # 1. Ask once whether it is there. Where there is no network, `datasets` would go on asking for a minute.
    datasets, hub = (optional(module, "datasets", data) for module in ("datasets", "huggingface_hub"))
    try:
        if not Path(name).is_dir():
            answer_in_time(lambda: hub.HfApi().dataset_info(name, timeout=PATIENCE), PATIENCE)

        # 2. Take what comes, and turn every kind of failure into one line.
        yield from datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"--data {data}: {reason}; check name, split and network, or give a file") from error


def answer_in_time(question: Callable[[], object], seconds: float) -> object:
    """Return what a question to the network is answered, or raise what it raises; TimeoutError where nothing comes.

    A library that waits without end, and tries five times, is right for a download and wrong for a question.
    The question is asked in a thread of its own: a hub that sends one letter a second never breaks a library's
    limit, and without a network some machines look for an address for longer than anybody waits.
    """
    # 1. Have whatever comes back laid on a table: an error that is raised in a thread reaches nobody outside of it.
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        """Put the answer, or the error in its place, on the table."""
        try:
            answers.put((question(), None))
        except Exception as error:
            answers.put((None, error))

    # 2. Wait for it, but not for long. The thread that still waits then ends with the program.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None

    # 3. Hand it over.
    if error is not None:
        raise error
    return answer


def python_library() -> Source:
    """Return the help pages and the source of the running Python's standard library, without its tests.

    It is real, large, on every reader's disk, and free to learn from.
    """
    # 1. Walk through the library, and do not even enter what is not part of it.
    files, root = [], sysconfig.get_paths()["stdlib"]
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - NOT_THE_LIBRARY
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise ValueError(f"--data python: this Python has no source in {root}; give a folder of text")

    # 2. Put the help pages first, so that the tokenizer, which sees the beginning, meets plain English too.
    def read() -> Iterator[str]:
        yield from help_pages().values()
        yield from read_files(sorted(files), "")

    return Source(read, fingerprint("python", sys.version, stamps(sorted(files))))


def help_pages() -> dict[str, str]:
    """Return the pages of Python's `help()` by their names; none where an installation has left them out."""
    try:
        return dict(sorted(importlib.import_module("pydoc_data.topics").topics.items()))
    except ImportError:
        return {}


def text_of(row: object, text_field: str, place: str) -> str:
    """Return the text that a row holds in a field; nothing where the field is null.

    Raises ValueError naming the place, when the row has no such field or something else than text in it.
    """
    # 1. Ask for a field, and for text in it.
    if not isinstance(row, dict) or text_field not in row:
        raise without_field(place, text_field, row if isinstance(row, dict) else [])
    text = "" if row[text_field] is None else row[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise ValueError(f"--data {place}: {text_field!r} is {kind}, not text; choose another --text-field")

    # 2. Refuse half a character, which JSON can spell and no file can hold.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"--data {place}: {text_field!r} holds {half}, half a character; mend or remove it") from error
    return text


def without_field(place: object, text_field: str, fields: Iterable[str]) -> ValueError:
    """Return the error that names the fields which are there instead."""
    there = ", ".join(map(repr, fields)) or "none at all"
    return ValueError(f"--data {place} has no field {text_field!r}; its fields: {there}; choose with --text-field")


def optional(module: str, package: str, what: object) -> ModuleType:
    """Return a module that only some readers need. Raises ValueError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--data {what}: needs the package {package}; type: pip install {package}") from error

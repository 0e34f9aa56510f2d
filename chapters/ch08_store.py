"""Tokens on disk: a text of any size is tokenized once, piece by piece, and read from files ever after.

    KEY/train.tokens        ids one after the other, two bytes each (four in a vocabulary above 65 536)
    KEY/train.ends          where each document ends, eight bytes each
    KEY/validation.*        the same of the held-out documents
    KEY/about.json          counts, number format and checksums

KEY is a hash of what decides the content: the data's identity and the tokenizer. Another file, another vocabulary
or a later edition gives another key, so that no run ever reads tokens that were made for a different one.

Training maps the files into memory: they look like arrays, and the system reads only the pages that a batch touches,
and lets go of them when it needs the room. That is why a text may be larger than the memory. The files are plain
numbers, smallest byte first; they may be deleted at any time, and the next run makes them again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch08_data import TokenRows
from corpora.documents import DUPLICATE, TRAIN, VALIDATION, Corpus, Document
from corpora.readers import fingerprint

# How much text is in memory at a time, and after how many seconds a half-written folder is taken for abandoned.
PIECE_CHARACTERS, ABANDONED_SECONDS = 1 << 23, 3600

# The arrays of each side. A change of what the files mean needs a new number, so that no old file is misread.
KINDS, FORMAT = ("tokens", "ends"), 2


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A tokenized corpus on disk; `about` is what its about.json says."""

    folder: Path
    about: dict

    @property
    def digest(self) -> str:
        """A text that is the same for the same tokens in the same order, however old the files are."""
        return fingerprint(self.about["checksums"])

    def rows(self, side: str, context: int) -> "StoredRows":
        """Return the rows of one side, "train" or "validation", for a model of this context."""
        return StoredRows(self, side, context)


class StoredRows(TokenRows):
    """The rows that `TokenRows` would hold in memory, read from disk as they are asked for.

    In memory are some 24 bytes for each row: its start, its length, its place in the shuffled order.
    """

    def __init__(self, store: TokenStore, side: str, context: int):
        # 1. Map the ids, and read the ends.
        tokens = np.memmap(store.folder / f"{side}.tokens", store.about["dtype"], mode="r")
        ends = np.fromfile(store.folder / f"{side}.ends", "<i8")
        self.num_bytes = store.about[side]["bytes"]
        self.cut(tokens, ends, context)


def check_text(data: str, corpus: Corpus, tokenizer: BPETokenizer, context: int) -> None:
    """Raise ValueError where the text to learn from does not fill a single row: most of each would be padding.

    Nothing has been written then, not even tokens. `data` is how the text was asked for, and `context` the tokens
    of a row.
    """
    # 1. Count the tokens as they would be stored, but no more of them than are needed to know.
    texts = (document.text for document in corpus.documents() if document.side == TRAIN)
    tokens = (token for text in texts for token in chain(tokenizer.encode_iterable([text]), [tokenizer.eot_id]))
    there = sum(1 for _ in islice(tokens, context))

    # 2. Name both numbers: one of them has to change.
    if there < context:
        raise ValueError(f"--data {data}: {there} tokens to learn from do not fill one context of {context}; "
                         "give more text, or a smaller --max-seq-len")


def open_store(cache: Path, corpus: Corpus, tokenizer: BPETokenizer) -> TokenStore:
    """Return the tokens of a corpus, from `cache` if they are there and whole, else tokenized now and kept there.

    Raises ValueError where the text cannot be read or the files not be written; then nothing is left behind.
    """
    # 1. Name what decides the content.
    parts = [sorted((number, token.hex()) for number, token in tokenizer.vocab.items()),
             [(left.hex(), right.hex()) for left, right in tokenizer.merges], tokenizer.pattern]
    key = fingerprint(FORMAT, corpus.identity, parts)
    folder = cache / key[:16]

    # 2. Take what is there if every byte of it is what was written, and else make it. Reading a gigabyte to be
    # sure takes a second or two; training for a day on a damaged file takes a day.
    about = intact(folder, key)
    if about is None:
        build(folder, key, corpus, tokenizer)
        about = intact(folder, key)
    # 3. Never train on what cannot be read back.
    if about is None:
        raise ValueError(f"{folder}: what was written cannot be read back; check the disk")
    return TokenStore(folder, about)


def intact(folder: Path, key: str) -> dict | None:
    """Return what about.json says, or None where the files are missing, damaged, or of other data.

    A file cut short by a full disk has another checksum, and so has one that a stranger has put there; about.json
    has one of itself. The key is in it as well as in the folder's name, of which it is only the first part.
    """
    # 1. Sum up what is there, and compare it with what was written. What is no about.json at all has no sums.
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        sums = {name: checksum(folder / name) for name in file_names()}
        same = about.pop("own") == fingerprint(about) and (about["key"], about["checksums"]) == (key, sums)
        return about if same else None

    # 2. Take whatever goes wrong for a reason to make the files again.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def file_names() -> list[str]:
    """Return the names of the four arrays."""
    return [f"{side}.{kind}" for side in (TRAIN, VALIDATION) for kind in KINDS]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in 64 letters and digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(folder: Path, key: str, corpus: Corpus, tokenizer: BPETokenizer) -> None:
    """Tokenize a corpus into `folder`, which appears only when it is complete.

    Raises ValueError where the text cannot be read, or the disk is full; then nothing is left behind.
    """
    # 1. Make room for it.
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent)
        # 2. Write beside the place where it will be, in a folder that is gone afterwards, whatever happens.
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as made:
            partial = Path(made, "whole")
            partial.mkdir()
            write(partial, key, corpus, tokenizer)

            # 3. Put it in place in one step, unless another run was faster.
            if intact(folder, key) is None:
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot write the tokens ({error.strerror}); make room or mend it") from error


def remove_abandoned(cache: Path) -> None:
    """Delete half-written folders that nobody has touched for long: their run was killed, and cannot do it."""
    for partial in cache.glob("*.*"):
        # A folder that vanishes meanwhile was not abandoned: its run has just finished.
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in [partial, *partial.rglob("*")])
            if newest < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def write(folder: Path, key: str, corpus: Corpus, tokenizer: BPETokenizer) -> None:
    """Write the five files of a corpus, piece by piece, and wait until the disk has them.

    What is in memory at a time is one piece of text with its tokens, however large the corpus. A document is
    never cut: a piece grows until it holds the last one whole.
    """
    # 1. Open a writer for each side. Long work shows a bar, short work none.
    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(SideWriter(folder, side, tokenizer)) for side in (TRAIN, VALIDATION)}
        bar = stack.enter_context(tqdm(unit="B", unit_scale=True, desc="tokenizing", delay=2, leave=False))
        duplicates = 0
        # 2. Sort each piece by side, and tokenize it in bulk.
        for piece in pieces(corpus.documents()):
            for side, writer in sides.items():
                writer.add([document.text for document in piece if document.side == side])
            duplicates += sum(document.side == DUPLICATE for document in piece)
            bar.update(sum(writer.counts["bytes"] for writer in sides.values()) - bar.n)

    # 3. Say what there is.
    checksums = {f"{side}.{kind}": writer.sums[kind].hexdigest() for side, writer in sides.items() for kind in KINDS}
    about = {"key": key, "dtype": sides[TRAIN].dtype, "duplicates": duplicates, "checksums": checksums}
    about |= {side: writer.counts for side, writer in sides.items()}

    # 4. Write it down, last of all.
    with open(folder / "about.json", "w", encoding="utf-8") as file:
        json.dump(about | {"own": fingerprint(about)}, file, indent=2)
        flush(file)


def pieces(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield the documents in lists of about PIECE_CHARACTERS characters.

    Smaller pieces would leave processor cores idle, larger ones only fill the memory.
    """
    # 1. Gather until there is enough for all processor cores.
    piece, size = [], 0
    for document in documents:
        piece.append(document)
        size += len(document.text)
        # 2. Hand over, and begin anew.
        if size >= PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
    # 3. Hand over the rest.
    yield piece


class SideWriter:
    """Appends the tokens of documents to the files of one side, and keeps count and checksums while it writes.

    Used in a `with` statement, at whose end the disk has everything. `counts` holds the documents, their tokens
    (with each one's end token) and the bytes of their text; `sums` holds a checksum for each file.
    """

    def __init__(self, folder: Path, side: str, tokenizer: BPETokenizer):
        # 1. Fix the order of the bytes in a number, so that another kind of processor reads the same. Two bytes hold
        # ids up to 65 535.
        self.tokenizer, self.counts = tokenizer, {"documents": 0, "tokens": 0, "bytes": 0}
        self.dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        self.sums = {kind: hashlib.sha256() for kind in KINDS}
        self.files = {kind: open(folder / f"{side}.{kind}", "wb") for kind in KINDS}
        # 2. Begin with an end token: so every document has one in front of it.
        self._append("tokens", np.full(1, tokenizer.eot_id))

    def __enter__(self) -> "SideWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in self.files.values():
            with file:
                flush(file)

    def add(self, texts: list[str]) -> None:
        """Tokenize and append these documents. The files grow, the memory does not."""
        # 1. Count ends from the beginning of the file, not of the piece.
        ids, ends = self.tokenizer.encode_documents(texts)
        self._append("tokens", ids)
        self._append("ends", ends + self.counts["tokens"])

        # 2. Keep count.
        added = {"documents": len(texts), "tokens": len(ids), "bytes": sum(len(text.encode()) for text in texts)}
        self.counts = {name: self.counts[name] + number for name, number in added.items()}

    def _append(self, kind: str, numbers: np.ndarray) -> None:
        """Write numbers to one of the files."""
        data = numbers.astype(self.dtype if kind == "tokens" else "<i8").tobytes()
        self.sums[kind].update(data)
        self.files[kind].write(data)


def flush(file) -> None:
    """Wait until the disk has everything that was written."""
    file.flush()
    os.fsync(file.fileno())

"""Documents: what is learnt from, and what is held out for the examination.

A model that has seen the examination has not shown that it learnt anything. So whole documents are set aside, one
in twenty, chosen by a hash of their text:

    lot(text) = the first 8 bytes of SHA-256(text), a number      held out if lot(text) < 2^64 / 20

Nobody can tell beforehand which ones it takes; it takes the same ones each time, and a document that occurs twice
lies on one side only. A corpus is a stream that can be read again: it never has to fit into memory.
"""

import dataclasses
import hashlib
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from corpora import stories
from corpora.readers import fingerprint, open_source

# The sides a document can be on. A duplicate is on none: cleaning has found that it was there before.
TRAIN, VALIDATION, DUPLICATE = "train", "validation", "duplicate"

# Lots below this one are held out, about one in twenty.
HELD_OUT_LOTS = 2**64 // 20


class Document(NamedTuple):
    """A text, and the side it is on."""

    text: str
    side: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A stream of documents on two sides.

    name        short, for the name of a run
    documents   call it to read all of them from the start, again and again if need be
    identity    a text that changes when the data does
    floor       the lowest bits per byte that any model can reach on the held-out ones, where it is known
    """

    name: str
    documents: Callable[[], Iterator[Document]]
    identity: str
    floor: float | None = None

    @property
    def train(self) -> list[str]:
        """All texts to learn from, in memory: for small corpora."""
        return [document.text for document in self.documents() if document.side == TRAIN]

    @property
    def validation(self) -> list[str]:
        """All held-out texts, in memory: for small corpora."""
        return [document.text for document in self.documents() if document.side == VALIDATION]

    def beginning(self, num_characters: int) -> list[str]:
        """Return the first texts to learn from, until they have this many characters; the rest is not read."""
        # 1. Take them as they come, each whole.
        texts, size = [], 0
        for text in (document.text for document in self.documents() if document.side == TRAIN):
            texts.append(text)
            size += len(text)
            # 2. Stop reading when there is enough: the rest may be larger than the memory.
            if size >= num_characters:
                break
        return texts


def load_corpus(data: str, seed: int = 0, text_field: str = "text", clean: bool = False) -> Corpus:
    """Return the corpus that `--data` names: "stories", or whatever `corpora/readers.py` can read.

    `clean` drops documents that are exact copies of earlier ones; without it they count each time they occur.
    Raises ValueError, naming the place and the rule, when there is no such text, now or while it is read.
    """
    # 1. Tell stories, or read.
    if data == "stories":
        return load_stories(seed)
    source = open_source(data, text_field)
    highest_lot, single = survey(source.read, data)

    # 2. Cut a single document in two: there is no other to hold out, for a copy would give the answers away.
    if single is not None:
        start, end = cut_at_paragraph(single)
        if not start or not end:
            raise ValueError(f"--data {data}: {len(single)} letters are too few to learn from and hold out; give more")
        halves = [Document(start, TRAIN), Document(end, VALIDATION)]
        return Corpus(short_name(data), lambda: iter(halves), fingerprint(source.identity, "cut"))

    # 3. Of several, let the lots decide.
    return Corpus(short_name(data), lambda: share_out(source.read(), highest_lot, clean),
                  fingerprint(source.identity, highest_lot, clean))


def load_stories(seed: int = 0, num_train: int = 20000, num_validation: int = 1000) -> Corpus:
    """Return stories told by the grammar of `corpora/stories.py`, with the floor of the held-out ones.

    The stories are drawn independently; a held-out story that was also drawn for training is left out.
    """
    # 1. Draw both sets from dice of their own, and keep the examination unseen.
    train = stories.generate(num_train, seed=2 * seed)
    seen = set(train)
    validation = [story for story in stories.generate(num_validation, seed=2 * seed + 1) if story not in seen]

    # 2. Stream them like any other text.
    documents = [Document(story, TRAIN) for story in train] + [Document(story, VALIDATION) for story in validation]
    floor = stories.floor_bits_per_byte(validation)
    return Corpus("stories", lambda: iter(documents), fingerprint(documents), floor)


def lot(text: str) -> int:
    """Return the number that a text draws, from 0 up to 2^64; equal texts draw the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def survey(read: Callable[[], Iterator[str]], data: str) -> tuple[int, str | None]:
    """Return the highest lot that is held out, and the text of the only document if there is but one.

    As a rule twenty documents are read and no more: as soon as the lots have put one on each side, the usual share
    is right. Raises ValueError where there is no text at all.
    """
    # 1. Read until both sides have a document.
    lots, text = set(), None
    for text in read():
        lots.add(lot(text))
        if min(lots) < HELD_OUT_LOTS <= max(lots):
            return HELD_OUT_LOTS - 1, None

    # 2. Of a few documents the lots may choose none, or all. Then the one with the smallest is held out.
    if not lots:
        raise ValueError(f"--data {data}: holds no text; give a text to learn from")
    return min(lots), text if len(lots) == 1 else None


def share_out(texts: Iterator[str], highest_lot: int, clean: bool) -> Iterator[Document]:
    """Yield the texts with their sides: held out up to this lot, else to learn from, or found to be a copy."""
    # 1. Draw a lot for each.
    seen = Seen()
    for text in texts:
        number = lot(text)
        # 2. Clean by remembering all lots; equal texts draw the same one.
        if clean and not seen.add(number):
            yield Document(text, DUPLICATE)
        else:
            yield Document(text, VALIDATION if number <= highest_lot else TRAIN)


class Seen:
    """Remembers which numbers from 0 up to 2^64 it was shown, in 12 to 24 bytes each; a `set` takes several times that.

    A table of places: each number lies at the place that its last bits name, or in the next free one behind it.
    Two different texts with equal lots are taken for copies: among ten million, once in 370 000 corpora.
    """

    def __init__(self):
        self.places, self.count = array("Q", bytes(8 << 10)), 0

    def add(self, number: int) -> bool:
        """Remember a number, and return whether it is new."""
        # 1. Keep a third of the places free, or the search for one would become long. Zero marks a free one.
        if 3 * self.count >= 2 * len(self.places):
            self._grow()
        number, places, last = number or 1, self.places, len(self.places) - 1

        # 2. Look from the named place on until the number or a free place is met.
        at = number & last
        while places[at] and places[at] != number:
            at = (at + 1) & last

        # 3. Write it there. If it stood there before, nothing changes.
        new = not places[at]
        places[at] = number
        self.count += new
        return new

    def _grow(self) -> None:
        """Move to a table of twice the size."""
        old, self.places, self.count = self.places, array("Q", bytes(16 * len(self.places))), 0
        for number in filter(None, old):
            self.add(number)


def cut_at_paragraph(text: str) -> list[str]:
    """Return the first nine tenths of a text and the rest, cut at a paragraph so that no sentence is torn."""
    at = text.find("\n\n", len(text) * 9 // 10)
    at = at if at > 0 else len(text) * 9 // 10
    return [text[:at], text[at:].lstrip("\n")]


def short_name(data: str) -> str:
    """Return a name for what `--data` names, of letters, digits and dashes: the last part of it that has any."""
    parts = [re.sub(r"\W+", "-", Path(part).stem).strip("-") for part in Path(data).parts]
    return next(filter(None, reversed(parts)), "text")

"""Reading text to learn from: documents in, two lists out, one to train on and one to be examined on.

A model that has seen the examination has not shown that it learnt anything. So whole documents are set aside,
and a document that occurs twice lies on one side only.
"""

import dataclasses
import hashlib
from pathlib import Path

from corpora import stories

# The mark between documents in a text file, as GPT-2's authors wrote it.
END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts to train on and held-out texts; `floor` is the lowest bits per byte any model can reach, where known."""

    name: str
    train: list[str]
    validation: list[str]
    floor: float | None = None


def load_corpus(data: str, seed: int = 0) -> Corpus:
    """Return the corpus that `--data` names: "stories", or the path of a text file.

    Raises ValueError, naming the file and the rule, when there is no such text.
    """
    return load_stories(seed) if data == "stories" else load_file(Path(data))


def load_stories(seed: int = 0, num_train: int = 20000, num_validation: int = 1000) -> Corpus:
    """Return stories told by the grammar of `corpora/stories.py`, with the floor of the held-out ones.

    The stories are drawn independently; a held-out story that was also drawn for training is left out.
    """
    # 1. Draw both sets from dice of their own, and keep the examination unseen.
    train = stories.generate(num_train, seed=2 * seed)
    seen = set(train)
    validation = [story for story in stories.generate(num_validation, seed=2 * seed + 1) if story not in seen]
    return Corpus("stories", train, validation, stories.floor_bits_per_byte(validation))


def load_file(path: Path) -> Corpus:
    """Return the documents of a UTF-8 text file, about one in twenty held out.

    Documents are separated by <|endoftext|>. A file without it is one long document: its last tenth, from the
    next paragraph on, is held out.
    """
    # 1. Read, and say what is wrong in the words of the person who typed the path.
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--data {path}: {error.strerror}; give 'stories' or the path of a text file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {path}: byte {error.start} is not UTF-8 text; convert the file to UTF-8") from error

    # 2. Cut into documents, and share them out by a hash, so that equal documents go the same way.
    documents = [part.strip("\n") for part in text.split(END_OF_TEXT) if part.strip()]
    if len(documents) == 1:
        documents = cut_at_paragraph(documents[0])
        held_out = set(documents[1:])
    else:
        # 3. Of a few documents the hash may choose none; then the one with the smallest is held out.
        lots = {document: hashlib.sha256(document.encode()).digest() for document in documents}
        held_out = {d for d in lots if lots[d][0] < 256 // 20} or set(sorted(lots, key=lots.get)[:1])
    train = [document for document in documents if document not in held_out]
    validation = [document for document in documents if document in held_out]

    # 4. Refuse an empty side: a loss over nothing would look perfect.
    if not "".join(train) or not "".join(validation):
        raise ValueError(f"--data {path}: {len(text)} letters are too few to train on and hold some out; give more")
    return Corpus(path.stem, train, validation)


def cut_at_paragraph(text: str) -> list[str]:
    """Return the first nine tenths of a text and the rest, cut at a paragraph so that no sentence is torn."""
    at = text.find("\n\n", len(text) * 9 // 10)
    at = at if at > 0 else len(text) * 9 // 10
    return [text[:at], text[at:].lstrip("\n")]

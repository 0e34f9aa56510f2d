"""Tokenization: text in, whole numbers out, and back again without losing a letter.

A model reads numbers. One number per letter makes texts long; one number per word fails at the first word
that is new. Byte-pair encoding stands between them: it starts from the 256 possible bytes, which can write
any text, and glues together what often stands together. Words that are met often become one *token*, rare
ones a few, and no text is ever unknown:

    "unbelievably"  ->  un|bel|iev|ably  ->  [403, 6667, 11203, 1346]        in GPT-2's vocabulary

Three steps, each in a module of its own: `ch02_splitting` cuts a text into words, `ch02_merges` learns what
to glue inside them, and `BPETokenizer` here does the work of every day: encode, decode, save, load
(`ch02_files`). This is the first station of the journey; chapter 3 turns the numbers into vectors.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import tiktoken

from chapters.ch02_files import Parts, read_tiktoken, read_tokenizer_json, write_tokenizer_json
from chapters.ch02_merges import Pair, apply_merges, apply_merges_singly, learn_merges
from chapters.ch02_splitting import GPT2_PATTERN, WordSplitter

# The mark between two documents. Its name is GPT-2's, and tools look for it.
END_OF_TEXT = "<|endoftext|>"

# How many words are remembered with their ids. A text repeats its words, so most are only looked up.
CACHE_WORDS = 1 << 17

# From this length on, replaying all merges once beats looking for the best pair again and again.
LONG_WORD_BYTES = 256

# How much text one thread encodes at a time; and how long a stretch without a sure cut may be before tiktoken
# is not trusted with it, since a million spaces in a row crash it.
BATCH_CHARACTERS, UNSAFE_CHARACTERS = 1 << 18, 1 << 19


class BPETokenizer:
    """Turns any text into token ids and back, with a vocabulary learned from text or read from a file.

    vocab: id -> bytes, all 256 single bytes among them. merges: pairs of byte strings in the order learned.
    special_tokens: text -> id of marks such as <|endoftext|>, which stand for no text. pattern: where words
    are cut. The others are for files from elsewhere; `Parts` in `ch02_files` says what they mean.
    Afterwards `vocab` covers every id, special tokens too; `start_ids` stand before every text that a model is
    to continue, and at one of `stop_ids` it has ended.
    Raises ValueError where these do not fit together.
    """

    def __init__(
        self,
        vocab: dict[int, bytes],
        merges: list[Pair],
        special_tokens: dict[str, int] | None = None,
        pattern: str = GPT2_PATTERN,
        compose: bool = False,
        ignore_merges: bool = True,
        start_ids: list[int] | None = None,
    ):
        # 1. Keep the parts. Special tokens are listed by their text, and never come from merges.
        self.special_tokens, self.pattern, self.merges = dict(special_tokens or {}), pattern, list(merges)
        specials = {number: name.encode() for name, number in self.special_tokens.items()}
        ordinary = {number: token for number, token in vocab.items() if number not in specials}
        self.vocab, self._compose, self._ignore_merges = ordinary | specials, compose, ignore_merges

        # 2. Begin a text and end it with the same mark, unless a file says what its texts begin with.
        self.stop_ids = [] if self.eot_id is None else [self.eot_id]
        self.start_ids, self._template = self.stop_ids if start_ids is None else start_ids, start_ids

        # 3. Turn them round for encoding: bytes to id, and pair to the time when it was learned.
        self._ids = {token: number for number, token in ordinary.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        if len(self._ids) < len(ordinary) or len(specials) < len(self.special_tokens):
            raise ValueError("two tokens have the same id, or two ids the same bytes: give each token one id")
        self._in_order = self._check_merges()

        # 4. Prepare the cutting and the memory for words.
        self._splitter = WordSplitter(pattern, self.special_tokens)
        self._cache: dict[str, list[int]] = {}

    def _check_merges(self) -> bool:
        """Return whether each merge joins older tokens to a new one, as training leaves them.

        Raises ValueError where the merges cannot make exactly the tokens of the vocabulary.
        """
        # 1. Demand all bytes: without one, some text could not be written, and tiktoken would crash.
        known, in_order = {bytes([byte]) for byte in range(256)}, True
        if missing := known - self._ids.keys():
            raise ValueError(f"the vocabulary lacks {len(missing)} of the 256 bytes, first {min(missing)!r}")

        # 2. Demand that each merge joins tokens to a token. Files may list them in any order, and a token twice.
        for left, right in self.merges:
            if not (left in self._ids and right in self._ids and left + right in self._ids):
                raise ValueError(f"merge {left!r} + {right!r} has an unknown part")
            in_order = in_order and left in known and right in known and left + right not in known
            known.add(left + right)

        # 3. Demand that each token is made.
        if unmade := self._ids.keys() - known:
            raise ValueError(f"{len(unmade)} tokens are made by no merge, such as {min(unmade)!r}")
        return in_order

    @property
    def vocab_size(self) -> int:
        """How many rows a model needs for these tokens: the largest id plus one."""
        return max(self.vocab) + 1

    @property
    def eot_id(self) -> int | None:
        """The id of <|endoftext|>, which stands between documents; None where the vocabulary has none."""
        return self.special_tokens.get(END_OF_TEXT)

    @classmethod
    def train(
        cls,
        text: str | Iterable[str],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """Return a tokenizer whose merges were learned from a text, or from documents one after another.

        Ids: 0 to 255 are the bytes, then come the merges as learned, then the special tokens. Special tokens
        that stand in the text are boundaries, not content. A short text may run out of pairs; then the
        vocabulary stays smaller than asked for.
        Raises ValueError for a size without room for the 256 bytes and the special tokens.
        """
        # 1. Refuse a size without room for the bytes. They make every text writable.
        names = list(dict.fromkeys(special_tokens))
        if vocab_size < 256 + len(names):
            least = f"{256 + len(names)} or more, for the 256 bytes and the special tokens"
            raise ValueError(f"vocab_size {vocab_size} is too small: choose {least}")

        # 2. Count words. All later work is done once per different word, not once per word of the text.
        splitter, word_counts = WordSplitter(pattern, names), Counter()
        for document in [text] if isinstance(text, str) else text:
            for block in splitter.blocks([document], allow_special=True):
                plain = (part for part, is_special in splitter.parts(block, True) if not is_special)
                word_counts.update(chain.from_iterable(map(splitter.words, plain)))

        # 3. Learn the merges, and number the tokens.
        data_counts = {_to_bytes(word): count for word, count in word_counts.items()}
        merges = learn_merges(data_counts, vocab_size - 256 - len(names))
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        specials = {name: len(tokens) + i for i, name in enumerate(names)}
        return cls(dict(enumerate(tokens)), merges, specials, pattern)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text; `decode` gives the very same text back.

        With `allow_special`, special tokens written in the text become their ids. Without, they are text
        like any other: nothing that a user types can end a document. A file may ask to join accents to their
        letters first, as Qwen's do; then the text comes back so joined.
        Raises ValueError for a lone surrogate, half a character that no bytes can hold.
        """
        return list(self.encode_iterable([text], allow_special))

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool = False) -> Iterator[int]:
        """Yield the token ids of the joined chunks, holding only a small piece of the text at a time.

        Chunks may be cut anywhere, inside a word or a special token: the ids are those of the whole.
        Memory grows only with the longest stretch that has no sure cut, such as one endless word.
        """
        for block in self._splitter.blocks(chunks, allow_special):
            for part, is_special in self._splitter.parts(block, allow_special):
                yield from [self.special_tokens[part]] if is_special else self._encode_ordinary(part)

    def _normal(self, text: str) -> str:
        """Return the text as it is encoded: with accents joined to their letters, if the file asks for it.

        A block may be treated alone, because no accent stands where blocks are cut. Python knows a few dozen
        accents of rare scripts that the `tokenizers` library does not; two in a row may be put in another order.
        """
        return unicodedata.normalize("NFC", text) if self._compose else text

    def _encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special, word by word."""
        ids: list[int] = []
        for word in self._splitter.words(self._normal(text)):
            ids += self._cache.get(word) or self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word, and remember them if it is short enough to come again."""
        # 1. Take a word that is a token at once, as tiktoken does; replay the merges on an endless one.
        data = _to_bytes(word)
        if self._ignore_merges and data in self._ids:
            ids = [self._ids[data]]
        elif self._in_order and len(data) > LONG_WORD_BYTES:
            return self._encode_long_word(data)

        # 2. Glue all others by the book.
        else:
            glued = apply_merges(data, self._ranks) if self._in_order else apply_merges_singly(data, self._ranks)
            ids = [self._ids[token] for token in glued]

        # 3. Forget everything when the memory is full: a stream of random words must not grow without end.
        if len(self._cache) >= CACHE_WORDS:
            self._cache.clear()
        if len(data) <= LONG_WORD_BYTES:
            self._cache[word] = ids
        return ids

    def _encode_long_word(self, data: bytes) -> list[int]:
        """Return the ids of an endless word by replaying all merges on it, each one a single replacement.

        The parts of a merge are older than the merge, so going through the list once, in order, is enough.
        """
        # 1. Write one character per token, as training does, so that `str.replace` glues.
        letters = {bytes([byte]): chr(byte) for byte in range(256)}
        text = data.decode("latin-1")
        for rank, (left, right) in enumerate(self.merges):
            letter = letters.setdefault(left + right, chr(256 + rank))
            text = text.replace(letters[left] + letters[right], letter)
        # 2. Read the characters back as ids.
        ids = {letter: self._ids[token] for token, letter in letters.items()}
        return [ids[letter] for letter in text]

    def encode_documents(self, documents: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all documents in one array, each closed by <|endoftext|>, and where each ends.

        The bulk way, with tiktoken and all processor cores. What looks like a special token stays text.
        An end is the place behind a document's <|endoftext|>, so document i is ids[ends[i - 1] : ends[i]].

        Shapes: -> ids (T,) of uint16, or of uint32 for a vocabulary above 65 536; ends (documents,) of int64.
        Raises ValueError for a lone surrogate, or where the vocabulary has no <|endoftext|>.
        """
        # 1. Demand the mark, or two documents would run into each other.
        if self.eot_id is None:
            raise ValueError(f"the vocabulary has no {END_OF_TEXT} for a document's end: train it with one")
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

        # 2. Encode batches side by side. tiktoken works outside Python, so threads really share the work.
        encoding = self.to_tiktoken()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            batches = pool.map(lambda batch: self._encode_batch(batch, encoding), self._batches(documents))
            ids = np.concatenate([batch.astype(dtype) for batch in batches])
        return ids, np.flatnonzero(ids == self.eot_id) + 1

    def _batches(self, documents: Iterable[str]) -> Iterator[list[str | None]]:
        """Yield lists of blocks of text, about BATCH_CHARACTERS together, with None where a document ends.

        Long documents come in several blocks, so that one huge file keeps all threads busy too.
        """
        # 1. Cut each document into blocks. Many short ones make a batch, which saves handing over each alone.
        batch, size = list[str | None](), 0
        for document in documents:
            for block in chain(self._splitter.blocks([document], allow_special=False), [None]):
                batch.append(block)
                size += len(block or END_OF_TEXT)
                # 2. Hand over what is full.
                if size >= BATCH_CHARACTERS:
                    yield batch
                    batch, size = [], 0
        # 3. Hand over the rest.
        yield batch

    def _encode_batch(self, batch: list[str | None], encoding: tiktoken.Encoding) -> np.ndarray:
        """Return the ids of a batch (T,): by tiktoken in one go, by hand where tiktoken could go wrong."""
        # 1. Join the blocks, with the mark where a document ends.
        text = "".join(END_OF_TEXT if block is None else self._normal(block) for block in batch)
        _to_bytes(text)
        # 2. Trust the marks only if all are ours: a document that spells one out does not end there.
        longest = max((len(block or "") for block in batch), default=0)
        if text.count(END_OF_TEXT) == batch.count(None) and longest <= UNSAFE_CHARACTERS:
            return encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        # 3. Else go block by block, which is slower and always right.
        ids = [[self.eot_id] if block is None else self._encode_ordinary(block) for block in batch]
        return np.fromiter(chain.from_iterable(ids), np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of these tokens. One character may be spread over several of them.

        Raises ValueError for an id that the vocabulary does not have.
        """
        try:
            return b"".join([self.vocab[int(number)] for number in ids])
        except KeyError as error:
            raise ValueError(f"token id {error} is unknown: ids go from 0 to {self.vocab_size - 1}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids.

        Bytes that are no character, such as half an emoji, become U+FFFD, the replacement mark.
        Raises ValueError for an id that the vocabulary does not have.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: str | os.PathLike) -> Path:
        """Write a Hugging Face `tokenizer.json` into a folder, or to a path that ends in .json.

        A folder also gets a `tokenizer_config.json`, so that `AutoTokenizer.from_pretrained` opens it.
        Returns the path of the `tokenizer.json`.
        """
        names = self.special_tokens, self.pattern, self._compose, self._ignore_merges, self._template
        return write_tokenizer_json(Path(path), Parts(self.vocab, self.merges, *names))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPETokenizer":
        """Return the tokenizer that a `tokenizer.json`, or the one in a folder, describes.

        Raises FileNotFoundError where there is none, and ValueError in one line where the file is damaged
        or describes another kind of tokenizer.
        """
        parts = read_tokenizer_json(Path(path))
        try:
            return cls(**vars(parts))
        except ValueError as error:
            raise ValueError(f"the tokenizer in {path} does not fit together: {error}") from None

    @classmethod
    def from_tiktoken(cls, name: str) -> "BPETokenizer":
        """Return a published vocabulary by its tiktoken name, such as "gpt2" or "cl100k_base".

        The first use downloads it, unless the folder TIKTOKEN_CACHE_DIR has it.
        Raises ValueError for an unknown name, ConnectionError where it is neither kept nor reachable.
        """
        return cls(**vars(read_tiktoken(name)))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Return the same tokenizer as a `tiktoken.Encoding`, which is written in Rust: same ids, more speed.

        Beware of a million spaces in a row: they crash tiktoken, while `encode` takes them.
        Raises ValueError where ids do not follow the order of the merges, the only order that tiktoken knows.
        """
        products = [self._ids[left + right] for left, right in self.merges]
        if any(earlier > later for earlier, later in pairwise(products)):
            raise ValueError("ids do not follow the order of the merges: use BPETokenizer.encode instead")
        return tiktoken.Encoding(
            "book", pat_str=self.pattern, mergeable_ranks=self._ids, special_tokens=self.special_tokens
        )


def _to_bytes(text: str) -> bytes:
    """Return a text's bytes, or say in one line why it has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}, half a character"
        advice = "text.encode('utf-8', 'replace').decode() puts a ? in its place"
        raise ValueError(f"the text has the lone surrogate {half}: {advice}") from None

"""Tokenization: text in, whole numbers out, and back again without losing a letter.

A model reads numbers. Numbering letters makes texts long; numbering words meets a new word every day.
Byte-pair encoding stands between them. It starts from the 256 possible bytes, which can write any
text, and then glues together, again and again, the two neighbours that meet most often:

    l o w e r   l o w e s t     ->  (l, o) is everywhere  ->  lo w e r   lo w e s t
                                ->  (lo, w) comes next    ->  low e r   low e s t

Each gluing is a *merge*, and each merge makes one new token. Reading a text later means
repeating the merges in the order in which they were learned. This is the first station of the journey:
chapter 3 turns the numbers into vectors.

`learn_merges_slow` and `apply_merges` are the obvious way, and the specification. `learn_merges` learns
the same merges a thousand times faster, and `to_tiktoken` hands them to a fast twin for bulk work.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import tiktoken

from chapters.ch02_files import read_tiktoken, read_tokenizer_json, write_tokenizer_json
from chapters.ch02_merges import Pair, apply_merges, learn_merges
from chapters.ch02_splitting import GPT2_PATTERN, WordSplitter

END_OF_TEXT = "<|endoftext|>"
CACHE_WORDS = 1 << 17  # words remembered with their ids; a long text repeats most of its words
LONG_WORD_BYTES = 256  # beyond this, replaying all merges beats looking for the best pair again and again
BATCH_CHARACTERS = 1 << 18  # text that one thread encodes at a time
UNSAFE_CHARACTERS = 1 << 17  # a stretch without a sure cut, such as a million spaces, can crash tiktoken


class BPETokenizer:
    """Turns any text into token ids and back, with a vocabulary learned from text or loaded from a file.

    vocab: id -> bytes, all 256 single bytes among them. merges: pairs of byte strings, earliest learned first.
    special_tokens: text -> id of marks such as <|endoftext|>, which stand for no text. pattern: where
    pre-tokens are cut. After construction `vocab` covers every id, special tokens included.
    Raises ValueError where these do not fit together.
    """

    def __init__(
        self,
        vocab: dict[int, bytes],
        merges: list[Pair],
        special_tokens: dict[str, int] | None = None,
        pattern: str = GPT2_PATTERN,
    ):
        # 1. Keep the parts, and the two views that encoding needs: bytes to id, and pair to rank.
        self.special_tokens = dict(special_tokens or {})
        self.vocab = {**vocab, **{token: text.encode("utf-8") for text, token in self.special_tokens.items()}}
        self.merges, self.pattern = list(merges), pattern
        ordinary = set(vocab) - set(self.special_tokens.values())
        self._ids = {vocab[token]: token for token in sorted(ordinary, reverse=True)}
        # 2. Refuse parts that do not fit, before anything is encoded wrongly.
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        self._check(len(ordinary))
        # 3. Prepare the cutting, and remember words: a text repeats its words, so most are only looked up.
        self._splitter = WordSplitter(pattern, self.special_tokens)
        self._cache: dict[str, list[int]] = {}

    def _check(self, num_ordinary: int) -> None:
        """Raise ValueError with one line where vocabulary, merges and special tokens contradict each other."""
        # 1. Demand all bytes. Without one of them some text could not be written at all.
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"vocabulary lacks the byte {missing[0]} (and {len(missing) - 1} more): all 256 are needed")
        if len(self._ids) != num_ordinary:
            raise ValueError("vocabulary holds one byte string under two ids: give each token one id")
        # 2. Demand that merges build upon earlier ones, and that their products have ids.
        known = {bytes([byte]) for byte in range(256)}
        for left, right in self.merges:
            if left not in known or right not in known or left + right not in self._ids:
                raise ValueError(f"merge {left!r} + {right!r} uses or makes an unknown token: check the merges' order")
            known.add(left + right)
        # 3. Demand that each token can be reached; one that no merge makes would never be used.
        orphan = next((token for token in self._ids if token not in known), None)
        if orphan is not None:
            raise ValueError(f"token {orphan!r} is made by no merge: remove it or add its merge")
        if "" in self.special_tokens or len(set(self.special_tokens.values())) != len(self.special_tokens):
            raise ValueError(f"special tokens {self.special_tokens} must be non-empty texts with ids of their own")

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

        Ids: 0 to 255 are the bytes, then the merges as learned, then the special tokens. Special tokens
        found in the text are boundaries, not content. A short text may run out of pairs; then the
        vocabulary stays smaller than asked for. Raises ValueError for a vocabulary too small for the bytes.
        """
        # 1. Refuse a size without room for the bytes. They make every text writable.
        names = list(dict.fromkeys(special_tokens))
        num_merges = vocab_size - 256 - len(names)
        if num_merges < 0:
            raise ValueError(f"vocab_size {vocab_size} is below {256 + len(names)}: 256 bytes and the special tokens")

        # 2. Count words. All later work is done once per different word, not once per word of the text.
        splitter = WordSplitter(pattern, names)
        word_counts: Counter[str] = Counter()
        for document in [text] if isinstance(text, str) else text:
            for block in splitter.blocks([document], True):
                plain = [part for part, is_special in splitter.parts(block, True) if not is_special]
                word_counts.update(chain.from_iterable(map(splitter.words, plain)))

        # 3. Learn the merges and number the tokens.
        merges = learn_merges({_utf8(word): count for word, count in word_counts.items()}, num_merges)
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        specials = {name: len(tokens) + i for i, name in enumerate(names)}
        return cls(dict(enumerate(tokens)), merges, specials, pattern)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text; `decode` gives the very same text back.

        With `allow_special`, special tokens written in the text become their ids. Without, they are text
        like any other: what a user types can never end a document.
        Raises ValueError for a lone surrogate, half a character that no bytes can hold.
        """
        return list(self.encode_iterable([text], allow_special))

    def encode_iterable(self, chunks: Iterable[str], allow_special: bool = False) -> Iterator[int]:
        """Yield the token ids of the joined chunks, holding only a small piece of the text at a time.

        Chunks may be cut anywhere, inside a word or a special token: the ids are those of the whole.
        Memory grows only with the longest stretch that has no certain cut, such as one endless word.
        """
        for block in self._splitter.blocks(chunks, allow_special):
            for part, is_special in self._splitter.parts(block, allow_special):
                yield from [self.special_tokens[part]] if is_special else self._encode_ordinary(part)

    def _encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens, word by word."""
        ids: list[int] = []
        for word in self._splitter.words(text):
            ids += self._cache.get(word) or self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one pre-token, and remember them if it is short enough to come again."""
        # 1. Take a whole token at once, as tiktoken does; else glue the bytes.
        data = _utf8(word)
        if data in self._ids:
            ids = [self._ids[data]]
        elif len(data) > LONG_WORD_BYTES:
            return self._encode_long(data)
        else:
            ids = [self._ids[part] for part in apply_merges(data, self._ranks)]
        # 2. Forget all when full: a stream of random words must not fill the memory.
        if len(self._cache) >= CACHE_WORDS:
            self._cache.clear()
        self._cache[word] = ids
        return ids

    def _encode_long(self, word: bytes) -> list[int]:
        """Return the ids of an endless word by replaying all merges on it, each one a single replacement.

        The parts of a merge are older than the merge, so once through the list in order is enough.
        """
        # 1. Write one letter per token, numbered as training numbers them, so that `str.replace` glues.
        letters = {bytes([byte]): chr(byte) for byte in range(256)}
        text = word.decode("latin-1")
        for rank, (left, right) in enumerate(self.merges):
            letter = letters.setdefault(left + right, chr(256 + rank))
            text = text.replace(letters[left] + letters[right], letter)
        # 2. Read the letters back as ids.
        ids = {letter: self._ids[token] for token, letter in letters.items()}
        return [ids[letter] for letter in text]

    def encode_documents(self, documents: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return all documents' ids in one array, each document closed by <|endoftext|>, and where each ends.

        This is the bulk way, with tiktoken and all processor cores. Text that looks like a special token stays text.
        Shapes: ids (T,) of uint16, or uint32 for a vocabulary above 65 536; ends (documents,), each one behind
        its document's <|endoftext|>.
        Raises ValueError for a lone surrogate, or where the vocabulary has no <|endoftext|>.
        """
        # 1. Demand the mark, or two documents would run into each other.
        if self.eot_id is None:
            raise ValueError(f"vocabulary has no {END_OF_TEXT}: train it with special_tokens=({END_OF_TEXT!r},)")
        encoding = self.to_tiktoken()
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

        # 2. Encode batches side by side: tiktoken works outside Python, so threads really share the work.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            arrays = pool.map(lambda batch: self._encode_batch(batch, encoding).astype(dtype), self._batches(documents))
            ids = np.concatenate([np.zeros(0, dtype), *arrays])
        return ids, np.flatnonzero(ids == self.eot_id) + 1

    def _batches(self, documents: Iterable[str]) -> Iterator[list[str | None]]:
        """Yield lists of blocks of text of about BATCH_CHARACTERS, with None where a document ends."""
        # 1. Cut long documents too, so that one huge file also keeps all threads busy.
        batch: list[str | None] = []
        size = 0
        for document in documents:
            for block in chain(self._splitter.blocks([document], False), [None]):
                batch.append(block)
                size += len(block or "")
            # 2. Hand over a full batch; many short documents make one, which hides the cost of handing over.
                if size >= BATCH_CHARACTERS:
                    yield batch
                    batch, size = [], 0
        yield batch

    def _encode_batch(self, batch: list[str | None], encoding: tiktoken.Encoding) -> np.ndarray:
        """Return the ids of a batch: by tiktoken in one go, by hand where tiktoken could go wrong."""
        # 1. Join the blocks with the mark between documents.
        text = "".join(END_OF_TEXT if block is None else block for block in batch)
        _utf8(text)
        # 2. Trust the marks only if all are ours: a document that spells one out must not end there.
        longest = max((len(block or "") for block in batch), default=0)
        if text.count(END_OF_TEXT) == batch.count(None) and longest <= UNSAFE_CHARACTERS:
            return encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        ids = [[self.eot_id] if block is None else self._encode_ordinary(block) for block in batch]
        return np.fromiter(chain.from_iterable(ids), np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of these tokens; a character may lie across two of them.

        Raises ValueError for an id that the vocabulary does not have.
        """
        try:
            return b"".join([self.vocab[int(token)] for token in ids])
        except KeyError as error:
            raise ValueError(f"token id {error} is not in the vocabulary (0 to {self.vocab_size - 1})") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids. Bytes that are no character, such as half an emoji, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: str | os.PathLike) -> Path:
        """Write a Hugging Face `tokenizer.json` into a folder (or to a path that ends in .json); return its path.

        A folder also gets `tokenizer_config.json`, so that `AutoTokenizer.from_pretrained(folder)` opens it.
        """
        return write_tokenizer_json(Path(path), self._ids, self.merges, self.special_tokens, self.pattern)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPETokenizer":
        """Return the tokenizer that a `tokenizer.json`, or the folder around it, describes.

        Raises FileNotFoundError where there is none, ValueError in one line where its content is no
        byte-level BPE tokenizer or is damaged.
        """
        return cls(*read_tokenizer_json(Path(path)))

    @classmethod
    def from_tiktoken(cls, name: str) -> "BPETokenizer":
        """Return a published vocabulary by its tiktoken name, such as "gpt2" or "cl100k_base".

        The first use downloads it; TIKTOKEN_CACHE_DIR keeps it for working offline.
        Raises ValueError for an unknown name, ConnectionError where it is neither kept nor reachable.
        """
        return cls(*read_tiktoken(name))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Return the same tokenizer as a `tiktoken.Encoding`, which is written in Rust: same ids, more speed.

        Raises ValueError where ids do not follow the order of the merges, since tiktoken knows no other order.
        """
        # 1. Check the order. A pair's rank is the id of its product there.
        products = [self._ids[left + right] for left, right in self.merges]
        if any(first > second for first, second in pairwise(products)):
            raise ValueError("ids do not follow the order of the merges: tiktoken cannot hold this vocabulary")
        return tiktoken.Encoding("book", pat_str=self.pattern, mergeable_ranks=self._ids, special_tokens=self.special_tokens)


def _utf8(text: str) -> bytes:
    """Return a text's bytes, or say in one line why it has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"text has the lone surrogate {bad}, half a character: repair it with text.encode('utf-8', 'replace')"
        ) from None

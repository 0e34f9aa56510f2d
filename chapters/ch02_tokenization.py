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
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import regex
import tiktoken

from chapters.ch02_files import GPT2_PATTERN, read_tiktoken, read_tokenizer_json, write_tokenizer_json
from chapters.ch02_merges import Pair, apply_merges, learn_merges

END_OF_TEXT = "<|endoftext|>"

BLOCK_CHARACTERS = 1 << 16  # how much text is held at a time while a stream is read
CACHE_PIECES = 1 << 17  # words remembered with their ids; a long text repeats most of its words
LONG_PIECE_BYTES = 256  # beyond this, replaying all merges beats looking for the best pair again and again

# A cut that all patterns of the GPT family make: behind a letter or digit, before a mark or a space.
# An apostrophe may belong to the word (it's), an accent that stands alone to its letter. (?r) looks from the end.
_SURE_CUT = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{N}\p{M}'])")

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
        # 3. Prepare the cutting: longest special token first, so that none hides a longer one.
        self._split = regex.compile(pattern)
        names = sorted(self.special_tokens, key=len, reverse=True)
        self._special = regex.compile("|".join(map(regex.escape, names))) if names else None
        self._longest_special = max(map(len, names), default=0)
        # 4. Remember words. Text repeats its words, so most of them are looked up and not worked out again.
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
        cutter = cls({byte: bytes([byte]) for byte in range(256)}, [], {name: 256 + i for i, name in enumerate(names)}, pattern)
        word_counts: Counter[str] = Counter()
        for document in [text] if isinstance(text, str) else text:
            for block in cutter._blocks([document], True):
                for part, is_special in cutter._parts(block, True):
                    word_counts.update([] if is_special else cutter._split.findall(part))

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
        for block in self._blocks(chunks, allow_special):
            for part, is_special in self._parts(block, allow_special):
                if is_special:
                    yield self.special_tokens[part]
                else:
                    yield from self._encode_ordinary(part)

    def _encode_ordinary(self, text: str) -> Iterator[int]:
        """Yield the ids of a text without special tokens, word by word."""
        for piece in self._split.findall(text):
            ids = self._cache.get(piece)
            if ids is None:
                ids = self._encode_piece(piece)
            yield from ids

    def _encode_piece(self, piece: str) -> list[int]:
        """Return the ids of one pre-token, and remember them if it is short enough to come again."""
        # 1. Take a whole token at once, as tiktoken does.
        word = _utf8(piece)
        if word in self._ids:
            ids = [self._ids[word]]
        elif len(word) <= LONG_PIECE_BYTES:
            ids = [self._ids[part] for part in apply_merges(word, self._ranks)]
        else:
            return self._encode_long(word)
        # 2. Forget all when full: a stream of random words must not fill the memory.
        if len(self._cache) >= CACHE_PIECES:
            self._cache.clear()
        self._cache[piece] = ids
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

    def _parts(self, text: str, allow_special: bool) -> Iterator[tuple[str, bool]]:
        """Yield the text in order as (part, is it a special token)."""
        # 1. Walk from one special token to the next; without permission there are none.
        start = 0
        for match in self._special.finditer(text) if self._special and allow_special else ():
            yield text[start : match.start()], False
            yield match.group(), True
            start = match.end()
        # 2. Give the rest.
        yield text[start:], False

    def _blocks(self, chunks: Iterable[str], allow_special: bool) -> Iterator[str]:
        """Yield the joined chunks in blocks that end where every reading of the text has a cut."""
        # 1. Gather slices of bounded size, so that one huge string is treated like a stream.
        buffer, limit = "", BLOCK_CHARACTERS
        for chunk in chunks:
            for start in range(0, len(chunk), BLOCK_CHARACTERS):
                buffer += chunk[start : start + BLOCK_CHARACTERS]
                # 2. Cut late. If there is no sure cut, wait for twice as much: looking again each time would be quadratic.
                if len(buffer) >= limit:
                    cut = self._last_cut(buffer, allow_special)
                    if cut:
                        yield buffer[:cut]
                        buffer = buffer[cut:]
                    limit = max(BLOCK_CHARACTERS, 2 * len(buffer))
        # 3. Give what is left: its end is the end of the text.
        yield buffer

    def _last_cut(self, text: str, allow_special: bool) -> int:
        """Return the last place where text surely cuts, outside every special token; 0 if there is none."""
        # 1. Stay clear of the end, where a special token may have begun.
        reach = self._longest_special if allow_special else 0
        for match in _SURE_CUT.finditer(text, 0, max(0, len(text) - reach)):
            # 2. Reject a cut inside a special token, wherever that one begins.
            cut = match.start()
            near = self._special.finditer(text, max(0, cut - reach), cut + reach, overlapped=True) if reach else ()
            if not any(special.start() < cut < special.end() for special in near):
                return cut
        return 0

    def encode_documents(self, documents: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return all documents' ids in one array, each document closed by <|endoftext|>, and where each ends.

        This is the bulk way, with tiktoken and all processor cores. Text that looks like a special token stays text.
        Shapes: ids (T,) of uint16, or uint32 for a vocabulary above 65 536; ends (documents,), one behind each end token.
        Raises ValueError for a lone surrogate, or where the vocabulary has no <|endoftext|>.
        """
        # 1. Demand the mark, or two documents would run into each other.
        if self.eot_id is None:
            raise ValueError(f"vocabulary has no {END_OF_TEXT}: train it with special_tokens=({END_OF_TEXT!r},)")
        encoding = self.to_tiktoken()
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

        def encode_batch(batch: list[str]) -> tuple[np.ndarray, list[int]]:
            """Encode some documents in one go: threads work at the same time, since tiktoken runs outside Python."""
            ids = [[*encoding.encode_ordinary(_checked(text)), self.eot_id] for text in batch]
            return np.fromiter(chain.from_iterable(ids), dtype), [len(document) for document in ids]

        # 2. Share the work in batches large enough to hide the cost of handing them over.
        source = iter(documents)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = list(pool.map(encode_batch, iter(lambda: list(islice(source, 256)), [])))
        tokens = np.concatenate([ids for ids, _ in done]) if done else np.zeros(0, dtype)
        return tokens, np.cumsum([length for _, lengths in done for length in lengths], dtype=np.int64)

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


def _checked(text: str) -> str:
    """Return the text if it can be written in bytes. tiktoken would silently replace what cannot."""
    _utf8(text)
    return text

"""Tokenizers: text into the numbers that a model reads, and back, from the files that models come with.

    tokenizer.json   byte-level BPE, as of GPT-2, Llama 3, Qwen and SmolLM2     ByteLevelTokenizer
    tok512.bin       the pieces and scores of llama2.c's small models           ScoredTokenizer

Both begin with the smallest pieces and glue two neighbours again and again, the most urgent pair first. They differ in
what says how urgent a pair is: its place in a list of merges, or the score of what it becomes.

    "low low"  ->  l o w   ␣ l o w  ->  lo w   ␣ lo w  ->  low   ␣ low  ->  low   ␣low

A tokenizer that cuts otherwise than the one in training gives the model words that it has never seen, and nothing
fails. So what a file asks for is done exactly, and what is not known here is refused.
"""

import heapq
import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import regex

from engine.safetensors import REMEDY
from engine.tokenizer_json import read_tokenizer_json

# Letters, digits and accents that are younger than Unicode 16. The libraries that cut text in training do not know
# them as such yet, and `regex` does: they count as marks here too.
YOUNG = (
    "558-558 58B-58C 5C8-5C9 88F-88F B53-B54 C5C-C5C CDC-CDC 1ACF-1AF0 208F-208F 209D-209F A7CE-A7CF A7D2-A7D2 "
    "A7D4-A7D4 A7DD-A7F1 AB6C-AB6D 107BB-107BF 10940-10959 10EC5-10EFB 11B0A-11B67 11DB0-11DF1 1246F-1247F 12550-12686 "
    "16EA0-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-191D2 1B123-1B128 1B168-1B168 1D127-1D128 1D250-1D281 "
    "1D6A6-1D6A6 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF 2B73A-2B73F 2B81E-2B81E 2CEA2-2CEAD 323B0-3FC3F"
)
_YOUNG = regex.compile("[" + regex.sub("[0-9A-F]+", lambda end: chr(int(end[0], 16)), YOUNG).replace(" ", "") + "]")

# The names that the end of a text goes by, in the order in which they are looked for.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>")

# How many words are remembered with their ids. Texts repeat themselves, and gluing takes longer than looking up.
REMEMBERED_WORDS = 1 << 16

# What two neighbours become: how urgent that is (the lowest goes first), and the new token; None: they stay apart.
Lookup = Callable[[tuple[int, int]], tuple[float, int] | None]


def merge_pairs(ids: list[int], lookup: Lookup) -> list[int]:
    """Return the tokens that are left when no two neighbours can be glued any more.

    The most urgent pair goes first, of equal ones the leftmost. A heap keeps the pairs in that order, so a word of n
    pieces takes about n·log n steps and not n·n: a book without spaces is a word, too.
    """
    # 1. Link each token with its neighbours, as what is glued shall not move the rest. Line up all pairs.
    before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
    ids, end, heap = list(ids), len(ids), []
    for at in range(end - 1):
        _line_up(heap, at, (ids[at], ids[at + 1]), lookup)

    # 2. Take the most urgent pair. Pass over it if one of the two has been glued elsewhere meanwhile.
    while heap:
        _, at, new = heapq.heappop(heap)
        found = lookup((ids[at], ids[after[at]])) if ids[at] >= 0 and after[at] < end else None
        if found is None or found[1] != new:
            continue
        # 3. Glue it: the left one becomes the new token, and the right one is marked as gone.
        ids[at], ids[after[at]], after[at] = new, -1, after[after[at]]
        if after[at] < end:
            before[after[at]] = at
            _line_up(heap, at, (new, ids[after[at]]), lookup)
        # 4. Meet the neighbour on the left anew.
        if before[at] >= 0:
            _line_up(heap, before[at], (ids[before[at]], new), lookup)
    return [number for number in ids if number >= 0]


def _line_up(heap: list, at: int, pair: tuple[int, int], lookup: Lookup) -> None:
    """Put the pair that begins at a place into the heap, if it can be glued."""
    if found := lookup(pair):
        heapq.heappush(heap, (found[0], at, found[1]))


class ByteLevelTokenizer:
    """Turns text into ids and back as a byte-level `tokenizer.json` says.

    It starts from the 256 bytes, so no text is ever unknown. `vocab` gives the bytes of each id, `special_tokens` the
    texts that stand for no text, `start_ids` what stands before every text; `bos_id` and `eos_id` begin and end one.
    Raises ValueError in one line for a file that is broken, or that asks for what is not known here.
    """

    def __init__(self, path: str | Path):
        # 1. Read the file. Special tokens are shown by their names.
        self._parts = parts = read_tokenizer_json(path)
        self.special_tokens = parts.special_tokens
        self.vocab = {number: token for token, number in parts.id_of.items()}
        self.vocab |= {number: name.encode() for name, number in parts.special_tokens.items()}

        # 2. Know where a text begins and ends. Without a word of the file, one begins where another has ended.
        ends = [self.special_tokens[name] for name in END_NAMES if name in self.special_tokens]
        self.eos_id = ends[0] if ends else None
        self.start_ids = ends[:1] if parts.start_ids is None else parts.start_ids
        self.bos_id = self.start_ids[0] if self.start_ids else None

        # 3. Look for special tokens in a text longest first: one may begin with another.
        names = sorted(self.special_tokens, key=len, reverse=True)
        self._special = regex.compile("|".join(map(regex.escape, names))) if names else None
        self._known_words: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """How many rows a model needs for these tokens: the largest id plus one."""
        return max(self.vocab) + 1

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text, without what stands before every text.

        With `allow_special`, special tokens written in the text become their ids; without, they are text like any
        other, so that nobody can end a text by writing the end into a prompt. Raises ValueError for a lone surrogate,
        half a character that no bytes can hold.
        """
        # 1. Go from one special token to the next.
        ids, start = [], 0
        for match in self._special.finditer(text) if self._special and allow_special else ():
            ids += [*self._encode_words(text[start : match.start()]), self.special_tokens[match.group()]]
            start = match.end()
        # 2. Encode the rest.
        return ids + self._encode_words(text[start:])

    def _encode_words(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        # 1. Join accents that stand alone to their letters, if the file wants it.
        ids, known = [], self._known_words
        text = unicodedata.normalize("NFC", text) if self._parts.compose else text

        # 2. Look each word up, or glue it from its bytes and remember it.
        for word in self._words(text):
            if word not in known:
                known[word] = self._encode_word(_utf8(word))
            ids += known[word]
            # 3. Forget all from time to time: a text without end shall not fill the memory.
            if len(known) > REMEMBERED_WORDS:
                known.clear()
        return ids

    def _encode_word(self, word: bytes) -> list[int]:
        """Return the ids of one word. Some files want one that is a token to be taken at once, without merges."""
        id_of = self._parts.id_of
        if self._parts.take_at_once and word in id_of:
            return [id_of[word]]
        return merge_pairs([id_of[bytes([byte])] for byte in word], self._parts.merges.get)

    def _words(self, text: str) -> Iterator[str]:
        """Yield the words of a text, which no merge ever crosses: all rules are put to it, one after the other."""
        # 1. Cut a shadow of the text, in which U+FFFF, which is no letter, stands for each letter that is too young.
        shadow = _YOUNG.sub("\uffff", text)
        cuts = {0, len(text)}
        for rule in self._parts.rules:
            edges = sorted(cuts)
            # 2. Cut each piece before and behind every match, and look at it alone: what lies beyond its edges
            # must not be seen.
            for start, end in zip(edges, edges[1:], strict=False):
                spans = (match.span() for match in rule.finditer(shadow[start:end]))
                cuts.update(start + at for span in spans for at in span)

        # 3. Give the text itself, from cut to cut. Nothing is lost.
        edges = sorted(cuts)
        yield from (text[start:end] for start, end in zip(edges, edges[1:], strict=False))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of these ids, one after the other: a character may be spread over several of them.

        Raises ValueError for an id that the vocabulary does not have.
        """
        return b"".join(_bytes_of(self.vocab, number) for number in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids; bytes that are no character become U+FFFD. Raises as `decode_bytes` does."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def _bytes_of(vocab: dict[int, bytes], number: int) -> bytes:
    """Return the bytes of an id; raise ValueError for one that is unknown."""
    if int(number) not in vocab:
        raise ValueError(f"token id {number} is unknown: ids go from 0 to {max(vocab)}")
    return vocab[int(number)]


def _utf8(text: str) -> bytes:
    """Return the bytes of a text; raise ValueError where it holds half a character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate, half a character: {error}") from None


class ScoredTokenizer:
    """Turns text into ids and back as a tokenizer file of llama2.c says: pieces of text, each with a score.

    Ids 0, 1 and 2 stand for the unknown, the beginning and the end; 3 to 258 for the single bytes, which are used only
    for characters that are no pieces. A text gets a space before it, so that its first word is the same piece as any
    other. Raises ValueError in one line for a broken file.
    Source: Karpathy's llama2.c, the functions `build_tokenizer`, `encode` and `decode` in run.c.
    """

    special_tokens = {"<unk>": 0, "<s>": 1, "</s>": 2}
    bos_id, eos_id, start_ids = 1, 2, [1]

    def __init__(self, path: str | Path):
        # 1. Take the file apart.
        try:
            pieces = list(_read_pieces(Path(path).read_bytes()))
            if len(pieces) < 259:
                raise ValueError(f"it has {len(pieces)} pieces: 3 marks and 256 bytes are the least")
        except ValueError as error:
            raise ValueError(f"{path} is no whole llama2.c tokenizer: {error}; {REMEDY}") from None

        # 2. Look pieces up by their bytes. The first of two equal ones counts.
        self.vocab = {number: piece for number, (_, piece) in enumerate(pieces)}
        self.vocab |= {3 + byte: bytes([byte]) for byte in range(256)}
        self.vocab |= {number: name.encode() for name, number in self.special_tokens.items()} | {1: b""}
        self._scores = [score for score, _ in pieces]
        self._id_of = {piece: number for number, (_, piece) in reversed([*enumerate(pieces)][259:])}

    @property
    def vocab_size(self) -> int:
        """How many pieces there are."""
        return len(self.vocab)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a text with a space before it, without the mark of its beginning.

        `allow_special` is there as in the other tokenizer; no text stands for a special token in this kind of file.
        Raises ValueError for a lone surrogate, half a character that no bytes can hold.
        """
        # 1. Begin with characters, or with the bytes of those that are no pieces.
        ids: list[int] = []
        for letter in " " * bool(text) + text:
            piece = _utf8(letter)
            ids += [self._id_of[piece]] if piece in self._id_of else [3 + byte for byte in piece]
        # 2. Glue: the highest score goes first.
        return merge_pairs(ids, self._lookup)

    def _lookup(self, pair: tuple[int, int]) -> tuple[float, int] | None:
        """Return what two pieces become, with how urgent it is."""
        new = self._id_of.get(self.vocab[pair[0]] + self.vocab[pair[1]])
        return None if new is None else (-self._scores[new], new)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of these ids, one after the other; a space right behind the beginning's mark is dropped.

        Raises ValueError for an id that the vocabulary does not have.
        """
        ids = list(ids)
        spaces = [b" " if before == self.bos_id else b"" for before in [None, *ids]]
        pieces = (_bytes_of(self.vocab, number) for number in ids)
        return b"".join(piece.removeprefix(space) for piece, space in zip(pieces, spaces, strict=False))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, without the space that encoding puts before it.

        Bytes that are no character become U+FFFD. Raises as `decode_bytes` does.
        """
        return self.decode_bytes([self.bos_id, *ids]).decode("utf-8", errors="replace")


def _read_pieces(content: bytes) -> Iterator[tuple[float, bytes]]:
    """Yield score and bytes of each piece in a file: a number for the longest piece, then score, length, bytes, …"""
    # 1. Pass over the first number, which is for programs that reserve memory beforehand.
    at = 4
    while at < len(content):
        # 2. Believe a length only if so much is left. A score that is no number could not be compared.
        score, length = struct.unpack_from("<fi", content, at) if at + 8 <= len(content) else (0.0, -1)
        if not (0 <= length <= len(content) - at - 8 and abs(score) < float("inf")):
            raise ValueError(f"at byte {at} of {len(content)} no piece begins")
        yield score, content[at + 8 : at + 8 + length]
        at += 8 + length


def load_tokenizer(path: str | Path) -> ByteLevelTokenizer | ScoredTokenizer:
    """Return the tokenizer of a model folder or of a llama2.c model, or the one in a tokenizer file itself.

    Beside a model such as stories260K.bin lies its tokenizer: tok512.bin, with the size of its vocabulary in its name,
    or tokenizer.bin. Raises FileNotFoundError where there is none, and ValueError in one line where it is broken or of
    another kind.
    """
    # 1. Open a folder's file, or the file itself.
    path = Path(path)
    if path.suffix != ".bin":
        return ByteLevelTokenizer(path if path.suffix == ".json" else path / "tokenizer.json")
    if path.name.startswith("tok"):
        return ScoredTokenizer(path)

    # 2. Ask a model how many tokens it knows: the sixth number of its file.
    with open(path, "rb") as file:
        start = file.read(24)
    size = abs(int.from_bytes(start[20:], "little", signed=True))

    # 3. Look beside it, and take only a tokenizer that has as many.
    beside = [path.with_name(name) for name in (f"tok{size}.bin", "tokenizer.bin")]
    for found in filter(Path.is_file, beside):
        tokenizer = ScoredTokenizer(found)
        if tokenizer.vocab_size != size:
            raise ValueError(f"{found} has {tokenizer.vocab_size} tokens, and {path} knows {size}: put its own there")
        return tokenizer
    raise FileNotFoundError(f"{beside[0]} does not exist, nor tokenizer.bin beside it: put the model's own there")

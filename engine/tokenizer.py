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
from itertools import takewhile
from pathlib import Path

import regex

from engine.config import read_object
from engine.safetensors import REMEDY

# GPT-2's rule for where words end: endings such as 's; then letters, digits, or marks, each with the one space before
# them; then spaces, of which the last is left to the word that follows. Every ByteLevel step has it built in.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Letters, digits and accents that are younger than Unicode 16. The libraries that cut text in training do not know
# them as such yet, and `regex` does: they count as marks here too.
YOUNG = (
    "558-558 58B-58C 5C8-5C9 88F-88F B53-B54 C5C-C5C CDC-CDC 1ACF-1AF0 208F-208F 209D-209F A7CE-A7CF A7D2-A7D2 "
    "A7D4-A7D4 A7DD-A7F1 AB6C-AB6D 107BB-107BF 10940-10959 10EC5-10EFB 11B0A-11B67 11DB0-11DF1 1246F-1247F 12550-12686 "
    "16EA0-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-191D2 1B123-1B128 1B168-1B168 1D127-1D128 1D250-1D281 "
    "1D6A6-1D6A6 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF 2B73A-2B73F 2B81E-2B81E 2CEA2-2CEAD 323B0-3FC3F"
)
_YOUNG = regex.compile("[" + "".join("-".join(chr(int(end, 16)) for end in ends.split("-")) for ends in YOUNG.split()) + "]")

# How each byte is written as one visible letter in a tokenizer.json: those that print stay, the others (space,
# newline, halves of characters) borrow letters from number 256 on, in their order. So " the" is written "Ġthe".
_HIDDEN = [byte for byte in range(256) if byte == 32 or not chr(byte).isprintable()]
BYTE_OF = {chr(256 + _HIDDEN.index(byte)) if byte in _HIDDEN else chr(byte): byte for byte in range(256)}

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
        right = after[at]
        found = lookup((ids[at], ids[right])) if ids[at] >= 0 and right < end else None
        if found is None or found[1] != new:
            continue
        # 3. Glue it: the left one becomes the new token, and the right one is marked as gone.
        ids[at], ids[right], after[at] = new, -1, after[right]
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
        # 1. Read the file, and turn every way in which it can be wrong into one line with its name.
        path = Path(path)
        content = read_object(path)
        try:
            self._read(content)
            self.start_ids = _start_ids(content, self.special_tokens)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is no tokenizer.json ({type(error).__name__} {error}); {REMEDY}") from None
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from None

        # 2. Know where a text begins and ends. Without a word of the file, a text begins where another has ended.
        ends = [self.special_tokens[name] for name in END_NAMES if name in self.special_tokens]
        self.eos_id = ends[0] if ends else None
        self.start_ids = ends[:1] if self.start_ids is None else self.start_ids
        self.bos_id = self.start_ids[0] if self.start_ids else None

        # 3. Look for special tokens in a text longest first: one may begin with another.
        names = sorted(self.special_tokens, key=len, reverse=True)
        self._special = regex.compile("|".join(map(regex.escape, names))) if names else None
        self._known_words: dict[str, list[int]] = {}

    def _read(self, content: dict) -> None:
        """Take the file apart."""
        # 1. Refuse what would give other ids here.
        _check_kind(content)
        self._rules = _rules(content["pre_tokenizer"])
        self._compose = bool(_normalizers(content.get("normalizer")))
        model, added = content["model"], _added(content, self._compose)

        # 2. Read tokens. Special ones may be listed among the others too, and are no byte strings.
        self.special_tokens = {name: _token_id(number) for name, number in added.items()}
        ordinary = {name: _token_id(number) for name, number in model["vocab"].items() if name not in added}
        bytes_of = {name: _to_bytes(name) for name in ordinary}
        self.vocab = {number: bytes_of[name] for name, number in ordinary.items()}
        if len(self.vocab) < len(ordinary):
            raise ValueError(f"two of its tokens have the same id; {REMEDY}")

        # 3. Turn it round, to look up ids by bytes. All single bytes must be there: some text would have no ids.
        self._id_of = {token: number for number, token in self.vocab.items()}
        if missing := [byte for byte in range(256) if bytes([byte]) not in self._id_of]:
            raise ValueError(f"it has no token for byte {missing[0]}: byte-level BPE needs all 256")

        # 4. Read merges. Older files write one as a text with a space between the parts, newer ones as a list. Then
        # add the bytes of special tokens, which are shown by their names.
        self._take_at_once, self._merges = bool(model.get("ignore_merges")), {}
        for rank, merge in enumerate(model["merges"]):
            left, right = (_to_bytes(part) for part in (merge.split(" ") if isinstance(merge, str) else merge))
            self._merges[self._known(left), self._known(right)] = rank, self._known(left + right)
        self.vocab |= {number: name.encode() for name, number in self.special_tokens.items()}

    def _known(self, token: bytes) -> int:
        """Return the id of a token that a merge names."""
        if token not in self._id_of:
            raise ValueError(f"a merge names {token!r}, which is no token; {REMEDY}")
        return self._id_of[token]

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
            ids += self._encode_words(text[start : match.start()])
            ids.append(self.special_tokens[match.group()])
            start = match.end()
        return ids + self._encode_words(text[start:])

    def _encode_words(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        # 1. Join accents that stand alone to their letters, if the file wants it, and cut the text into words.
        ids: list[int] = []
        for word in self._words(unicodedata.normalize("NFC", text) if self._compose else text):
            # 2. Look the word up, or glue it from its bytes and remember it.
            if word not in self._known_words:
                if len(self._known_words) >= REMEMBERED_WORDS:
                    self._known_words.clear()
                self._known_words[word] = self._encode_word(_utf8(word))
            ids += self._known_words[word]
        return ids

    def _encode_word(self, word: bytes) -> list[int]:
        """Return the ids of one word. Some files want one that is a token to be taken at once, without merges."""
        if self._take_at_once and word in self._id_of:
            return [self._id_of[word]]
        return merge_pairs([self._id_of[bytes([byte])] for byte in word], self._merges.get)

    def _words(self, text: str) -> Iterator[str]:
        """Yield the words of a text, which no merge ever crosses: all rules are put to it, one after the other."""
        # 1. Cut a shadow of the text, in which U+FFFF, which is no letter, stands for each letter that is too young.
        shadow = _YOUNG.sub("\uffff", text)
        cuts = {0, len(text)}
        for rule in self._rules:
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


# The names that special tokens which end a text go by, in the order in which they are looked for.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>")


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


def _to_bytes(letters: str) -> bytes:
    """Return the token that is written with one visible letter for each byte: "Ġthe" is b" the"."""
    if odd := [letter for letter in letters if letter not in BYTE_OF]:
        raise ValueError(f"its token {letters[:40]!r} holds {odd[0]!r}, which stands for no byte: use byte-level BPE")
    return bytes(BYTE_OF[letter] for letter in letters)


def _token_id(number: object) -> int:
    """Return an id of a file, a whole number from 0 on."""
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise ValueError(f"{ascii(number)[:40]} is no token id: ids are whole numbers from 0 on")
    return number


def _check_kind(content: dict) -> None:
    """Raise ValueError unless a file is byte-level BPE, whose ids can be given here."""
    # 1. Know SentencePiece's kind by its marks: bytes only as a last resort, and ▁ in place of the space.
    model = content["model"]
    marks = {"byte_fallback": model.get("byte_fallback"), "Metaspace": "Metaspace" in str(content["pre_tokenizer"])}
    if found := [mark for mark in marks if marks[mark]] or (model["type"] == "Unigram" and ["Unigram"]):
        raise ValueError(f"it is of SentencePiece's kind ({found[0]}), and the engine reads byte-level BPE: run this "
                         "model with --engine torch")
    # 2. Refuse other kinds by name, and other ways of gluing.
    if model["type"] != "BPE":
        raise ValueError(f"its model is {ascii(model['type'])[:40]}, and the engine reads byte-level BPE")
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if found := [key for key in odd if model.get(key)]:
        raise ValueError(f"it asks for {found[0]}, which is not known here")


def _normalizers(step: dict | None) -> list[str]:
    """Return the changes to a text on its way in: none, or NFC; raise ValueError for another one."""
    steps = step["normalizers"] if step and step["type"] == "Sequence" else [step] if step else []
    kinds = [step["type"] for step in steps]
    if set(kinds) - {"NFC"}:
        raise ValueError(f"it changes text by {ascii(kinds)[:80]}, and only NFC is known here")
    return kinds


def _rules(step: dict) -> list[regex.Pattern]:
    """Return the rules by which a file cuts text into words, in the order in which they are applied.

    The last step is the one that turns letters into bytes, with GPT-2's rule in it unless the file says otherwise.
    Before it, a Split cuts by a rule of the file's own, and Digits takes digits apart.
    """
    # 1. See one step as a list of one.
    *steps, last = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        raise ValueError("it does not end in a ByteLevel step without add_prefix_space: that is all that is known here")

    # 2. Read the others. Only rules that keep everything they find, each match as a piece of its own, are known.
    patterns = []
    for step in steps:
        if step["type"] == "Digits":
            patterns.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            own = step["pattern"]
            patterns.append(own["Regex"] if "Regex" in own else regex.escape(own["String"]))
        else:
            raise ValueError(f"its step {ascii(step)[:80]} cuts text by rules that are not known here")

    # 3. Compile them.
    try:
        return [regex.compile(pattern) for pattern in patterns + [GPT2_PATTERN] * bool(last.get("use_regex", True))]
    except regex.error as error:
        raise ValueError(f"one of its rules for cutting is no regular expression: {error}") from None


def _added(content: dict, compose: bool) -> dict[str, object]:
    """Return the tokens that a file adds to the others; raise ValueError for one that is found otherwise here.

    Such are tokens that swallow the spaces beside them, that count only as whole words, or that are looked for only
    after a text has been changed.
    """
    # 1. Look at the flags. A file of an older version may leave some out, which says no.
    added = {}
    for entry in content.get("added_tokens") or []:
        name, flags = entry["content"], ["single_word", "lstrip", "rstrip"] + ["normalized"] * compose
        if found := [flag for flag in flags if entry.get(flag)]:
            raise ValueError(f"its token {ascii(name)[:40]} asks for {found[0]}, which is not known here")
        if not isinstance(name, str) or not name:
            raise ValueError(f"it adds a token called {ascii(name)[:40]}, which is no text")
        added[name] = entry["id"]
    return added


def _start_ids(content: dict, special: dict[str, int]) -> list[int] | None:
    """Return the ids that a file puts before every text, None where it says nothing of it."""
    # 1. List the steps behind the encoding, and find the template: marks, the text, marks.
    last = content.get("post_processor") or {}
    steps = last["processors"] if last.get("type") == "Sequence" else [last]
    templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
    if not templates:
        return None

    # 2. Read up to the text itself. What follows it would end it, and a prompt shall go on.
    before = takewhile(lambda piece: "Sequence" not in piece, templates[0]["single"])
    names = [piece["SpecialToken"]["id"] for piece in before]
    return [_token_id(number) for name in names for number in templates[0]["special_tokens"][name]["ids"]]


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
        # 1. Remember what came before: only the beginning of a text has the space that was put there.
        parts, before = [], None
        for number in map(int, ids):
            piece = _bytes_of(self.vocab, number)
            parts.append(piece.removeprefix(b" ") if before == self.bos_id else piece)
            before = number
        return b"".join(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, without the space that encoding puts before it.

        Bytes that are no character become U+FFFD. Raises as `decode_bytes` does.
        """
        return self.decode_bytes([self.bos_id, *ids]).decode("utf-8", errors="replace")


def _read_pieces(content: bytes) -> Iterator[tuple[float, bytes]]:
    """Yield score and bytes of each piece in a file: a number for the longest piece, then score, length, bytes, …"""
    # 1. Pass over the first number, which is for programs that reserve memory beforehand.
    at = 4
    if len(content) < at:
        raise ValueError(f"it has {len(content)} bytes")
    while at < len(content):
        # 2. Believe a length only if so much is left.
        score, length = struct.unpack_from("<fi", content, at) if at + 8 <= len(content) else (0.0, -1)
        at += 8
        if not (0 <= length <= len(content) - at and abs(score) < float("inf")):
            raise ValueError(f"at byte {at - 8} of {len(content)} no piece begins")
        yield score, content[at : at + length]
        at += length


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
    beside = [path.with_name(name) for name in (f"tok{size}.bin", "tokenizer.bin")]
    found = next((other for other in beside if other.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{beside[0]} does not exist, nor tokenizer.bin beside it: put the model's tokenizer there")

    # 3. Take it only if it has as many.
    tokenizer = ScoredTokenizer(found)
    if tokenizer.vocab_size != size:
        raise ValueError(f"{found} has {tokenizer.vocab_size} tokens, and {path} knows {size}: put its own there")
    return tokenizer

"""Splitting: where a text is cut into words before any merge, and where a long text may be cut safely.

No merge crosses a cut, so that "dog." and "dog!" share the token for dog. A rule of a few alternatives,
tried from left to right, makes the cuts. Every letter, space and mark goes to one piece: nothing is lost.

    "The dog's bone, two  of them"  ->  The| dog|'s| bone|,| two| | of| them

A stream without end is read in blocks. A block may end only where the rule has a cut whatever comes next.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator

import regex
import tiktoken

# GPT-2's rule: endings such as 's; then letters, digits, or marks, each with the one space before them; then
# spaces, of which the last is left to the word that follows. It is the default because every library knows
# it by heart, and GPT-4's longer rule cuts the book's stories into no fewer tokens.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same rule for text of ASCII characters alone, where the letters are A to Z: Python's own `re` takes half the time.
_GPT2_ASCII = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)

# The same with every digit alone, as in SmolLM2's files. There digits are taken out first and the rule is put to
# what lies between, so the spaces before a digit stay together, as at the end of a text. (Numerals that Unicode
# added last are an exception: libraries do not agree yet on which of them are digits.)
DIGITS_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# How often a rule may repeat something, all its counts multiplied.
MOST_REPEATS = 10_000

# How much text is held at a time while a stream is read.
BLOCK_CHARACTERS = 1 << 16

# A cut that the rules of the whole GPT family make: behind a letter or digit, before a mark or a space. An
# apostrophe may belong to the word (it's), a combining accent to its letter. (?r) looks from the end.
_SURE_CUT = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{M}\p{N}'])")


@functools.cache
def newer_letters() -> frozenset[str]:
    """Return the characters that `regex` calls letters, digits or accents, and tiktoken does not know yet.

    Unicode adds letters every year, and each library carries the list of the year it was built in. All
    libraries must cut alike, so the youngest letters count as marks here too.
    """
    # 1. Collect all letters of the planes that have any. Half characters (surrogates) are none.
    kind = r"[\p{L}\p{M}\p{N}]"
    planes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
    letters = regex.findall(kind, "".join(map(chr, planes)))
    # 2. Ask tiktoken which of them it sees: what its pattern does not match, it drops.
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    asked = tiktoken.Encoding("letters", pat_str=kind, mergeable_ranks=single_bytes, special_tokens={})
    return frozenset(letters) - frozenset(bytes(asked.encode_ordinary("".join(letters))).decode())


def _slices(chunks: Iterable[str], size: int) -> Iterator[str]:
    """Yield the chunks, each cut into slices of at most `size` characters."""
    for chunk in chunks:
        yield from (chunk[start : start + size] for start in range(0, len(chunk), size))


def repeats(pattern: str) -> int:
    """Return the product of all counts in braces of a rule: what repeats within repeats come to at most."""
    braces = re.findall(r"{[^}]*}", pattern)
    return math.prod(max(1, int(count)) for counts in braces for count in re.findall(r"[0-9]+", counts))


class WordSplitter:
    """Cuts text into special tokens and pre-tokens, the pieces that merges never cross.

    pattern: the rule for pre-tokens, a regular expression without groups. special_tokens: texts that stay
    whole where the caller allows them. Raises ValueError for a pattern that is no such expression.
    """

    def __init__(self, pattern: str, special_tokens: Iterable[str]):
        # 1. Refuse a rule that would fill the memory when it is read: `regex` writes a{1000} out a thousand times.
        if repeats(pattern) > MOST_REPEATS:
            raise ValueError(f"split pattern {pattern[:40]!r} repeats something more than {MOST_REPEATS} times: "
                             "published ones need fewer than ten, take the tokenizer.json of the model's publisher")

        # 2. Read it. A group would make `findall` return the group and lose the rest of the text.
        try:
            self._rule = regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"split pattern {pattern!r} is no regular expression: {error}") from None
        if self._rule.groups:
            raise ValueError(f"split pattern {pattern!r} has a group: write (?:...) in place of (...)")
        self._ascii_rule = _GPT2_ASCII if pattern == GPT2_PATTERN else self._rule

        # 3. Look for the longest special token first, so that none hides a longer one.
        names = sorted(special_tokens, key=len, reverse=True)
        if "" in names:
            raise ValueError("a special token is empty: give it a text to find, such as <|endoftext|>")
        self._special = regex.compile("|".join(map(regex.escape, names))) if names else None
        self._longest_special = max(map(len, names), default=0)

    def words(self, text: str) -> list[str]:
        """Return the pre-tokens of a text in order; together they are the text.

        Raises ValueError where the rule passes over a part of the text, which would be lost.
        """
        # 1. Take a short way where no letter is in dispute, which is nearly always.
        if text.isascii():
            words = self._ascii_rule.findall(text)
        elif newer_letters().isdisjoint(text):
            words = self._rule.findall(text)
        # 2. Else cut a shadow of the text, in which U+FFFF, which is no letter, stands for each such letter.
        else:
            shadow = text.translate(dict.fromkeys(map(ord, newer_letters()), "\uffff"))
            words = [text[match.start() : match.end()] for match in self._rule.finditer(shadow)]

        # 3. Lose nothing: a rule from a file may know of no digits, say.
        if sum(map(len, words)) != len(text):
            raise ValueError(f"split pattern {self._rule.pattern!r} passes over a part of the text: get another one")
        return words

    def parts(self, text: str, allow_special: bool) -> Iterator[tuple[str, bool]]:
        """Yield the text in order as (part, is it a special token)."""
        # 1. Walk from one special token to the next; without permission there are none.
        start = 0
        for match in self._special.finditer(text) if self._special and allow_special else ():
            yield text[start : match.start()], False
            yield match.group(), True
            start = match.end()
        # 2. Give the rest.
        yield text[start:], False

    def blocks(self, chunks: Iterable[str], allow_special: bool) -> Iterator[str]:
        """Yield the joined chunks in blocks that end where the rule has a cut, never inside a special token.

        A block is about BLOCK_CHARACTERS long, and longer only where the text has no cut that is sure.
        """
        # 1. Gather slices of bounded size, so that one huge string is treated like a stream.
        buffer, limit = "", BLOCK_CHARACTERS
        for piece in _slices(chunks, BLOCK_CHARACTERS):
            buffer += piece
            # 2. Cut late. Where nothing is sure, wait for twice as much: the search must not be quadratic.
            if len(buffer) >= limit:
                cut = self._last_cut(buffer, allow_special)
                yield from [buffer[:cut]] if cut else []
                buffer = buffer[cut:]
                limit = max(BLOCK_CHARACTERS, 2 * len(buffer))
        # 3. Give what is left: its end is the end of the text.
        yield buffer

    def _last_cut(self, text: str, allow_special: bool) -> int:
        """Return the last place where text surely cuts, outside every special token; 0 if there is none."""
        # 1. Stay clear of the end, where a special token may have begun.
        reach = self._longest_special if allow_special else 0
        for match in _SURE_CUT.finditer(text, 0, max(0, len(text) - reach)):
            # 2. Reject a cut behind a letter in dispute.
            cut = match.start()
            if not text[cut - 1].isascii() and text[cut - 1] in newer_letters():
                continue
            # 3. Reject a cut inside a special token, wherever that one begins.
            start, end = max(0, cut - reach), cut + reach
            near = self._special.finditer(text, start, end, overlapped=True) if reach else ()
            if not any(special.start() < cut < special.end() for special in near):
                return cut
        return 0

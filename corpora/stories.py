"""The default corpus: children's stories from a grammar, with the exact probability of each.

Real text has an unknown lowest loss: nobody can say how much of a model's error is the model's
fault. Here it is known. Each story has exactly one derivation in the grammar of `stories.txt`, so

    bits per byte of a perfect model = sum of -log2 p(story) / sum of bytes(story)

and no model can do better on average. The same grammar reads: of any text it can say whether it
is one of its stories, and where it slips. This is the text on which `python main.py` learns.
"""

import random
import re
import sys
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import inf, log2
from pathlib import Path

from corpora.grammar import Choice, Grammar, Mark, Mention, Sequence, State, advance, unfold

OPENING = "Once upon a time"
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class ParseResult:
    """What the grammar says of a text.

    `kind` is "" for a story, otherwise the slip: "name", "thing" or "pronoun" when a mention went
    wrong, "unfinished" when the text stops too early, "word" for everything else. `position` is
    the number of characters that could begin a story; `plot` is known as soon as only one is left.
    """

    ok: bool
    derivations: int
    log2_probability: float
    position: int
    reason: str
    kind: str
    plot: str | None


@cache
def _grammar() -> Grammar:
    """The grammar, read once."""
    return Grammar(Path(__file__).with_name("stories.txt"))


def _start() -> list[State]:
    """The states before the first letter of a story."""
    return list(unfold((_grammar().story, 0, None), _grammar().empty, 1.0))


def tell(rng: random.Random) -> tuple[str, float]:
    """One random story and its log2 probability, the sum over the choices that led to it."""
    bound, pieces = list(_grammar().empty), []
    bits = _walk(_grammar().story, bound, pieces, rng.random)
    return "".join(pieces), -bits


def _walk(sequence: Sequence, bound: list, pieces: list[str], draw: callable) -> float:
    """Append a random telling of a sequence to `pieces`; its surprise in bits."""
    bits = 0.0
    for item in sequence:
        if isinstance(item, str):
            pieces.append(item)
        elif isinstance(item, Choice):
            # 1. Draw an option and tell it, however deep it goes.
            pick = min(bisect(list(accumulate(item.chances)), draw()), len(item.options) - 1)
            bits += _walk(item.options[pick], bound, pieces, draw) - log2(item.chances[pick])
        elif isinstance(item, Mention):
            # 2. Draw what is shown; the mask that comes back decides all later mentions.
            readings = item.readings(bound)
            chances = [chance for _, _, chance in readings]
            pick = min(bisect(list(accumulate(chances)), draw()), len(readings) - 1)
            text, bound[item.variable], chance = readings[pick]
            # 3. Add what this reading costs; nothing, once it is decided.
            pieces.append(text)
            bits -= log2(chance)
    return bits


def generate(count: int, seed: int) -> list[str]:
    """A list of independent random stories; the same seed gives the same stories."""
    rng = random.Random(seed)
    return [tell(rng)[0] for _ in range(count)]


def plots() -> list[str]:
    """The names of the plots, in the order of the grammar."""
    return list(_grammar().plots)


def vocabulary() -> set[str]:
    """All words the stories are made of, in small letters, without a final 's of possession."""
    words = (word.lower() for text in _grammar().texts() for word in WORD.findall(" " + text))
    return {word.removesuffix("'s") for word in words} - {"s"}


def parse(text: str) -> ParseResult:
    """What the grammar says of a text: a story or not, how probable, and where and how it slips."""
    # 1. Follow all derivations; remember the states in front of the last word for the diagnosis.
    states, word_at, word_states = _start(), 0, []
    for position, letter in enumerate(text):
        if not (letter.isalpha() and text[position - 1 : position].isalpha()):
            word_at, word_states = position, states
        survivors = advance(states, letter)
        if not survivors:
            kind, reason = _diagnose(text, word_at, word_states)
            return ParseResult(False, 0, -inf, position, reason, kind, _plot(states))
        states = survivors
    # 2. Count those whose story is over exactly here; their chances add up to its probability.
    ended = [state.chance for state in states if not state.text]
    if ended:
        return ParseResult(True, len(ended), log2(sum(ended)), len(text), "a story", "", _plot(states))
    reason = f"the story stops before its end; it could go on with {_quoted(s.text for s in states)}"
    return ParseResult(False, 0, -inf, len(text), reason, "unfinished", _plot(states))


def _plot(states: list[State]) -> str | None:
    """The plot that all states agree on."""
    found = {state.bound[-1] for state in states}
    return found.pop() if len(found) == 1 else None


def _quoted(texts: Iterable[str], most: int = 3) -> str:
    """The first words of some texts, in quotes: "ball" or "kite" or ..."""
    firsts = (WORD.match(text) or re.match(r"\W*\w*", text) for text in texts)
    shown = sorted({first[0] for first in firsts if first[0]})
    return " or ".join([f'"{word}"' for word in shown[:most]] + ["..."] * (len(shown) > most)) or "nothing"


def _diagnose(text: str, at: int, states: list[State]) -> tuple[str, str]:
    """The kind of slip in the word that begins at `at`, and a sentence that explains it."""
    # 1. Read the word that was written, and ask which mentions of its kind could have stood here.
    word = (WORD.match(text, at) or re.compile(r"\W?\w*").match(text, at))[0].removesuffix("'s")
    kind = _grammar().kinds.get(word)
    hoped = [s.text for s in states if s.mention and s.mention.kind == kind]
    if not hoped or not kind:
        only = _quoted(s.text for s in states)
        return "word", f'no story goes on with "{word}" here; it could go on with {only}'
    # 2. Name the slip: what returns in a story must return as it was.
    if kind == "thing":
        return kind, f'"{word}" was never there: only {_quoted(hoped)} can stand here'
    return kind, f'a {kind} changed: "{word}" where only {_quoted(hoped)} can stand'


def log2_probability(text: str) -> float:
    """log2 of the probability that the grammar tells exactly this text; -inf if it never does."""
    return parse(text).log2_probability


def next_byte_probabilities(prefix: str | bytes) -> dict[int | None, float]:
    """The exact chance of each next byte after a prefix; None is the end of the story.

    This is the best model of the stories that can exist. Empty for a prefix that begins no story.
    """
    # 1. Keep the derivations that agree with the prefix; each weighs what it has cost so far.
    states = _start()
    for letter in prefix.decode("latin-1") if isinstance(prefix, bytes) else prefix:
        states = advance(states, letter)
    total = sum(state.chance for state in states)
    # 2. Add up the weights by next byte.
    odds: dict[int | None, float] = {}
    for state in states:
        following = ord(state.text[0]) if state.text else None
        odds[following] = odds.get(following, 0.0) + state.chance / total
    return odds


def floor_bits_per_byte(stories: Iterable[str]) -> float:
    """The mean bits per byte of a perfect model: the lowest loss that any model can reach.

    The surprise of a story's end counts among the bits; the end has no byte of its own.
    Raises ValueError for a text that is no story.
    """
    # 1. Add up surprises and sizes, then divide: long stories weigh more than short ones.
    bits, size = 0.0, 0
    for story in stories:
        result = parse(story)
        if not result.ok:
            raise ValueError(f"not a story ({result.reason}); the floor is known for stories alone")
        bits, size = bits - result.log2_probability, size + len(story.encode())
    return bits / size

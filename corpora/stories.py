"""The default corpus: children's stories from a grammar, with the exact probability of each.

Of real text nobody can say how much of a model's loss is the model's fault. Of these stories one
can: each has exactly one derivation in the grammar of `stories.txt`, so its probability is known,

    floor = sum of -log2 p(story) / sum of bytes(story)    in bits per byte,

and no model can do better on average. The same grammar reads: of any text it says whether it is
one of its stories, and where it slips. This is the text that `python main.py` learns from.
"""

import random
import re
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import inf, log2
from pathlib import Path

from corpora.grammar import Choice, Grammar, Mention, Sequence, State, advance, unfold

# How most stories begin, a good prompt; a word; and what a diagnosis quotes: a word or what stands there.
OPENING = "Once upon a time"
WORD = re.compile(r"[A-Za-z]+")
PIECE = re.compile(r"[A-Za-z]+|\W?\w*", re.DOTALL)


@dataclass(frozen=True)
class ParseResult:
    """What the grammar says of a text.

    `kind` is "" for a story, otherwise the slip: "name", "thing" or "pronoun" when a mention went
    wrong, "unfinished" when the text stops before its end, "word" for everything else. `position`
    counts the characters that could begin a story; `plot` is known once a single one is left.
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


def generate(count: int, seed: int) -> list[str]:
    """A list of independent random stories; the same seed gives the same stories."""
    rng = random.Random(seed)
    return [tell(rng)[0] for _ in range(count)]


def tell(rng: random.Random) -> tuple[str, float]:
    """One random story and its log2 probability, added up from the choices that led to it."""
    pieces: list[str] = []
    bits = _walk(_grammar().story, list(_grammar().empty), pieces, rng.random)
    return "".join(pieces), -bits


def _walk(sequence: Sequence, bound: list, pieces: list[str], draw: Callable[[], float]) -> float:
    """Append a random telling of a sequence to `pieces`; its surprise in bits."""
    # 1. Say text as it is.
    bits = 0.0
    for item in sequence:
        if isinstance(item, str):
            pieces.append(item)
        # 2. Draw an option and tell it, however deep it goes.
        elif isinstance(item, Choice):
            pick = _pick(item.chances, draw())
            bits += _walk(item.options[pick], bound, pieces, draw) - log2(item.chances[pick])
        # 3. Draw what a mention shows; the mask that comes with it decides the later mentions.
        elif isinstance(item, Mention):
            readings = item.readings(bound)
            pick = _pick([chance for _, _, chance in readings], draw()) if len(readings) > 1 else 0
            text, bound[item.variable], chance = readings[pick]
            # 4. Say it, and add what it costs: nothing, once it is decided.
            pieces.append(text)
            bits -= log2(chance)
    return bits


def _pick(chances: Iterable[float], number: float) -> int:
    """The index whose share of the line from 0 to 1 holds `number`; rounding never runs past the last."""
    ladder = list(accumulate(chances))
    return min(bisect(ladder, number), len(ladder) - 1)


def plots() -> list[str]:
    """The names of the plots, in the order of the grammar."""
    return list(_grammar().plots)


def vocabulary() -> set[str]:
    """All words that the stories are made of, in small letters."""
    return {word.lower() for text in _grammar().texts() for word in WORD.findall(text)}


def log2_probability(text: str) -> float:
    """log2 of the probability that the grammar tells exactly this text; -inf if it never does."""
    return parse(text).log2_probability


def parse(text: str) -> ParseResult:
    """What the grammar says of a text: a story or not, how probable, and where and how it slips."""
    # 1. Follow all derivations; keep the states in front of the last word for a diagnosis.
    states, word_at, word_states = _start(), 0, []
    for position, letter in enumerate(text):
        if not (text[position - 1 : position].isalpha() and (letter.isalpha() or _all_inside_words(states))):
            word_at, word_states = position, states
        survivors = advance(states, letter)
        # 2. Stop where none survives: here the text leaves the grammar.
        if not survivors:
            kind, reason = _diagnose(text, word_at, word_states)
            return ParseResult(False, 0, -inf, position, reason, kind, _plot(states))
        states = survivors
    # 3. Count those whose story is over exactly here; their chances add up to its probability.
    ended = [state.chance for state in states if not state.text]
    if ended:
        return ParseResult(True, len(ended), log2(sum(ended)), len(text), "a story", "", _plot(states))
    # 4. Call all others unfinished, and say how they could go on.
    reason = f"the story stops before its end; it could go on with {_list_of(states)}"
    return ParseResult(False, 0, -inf, len(text), reason, "unfinished", _plot(states))


def _all_inside_words(states: list[State]) -> bool:
    """Whether all states wait for one more letter of a word, so that no word can end here."""
    return all(state.text[:1].isalpha() for state in states)


def _plot(states: list[State]) -> str | None:
    """The plot that all states agree on."""
    found = {state.bound[-1] for state in states}
    return found.pop() if len(found) == 1 else None


def _list_of(states: Iterable[State], most: int = 3) -> str:
    """What some states wait for, in quotes: whole mentions, else single words."""
    waiting = {state.text if state.mention else PIECE.match(state.text)[0] for state in states}
    quoted = [f'"{text}"' if text else "its end" for text in sorted(waiting)]
    return " or ".join(quoted[:most] + ["..."] * (len(quoted) > most))


def _diagnose(text: str, at: int, states: list[State]) -> tuple[str, str]:
    """The kind of slip in the word that begins at `at`, and a sentence that explains it."""
    # 1. Read the word that was written. Mentions are known as "he" and "the prince", so try "He" and "prince" so too.
    word, kinds = PIECE.match(text, at)[0], _grammar().kinds
    kind = next((kinds[form] for form in (word, word.lower(), f"the {word}") if form in kinds), None)
    # 2. Look for mentions of its kind that could stand here.
    hoped = [state for state in states if kind and state.mention and state.mention.kind == kind]
    # 3. Name the slip: who and what returns in a story must return as it was.
    if not hoped:
        return "word", f'no story goes on with "{word}" here; it could go on with {_list_of(states)}'
    if kind == "thing":
        return kind, f'"{word}" was never there: only {_list_of(hoped)} can stand here'
    return kind, f'a {kind} changed: "{word}" where only {_list_of(hoped)} can stand'


def next_byte_probabilities(prefix: str | bytes) -> dict[int | None, float]:
    """The exact chance of each next byte after a prefix; None is the end of the story.

    This is the best possible model of the stories: the surprises of a story's bytes and of its end
    add up to -log2 of its probability. Empty for a prefix that begins no story.
    """
    # 1. Keep the derivations that agree with the prefix. Stories are ASCII: a letter is a byte.
    states = _start()
    for letter in prefix.decode("latin-1") if isinstance(prefix, bytes) else prefix:
        states = advance(states, letter)
    # 2. Add up by next byte what each derivation weighs.
    total, odds = sum(state.chance for state in states), {}
    for state in states:
        following = ord(state.text[0]) if state.text else None
        odds[following] = odds.get(following, 0.0) + state.chance / total
    return odds


def floor_bits_per_byte(stories: Iterable[str]) -> float:
    """The bits per byte of a perfect model on these stories: the lowest loss any model can expect.

    The surprise of a story's end counts among the bits; the end has no byte of its own.
    Raises ValueError for a text that is no story, and for no text at all.
    """
    # 1. Add up surprises and sizes first, then divide: long stories weigh more than short ones.
    bits, size = 0.0, 0
    for story in stories:
        result = parse(story)
        if not result.ok:
            raise ValueError(f"no story ({result.reason}): only the grammar's stories have a floor")
        # 2. Count bytes and not letters, as bits per byte does for any text.
        bits, size = bits - result.log2_probability, size + len(story.encode())
    if not size:
        raise ValueError("0 stories have no floor: give at least one, such as generate(1, seed=0)")
    return bits / size

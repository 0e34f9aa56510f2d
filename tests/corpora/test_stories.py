"""What the story corpus promises: exact probabilities, one derivation each, and a parser that knows why."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from math import inf, isclose, log2
from pathlib import Path

import pytest

from corpora import stories
from corpora.grammar import Choice, Grammar, Mark, Mention, unfold
from corpora.stories import PIECE, WORD, ParseResult, generate, log2_probability, next_byte_probabilities, parse, tell


def members(name: str, she: str = "") -> list[str]:
    """The members of a class of the grammar, by their last words; with `she`, only those with this pronoun."""
    return [member["noun"] for member in stories._grammar()._classes[name][1] if she in ("", member.get("he"))]


# Who and what the stories choose from, without words that they also use freely, as in "the green hill"; and words
# of grown-ups that they use in parallel ways.
FREE = ("green", "boat", "book", "bell", "flute")
HEROINES = members("child", "she")
GIRLS, BOYS = ([*members("child", who), *members("pal", who)] for who in ("she", "he"))
ANIMALS, PETS, COLORS, TOYS = (
    "|".join(word for word in members(name) if word not in FREE) for name in ("animal", "pet", "color", "toy")
)
ADULTS = {"king": "queen", "prince": "princess", "son": "daughter", "man": "woman", "he": "she"}


@cache
def sample() -> tuple[str, ...]:
    """Some stories that all tests share."""
    return tuple(generate(600, seed=11))


@cache
def told() -> dict[str, list[str]]:
    """The shared stories by their plots."""
    by_plot: dict[str, list[str]] = {}
    for story in sample():
        by_plot.setdefault(parse(story).plot, []).append(story)
    return by_plot


def ambiguity(grammar: Grammar) -> str | None:
    """Two ways to tell one text, or None, which is a proof that there are none.

    Bindings are ignored, so more texts are allowed than the grammar tells: what is unambiguous here
    is unambiguous there. Two derivations of one text part at some item, reached with one stack; from
    every such parting all pairs of continuations are followed until they say different letters.
    """
    interned: dict[tuple, tuple] = {}

    def push(sequence: tuple, index: int, below: tuple | None) -> tuple | None:
        """A stack, always the same object for the same place; finished sequences are left out."""
        if index == len(sequence):
            return below
        return interned.setdefault((id(sequence), index, id(below)), (sequence, index, below))

    @cache
    def ways(key: int) -> list[tuple[str, tuple | None]]:
        """What the item on top of a stack can do: (text to say, the stack after it)."""
        sequence, index, below = places[key]
        item, after = sequence[index], push(sequence, index + 1, below)
        if isinstance(item, Choice):
            return [("", push(option, 0, after)) for option in item.options]
        if isinstance(item, Mention):
            return [(text, after) for text, _ in item.forms]
        return [("" if isinstance(item, Mark) else item, after)]

    def steps(stack: tuple) -> list[tuple[str, tuple | None]]:
        """The ways of a stack, found through the identity of the interned object."""
        places.setdefault(id(stack), stack)
        return ways(id(stack))

    def meet(one: tuple[str, tuple | None], two: tuple[str, tuple | None]) -> str | None:
        """A text on which two continuations come to the same place, or None."""
        todo, seen = [(one, two, "")], set()
        while todo:
            (said, stack), (other_said, other_stack), text = todo.pop()
            same = len(said) if other_said.startswith(said) else len(other_said)
            if said[:same] != other_said[:same]:
                continue
            text, said, other_said = text + said[:same], said[same:], other_said[same:]
            if not said and not other_said and stack is other_stack:
                return text
            key = (said, id(stack), other_said, id(other_stack))
            if key in seen:
                continue
            seen.add(key)
            if not said and stack:
                todo += [(way, (other_said, other_stack), text) for way in steps(stack)]
            elif not other_said and other_stack:
                todo += [((said, stack), way, text) for way in steps(other_stack)]
        return None

    places: dict[int, tuple] = {}
    todo, seen = [push(grammar.story, 0, None)], set()
    while todo:
        stack = todo.pop()
        if stack is None or id(stack) in seen:
            continue
        seen.add(id(stack))
        for one, two in combinations(steps(stack), 2):
            if (text := meet(one, two)) is not None:
                return f"{text!r} after {[way[0] for way in (one, two)]} in {stack[0][:2]}"
        todo += [after for _, after in steps(stack)]
    return None


def small_grammar(folder: Path, rules: str) -> Grammar:
    """A grammar of a few lines, for planting faults."""
    classes = "class child name name he\n  Tom Tim = he\nlet x y = child\n"
    (folder / "small.txt").write_text(classes + rules + "\n")
    return Grammar(folder / "small.txt")


def walks(grammar: Grammar) -> dict[str, float]:
    """Every text of a small grammar and its chance."""
    done, todo = {}, [("", state) for state in unfold((grammar.story, 0, None), grammar.empty, 1.0)]
    while todo:
        text, state = todo.pop()
        if state.text:
            todo += [(text + state.text, after) for after in unfold(state.stack, state.bound, state.chance)]
        else:
            done[text] = done.get(text, 0.0) + state.chance
    return done


def test_no_text_can_be_told_in_two_ways():
    assert ambiguity(stories._grammar()) is None


@pytest.mark.parametrize("rules", [
    "rule story: {x} ran[ home|][| home].",
    "rule story: [{x} ran|{x} ra[n|t]].",
    "rule story\n  <a>\n  {x} sang.\nrule a: {x} [sang|ran].",
    "rule story\n  <a>\nplot a\n  Once.\n  ? Once.\n  ? Once.",
])  # fmt: skip
def test_an_ambiguous_grammar_is_found_out(rules, tmp_path):
    assert ambiguity(small_grammar(tmp_path, rules)) is not None


def test_every_story_has_exactly_one_derivation_with_the_probability_it_was_drawn_with():
    rng = random.Random(5)
    for _ in range(300):
        story, bits = tell(rng)
        result = parse(story)
        assert (result.ok, result.derivations, result.kind, result.position) == (True, 1, "", len(story))
        assert isclose(result.log2_probability, bits, rel_tol=1e-9)


def test_the_chances_of_the_bytes_and_of_the_end_multiply_to_the_chance_of_the_story():
    for story in sample()[:2]:
        following = [next_byte_probabilities(story[:i]) for i in range(len(story) + 1)]
        assert all(isclose(sum(odds.values()), 1.0, rel_tol=1e-9) for odds in following)
        taken = [odds[byte] for odds, byte in zip(following, [*story.encode(), None], strict=True)]
        assert isclose(sum(map(log2, taken)), log2_probability(story), rel_tol=1e-9)


def test_next_bytes_take_bytes_too_and_know_what_begins_no_story():
    assert next_byte_probabilities(b"Once upon") == next_byte_probabilities("Once upon")
    assert next_byte_probabilities("Once upon").keys() == {ord(" ")}
    assert next_byte_probabilities("Twice") == next_byte_probabilities("\u4e2d") == {}


def test_drawn_stories_are_as_frequent_as_the_grammar_says():
    openings = Counter(story[:5] for story in sample())
    assert abs(openings["Long "] / len(sample()) - next_byte_probabilities("")[ord("L")]) < 0.06
    names = Counter(name for story in sample() for name in re.findall(r"girl (?:named|called) (\w+)", story))
    assert len(names) == len(HEROINES) and max(names.values()) < 5 * min(names.values())


def test_a_name_after_its_gender_is_drawn_among_those_who_fit():
    before = "Once, in a small town by the sea, there lived a kind girl named "
    odds = next_byte_probabilities(before)
    firsts = Counter(name[0] for name in HEROINES)
    assert odds.keys() == set(map(ord, firsts)) and len(firsts) > 3
    assert all(isclose(odds[ord(first)], count / len(HEROINES)) for first, count in firsts.items())
    assert next_byte_probabilities(before + "L").keys() == {ord(name[1]) for name in HEROINES if name[0] == "L"}


def test_bits_per_byte_of_the_grammar_is_the_floor():
    few = list(sample()[:40])
    expected = -sum(map(log2_probability, few)) / sum(len(story.encode()) for story in few)
    assert isclose(stories.floor_bits_per_byte(few), expected)
    assert stories.floor_bits_per_byte(sample()[:300]) >= 0.2


@pytest.mark.parametrize(("texts", "message"), [(["Hello."], "no story"), ([], "0 stories")])
def test_what_has_no_floor_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        stories.floor_bits_per_byte(texts)


def test_one_seed_tells_the_same_stories_again():
    assert generate(5, seed=3) == generate(7, seed=3)[:5] != generate(5, seed=4)


def test_twenty_thousand_stories_all_differ_and_have_a_child_s_length():
    many = generate(20_000, seed=0)
    sizes = [len(story) for story in many]
    assert len(set(many)) == len(many)
    assert min(sizes) >= 350 and max(sizes) <= 800 and 450 <= sum(sizes) / len(sizes) <= 620
    assert all(story.isascii() and "\n" not in story and "  " not in story for story in many)
    assert not set(many) & set(generate(1000, seed=1))


def test_there_are_many_plots_and_each_is_told():
    assert len(stories.plots()) == 22
    assert {parse(story).plot for story in sample()} == set(stories.plots())


def test_the_words_are_few_and_all_listed():
    words = stories.vocabulary()
    assert 350 <= len(words) <= 450
    assert {word.lower() for story in sample() for word in WORD.findall(story)} <= words
    assert {"king", "queen", "man", "woman", "boy", "girl", "prince", "princess", "son", "daughter"} <= words


def test_sentences_begin_with_a_capital_and_articles_fit():
    for story in sample():
        assert story[0].isupper() and story[-1] in '."'
        assert not re.search(r"[.!] [a-z]", story) and not re.search(r", (?:He|She|It|They|The)\b", story)
        assert not re.search(r"\b[Aa] [aeiou]", story) and not re.search(r"\ban [^aeiou]", story)
        assert story.count('"') % 2 == 0


def swapped(story: str, pairs: dict[str, str]) -> str:
    """The story with the two words of each pair in each other's place, in small and in capital letters."""
    swap = {**pairs, **{other: word for word, other in pairs.items()}, "his": "her", "her": "his"}
    swap |= {word.capitalize(): other.capitalize() for word, other in swap.items()}
    return "".join(swap.get(piece, piece) for piece in re.findall(r"\w+|\W+", story))


def later(words: str, story: str, before: str = "") -> Iterator[re.Match]:
    """The places, behind one of the words `before`, where a story repeats one of some words."""
    seen = set()
    for found in re.finditer(rf"\b(?:{words})\b", story):
        if found[0] in seen and re.search(rf"(?:{before}) ?$", story[: found.start()]):
            yield found
        seen.add(found[0])


def planted(story: str, found: re.Match, fault: str) -> ParseResult:
    """What the parser says of a story with other words in the place that was found, which it must refuse there."""
    result = parse(story[: found.start()] + fault + story[found.end() :])
    assert (result.ok, result.derivations, result.log2_probability) == (False, 0, -inf)
    assert found.start() <= result.position <= found.start() + len(fault)
    return result


def test_kings_and_queens_and_men_and_women_do_the_same_things():
    for plot in ("crown", "garden", "sleep", "throne", "laugh", "heir", "lamb"):
        for story in told()[plot][:8]:
            twin = swapped(story, ADULTS)
            assert twin != story and isclose(log2_probability(twin), log2_probability(story), rel_tol=1e-9)


def test_girls_and_boys_do_the_same_things():
    children = dict(zip(GIRLS, BOYS, strict=True)) | {"girl": "boy"}
    for plot in stories.plots():
        for story in told()[plot][:4]:
            twin = swapped(story, ADULTS | children)
            assert isclose(log2_probability(twin), log2_probability(story), rel_tol=1e-9)


def test_a_name_that_changes_is_named():
    for story in told()["lost"]:
        hero, friend = (re.search(p, story)[1] for p in (r"(?:named|called) (\w+)", r"friend (\w+)"))
        result = planted(story, re.search(rf"{friend}(?= (?:found|saw) the)", story), hero)
        assert (result.kind, result.plot) == ("name", "lost")
        assert result.reason == f'a name changed: "{hero}" where only "{friend}" can stand'


def test_a_name_that_changes_is_found_in_every_plot_that_has_names():
    named = [plot for plot in stories.plots() if any(later("|".join(GIRLS + BOYS), told()[plot][0]))]
    assert len(named) == 14
    for plot in named:
        for story in told()[plot][:3]:
            for found in later("|".join(GIRLS + BOYS), story):
                # The other gender, and a third child: both are somebody else.
                girl, boy = (next(name for name in names if name not in story) for names in (GIRLS, BOYS))
                assert planted(story, found, girl).kind == planted(story, found, boy).kind == "name"


def test_a_thing_that_was_never_there_is_named():
    for story in told()["lost"]:
        color, toy = re.search(r"with the (\w+) (\w+)", story).groups()
        for thing, others in ((toy, ("ball", "drum")), (color, ("red", "blue"))):
            other = others[thing == others[0]]
            at = story.index(thing, story.index(f"with the {color} {toy}"))
            result = planted(story, re.compile(thing).match(story, at), other)
            assert result.kind == "thing"
            assert result.reason == f'"{other}" was never there: only "{thing}" can stand here'


@pytest.mark.parametrize(("before", "words"), [
    ("The|the", "king|queen"), ("The|the", "man|woman"), ("The|the", "prince|princess"),
    ("The|the", ANIMALS), ("The|the", PETS), ("the", COLORS), (f"the|{COLORS}", TOYS),
])  # fmt: skip
def test_somebody_or_something_else_is_found_in_every_plot_that_has_it(before, words):
    places = 0
    for plot in stories.plots():
        for story in told()[plot][:4]:
            for found in later(words, story, before):
                other = next(word for word in words.split("|") if not re.search(rf"\b{word}\b", story))
                result = planted(story, found, other)
                assert result.kind == "thing" and f'"{found[0]}"' in result.reason
                places += 1
    assert places >= 8


def test_a_king_who_turns_into_a_queen_is_found_out():
    opening = "Once, in a small castle by the sea, there lived a kind king. The"
    result = parse(f"{opening} queen had")
    assert (result.kind, result.reason) == ("thing", '"queen" was never there: only "king" can stand here')
    assert parse(f"{opening} king had").kind == "unfinished"


def test_a_pronoun_that_does_not_agree_is_named():
    result = parse("Once, in a small town by the sea, there lived a kind girl named Mia. He had")
    assert (result.kind, result.reason) == ("pronoun", 'a pronoun changed: "He" where only "Her" can stand')
    wrong, places = {"his": "her", "her": "his", "he": "she", "she": "he"}, Counter()
    wrong |= {word.capitalize(): other.capitalize() for word, other in wrong.items()}
    for story in sample()[:300]:
        for found in re.finditer(rf"\b(?:{'|'.join(wrong)})\b", story):
            result = planted(story, found, wrong[found[0]])
            assert result.kind == "pronoun" and f'"{found[0]}"' in result.reason
            places[found[0]] += 1
    assert places.keys() == wrong.keys() - {"He", "She"}


@pytest.mark.parametrize("cut", [0, 1, 40, 100, 200, -1])
def test_what_stops_too_early_is_unfinished(cut):
    result = parse(sample()[0][:cut])
    assert (result.ok, result.kind, result.position) == (False, "unfinished", len(sample()[0][:cut]))
    assert result.reason.startswith("the story stops before its end; it could go on with")


@pytest.mark.parametrize(("text", "position"), [
    ("green ideas", 0), ("Once upon a time\0", 16), ("Once upon \U0001f600", 10), ("once upon a time", 0),
])  # fmt: skip
def test_garbage_is_refused_where_it_begins(text, position):
    result = parse(text)
    assert (result.ok, result.kind, result.position, result.plot) == (False, "word", position, None)
    assert PIECE.match(text, position)[0] in result.reason


def test_what_follows_the_end_is_refused():
    result = parse(sample()[0] + " And then")
    assert (result.kind, result.position) == ("word", len(sample()[0])) and "its end" in result.reason


def test_chances_are_weights_and_shares_of_those_who_fit(tmp_path):
    rules = "class folk name name he kind\n  Ann Eve = she girl\n  Bob = he boy\nlet z = folk\n"
    grammar = small_grammar(tmp_path, rules + "rule story: [3: a|the] {z.kind} {z}[|, {z.he}|2:.]")
    chances = {text: chance for text, chance in walks(grammar).items() if text.startswith("the")}
    expected = {"girl Ann": 1 / 3, "girl Eve": 1 / 3, "boy Bob": 1 / 3}
    assert chances.keys() >= {f"the {who}" for who in expected}
    assert all(isclose(chances[f"the {who}"], chance / 4 / 4) for who, chance in expected.items())
    assert isclose(sum(walks(grammar).values()), 1.0)


def test_pronouns_stand_in_the_grammar_only_as_mentions_of_somebody():
    source = Path(stories.__file__).with_name("stories.txt").read_text()
    plain = re.sub(r"\{.*?\}|#.*", "", source[source.index("rule story") :])
    assert not re.search(r"\b(he|she|his|him|her|hers)\b", plain, flags=re.IGNORECASE)


def test_two_variables_of_a_class_never_meet(tmp_path):
    grammar = small_grammar(tmp_path, "rule story: {x} and {y} saw {x}.")
    assert walks(grammar) == {"Tom and Tim saw Tom.": 0.5, "Tim and Tom saw Tim.": 0.5}


@pytest.mark.parametrize(("rules", "message"), [
    ("rule story: [a|b", "bracket"), ("rule story: a|b", "outside"), ("rule story: a]", "bracket"),
    ("rule story: <ru>", "calls no rule"), ("rule story: {z} ran", "unknown variable"),
    ("rul story: a", "header"),
])  # fmt: skip
def test_a_broken_grammar_file_says_what_is_wrong(rules, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small_grammar(tmp_path, rules)

"""A story grammar that can be walked at random, or followed letter by letter along a given text.

The grammar is data: `stories.txt` says in its first lines how it is written. Compiled, it is made
of four kinds of items. A *string* stands for itself. A *choice* has several ways to go on, each
with its chance. A *mention* speaks of somebody or something ("Lily", "she", "girl"): the first
one is free, and each mention narrows down who is meant, so that all later ones are decided. A
*mark* is silent and notes which plot begins.

A way through the grammar is called a derivation; its probability is the product of the chances
of its choices and mentions:

    p(derivation) = chance(first choice) * chance(second choice) * ...

`unfold` and `advance` follow all derivations at once from left to right, as somebody reads who
knows the grammar by heart: always with the exact odds of the next letter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# The signs of the grammar file: {a mention}, <a call>, brackets and bars, plain text. Then the forms
# of a mention that are pronouns, whatever the class.
TOKEN = re.compile(r"\{([^{}]+)\}|<([^<>]+)>|([\[\]|])|([^{}<>\[\]|]+)")
PRONOUN_FORMS = ("he", "him", "his")


@dataclass(frozen=True, eq=False)
class Choice:
    """Several ways to go on, and the chance of each."""

    options: tuple["Sequence", ...]
    chances: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Mark:
    """A silent note of the plot that begins here."""

    plot: str


@dataclass(frozen=True, eq=False)
class Mention:
    """A place where a variable is spoken of, in one of its forms.

    `forms` pairs each text with a bit mask of the members of the class that have it; `everyone` is
    the mask of the whole class; `rivals` are the other variables of that class, which are always
    somebody else; `kind` is what a reader would say had slipped: a name, a thing or a pronoun.
    """

    variable: int
    rivals: tuple[int, ...]
    everyone: int
    forms: tuple[tuple[str, int], ...]
    kind: str

    def readings(self, bound: tuple | list) -> list[tuple[str, int, float]]:
        """What can stand here: for each text, who may still be meant after it, and its chance."""
        # 1. Ask who may be meant. Zero says that nobody has spoken of this variable yet.
        mask = bound[self.variable] or self.everyone
        if mask & (mask - 1):
            mask = self._without_rivals(mask, bound)
        # 2. Split those members by the text they show here: a girl is still any girl, a name is one.
        size = mask.bit_count()
        hits = [(text, mask & members) for text, members in self.forms if mask & members]
        return [(text, hit, hit.bit_count() / size) for text, hit in hits]

    def _without_rivals(self, mask: int, bound: tuple | list) -> int:
        """The mask without the members that another variable already stands for."""
        for rival in self.rivals:
            if bound[rival].bit_count() == 1:
                mask &= ~bound[rival]
        return mask


# What a rule compiles to: its items, one after the other.
Sequence = tuple[str | Choice | Mark | Mention, ...]


class State(NamedTuple):
    """One derivation that agrees with the text so far, halted in front of its next letters.

    `text` is what it must say next, empty when its story is over; `stack` is what follows, nested as
    (sequence, index, the stack below); `bound` holds a mask for each variable and, last, the plot;
    `mention` is where `text` comes from, if it is a mention.
    """

    text: str
    stack: tuple | None
    bound: tuple
    chance: float
    mention: Mention | None


def unfold(stack: tuple | None, bound: tuple, chance: float) -> Iterator[State]:
    """Every way to go on from a stack, each halted at its next letter or at the end of the story."""
    # 1. Keep a list of unfinished derivations; an empty stack is the end of a story.
    todo = [(stack, bound, chance)]
    while todo:
        stack, bound, chance = todo.pop()
        if stack is None:
            yield State("", None, bound, chance, None)
        # 2. Step over the end of a sequence, back into the one that called it.
        elif stack[1] == len(stack[0]):
            todo.append((stack[2], bound, chance))
        # 3. Halt at text and at a mention, and open what has no text of its own.
        else:
            item, after = stack[0][stack[1]], (stack[0], stack[1] + 1, stack[2])
            if isinstance(item, str):
                yield State(item, after, bound, chance, None)
            # 4. Note a plot, and split at a choice: each option goes on with its own chance.
            elif isinstance(item, Mark):
                todo.append((after, (*bound[:-1], item.plot), chance))
            elif isinstance(item, Choice):
                ways = zip(item.options, item.chances, strict=True)
                todo += [((option, 0, after), bound, chance * p) for option, p in ways]
            # 5. Split at a mention, and remember in the bindings who can still be meant.
            else:
                for text, mask, p in item.readings(bound):
                    now = (*bound[: item.variable], mask, *bound[item.variable + 1 :])
                    yield State(text, after, now, chance * p, item)


def advance(states: list[State], letter: str) -> list[State]:
    """The states that survive when the next letter of the text is `letter`."""
    # 1. Drop the states that wait for another letter.
    survivors = []
    for state in states:
        if state.text.startswith(letter):
            # 2. Move on inside a text, and unfold what follows it where it is used up.
            if len(state.text) > 1:
                survivors.append(state._replace(text=state.text[1:]))
            else:
                survivors += unfold(state.stack, state.bound, state.chance)
    return survivors


class Grammar:
    """A compiled grammar: `story` is the sequence to walk, `empty` the bindings before the first word.

    `kinds` tells of each text that a mention can show whether it is a name, a thing or a pronoun;
    `plots` lists the plots in their order. Raises ValueError, quoting the line, for a broken file.
    """

    def __init__(self, path: Path) -> None:
        # 1. Start with empty tables.
        self.plots: list[str] = []
        self.kinds: dict[str, str] = {}
        self._classes: dict[str, tuple[str, list[dict[str, str]]]] = {}
        self._variables: dict[str, str] = {}
        # 2. Read the blocks, then compile everything that a story can reach.
        self._rules: dict[str, tuple[list[str], list[str]]] = {}
        self._sequences: dict[tuple, Sequence] = {}
        self._read(path.read_text(encoding="ascii"))
        self.empty = (0,) * len(self._variables) + (None,)
        self.story = self._rule("story", ())

    def texts(self) -> Iterator[str]:
        """Every piece of text in the grammar."""
        # 1. Keep the sequences still to look into, and the choices already met: callers share rules.
        todo, seen = [self.story], set()
        while todo:
            for item in todo.pop():
                # 2. Show strings, and all the texts of a mention.
                if isinstance(item, str):
                    yield item
                elif isinstance(item, Mention):
                    yield from (text for text, _ in item.forms)
                # 3. Queue what a choice leads to.
                elif isinstance(item, Choice) and item not in seen:
                    seen.add(item)
                    todo += item.options

    def _read(self, source: str) -> None:
        """Cut the file into blocks: a header, then the indented lines that belong to it."""
        # 1. Leave out what is for people, and end with a header that closes the last block.
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
        header, body = "", []
        for line in [*lines, "end"]:
            # 2. Collect the lines of a block; a new header closes it.
            if line.startswith(" "):
                body.append(line.strip())
                continue
            if header:
                self._block(*header.split(), body=body)
            # 3. Open the next block; a rule of one line has it behind a colon.
            header, _, text = line.partition(":")
            body = [text.strip()] if text else []

    def _block(self, word: str, name: str, *rest: str, body: list[str]) -> None:
        """Keep one block: a class, variables, a rule (its lines are alternatives) or a plot."""
        # 1. A class has a kind, columns and members; `let` gives variables their class.
        if word == "class":
            members = [member for line in body for member in self._members(rest[1:], line)]
            self._classes[name] = (rest[0], members)
        elif word == "let":
            self._variables.update((variable, rest[-1]) for variable in (name, *rest[:-2]))
        # 2. A rule is one of its lines; a plot is all of them, one after the other.
        elif word == "rule":
            self._rules[name] = (list(rest), body)
        elif word == "plot":
            self._rules[name] = (list(rest), ["".join(self._line(i, line) for i, line in enumerate(body))])
            self.plots.append(name)
        # 3. Refuse the rest: a misspelled header would lose its block.
        else:
            raise ValueError(f"unknown header {word!r} before {name!r}: use class, let, rule or plot")

    @staticmethod
    def _line(index: int, line: str) -> str:
        """A line of a plot with the space before it; a line that begins with ? is often left out."""
        space = " " if index else ""
        return f"[{space}{line[1:].strip()}|2:]" if line.startswith("?") else space + line

    @staticmethod
    def _members(columns: tuple[str, ...], line: str) -> Iterator[dict[str, str]]:
        """The members that a line of a class names, each with its forms.

        A name is written with _ for a space; its last word alone is the form `noun`.
        """
        # 1. Share the forms behind the = among all the names before it.
        names, _, forms = line.partition("=")
        shared = dict(zip(columns[1:], forms.split(), strict=True))
        for name in names.split():
            yield {columns[0]: name.replace("_", " "), "noun": name.split("_")[-1], **shared}

    def _rule(self, name: str, arguments: tuple[str, ...]) -> Sequence:
        """The compiled rule for these variables; equal calls share one object."""
        # 1. Look the call up, or find the rule and put the caller's variables in place of its own.
        key = (name, arguments)
        if key in self._sequences:
            return self._sequences[key]
        parameters, lines = self._rules.get(name, (None, []))
        if parameters is None or len(parameters) != len(arguments):
            raise ValueError(f"<{' '.join((name, *arguments))}> calls no rule: check its name and variables")
        # 2. Compile each line; note where a plot begins.
        names = dict(zip(parameters, arguments, strict=True))
        body = self._choice([self._compile(line, names) for line in lines])
        self._sequences[key] = (Mark(name), *body) if name in self.plots else body
        return self._sequences[key]

    @staticmethod
    def _choice(options: list[tuple[float, Sequence]]) -> Sequence:
        """A sequence that goes on in one of several ways, or in the only way there is."""
        total = sum(weight for weight, _ in options)
        choice = Choice(tuple(way for _, way in options), tuple(weight / total for weight, _ in options))
        return options[0][1] if len(options) == 1 else (choice,)

    def _compile(self, line: str, names: dict[str, str]) -> tuple[float, Sequence]:
        """The weight and the items of a line; brackets hold choices, braces mentions, angles calls."""
        # 1. Keep a list of alternatives for each open bracket, and under them all the line itself.
        levels: list[list[tuple[float, list]]] = [[(1.0, [])]]
        for mention, call, sign, text in TOKEN.findall(line):
            weight, items = levels[-1][-1]
            # 2. Add a mention, or the items of the called rule with its variables renamed.
            if mention:
                items.append(self._mention(mention, names))
            elif call:
                rule, *arguments = call.split()
                items += self._rule(rule, tuple(names.get(a, a) for a in arguments))
            # 3. Open a bracket, or go on to its next alternative.
            elif sign == "[":
                levels.append([(1.0, [])])
            elif sign == "|":
                levels[-1].append((1.0, []))
            # 4. Close a bracket: its alternatives become one choice.
            elif sign and len(levels) > 1:
                options = [(w, tuple(way)) for w, way in levels.pop()]
                levels[-1][-1][1].extend(self._choice(options))
            # 5. Add text; a number and a colon in front are the weight of the alternative.
            elif text:
                number, rest = re.fullmatch(r"(?:(\d+): ?)?(.*)", text).groups() if not items else ("", text)
                levels[-1][-1] = (float(number or weight), items)
                items += [rest] if rest else []
        # 6. Refuse brackets that do not pair up.
        if line.count("[") != line.count("]") or len(levels[0]) > 1:
            raise ValueError(f"{line!r}: a bracket has no partner, or a | stands outside of brackets")
        return levels[0][0][0], tuple(levels[0][0][1])

    def _mention(self, words: str, names: dict[str, str]) -> Mention:
        """A mention from its braces: `hero`, `hero.he`, or with a capital letter `hero.He`."""
        # 1. Find the variable and its class; the plain form is the first column.
        name, _, form = words.partition(".")
        variable = names.get(name, name)
        if variable not in self._variables:
            raise ValueError(f"{{{words}}} mentions an unknown variable: declare it with let")
        kind, members = self._classes[self._variables[variable]]
        # 2. Group the members by what they show.
        form, masks = form or next(iter(members[0])), {}
        for bit, member in enumerate(members):
            text = member[form.lower()]
            text = text[0].upper() + text[1:] if form[0].isupper() else text
            masks[text] = masks.get(text, 0) | 1 << bit
        # 3. Remember the kind for diagnoses: a pronoun is one whoever it stands for.
        kind = "pronoun" if form.lower() in PRONOUN_FORMS else kind
        self.kinds.update((text, kind) for text in masks if text not in self.kinds)

        # 4. List the rivals: variables of one class must never share a member.
        order, of_class = list(self._variables), self._variables[variable]
        rivals = (i for i, v in enumerate(order) if v != variable and self._variables[v] == of_class)
        everyone = (1 << len(members)) - 1
        return Mention(order.index(variable), tuple(rivals), everyone, tuple(masks.items()), kind)

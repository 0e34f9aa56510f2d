"""A story grammar that can be walked at random, or followed letter by letter along a given text.

The grammar is data: `stories.txt` says in its first lines how it is written. Compiled, it is made
of three kinds of items. A *string* stands for itself. A *choice* has several ways to go on, each
with its chance. A *mention* speaks of somebody or something ("Lily", "she", "girl"): the first
one is free, and each mention narrows down who is meant, so that all later ones are decided.

A way through the grammar is called a derivation; its probability is the product of the chances
of its choices and mentions. `unfold` follows all derivations at once from left to right, which is
how a reader who knows the grammar by heart would read: always with the exact odds of what comes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

    `forms` pairs each text with a bit mask of the members of the class that have it; `everyone` is the
    mask of the whole class; `rivals` are the other variables of that class, which are always
    somebody else.
    """

    variable: int
    rivals: tuple[int, ...]
    everyone: int
    forms: tuple[tuple[str, int], ...]
    kind: str

    def readings(self, bound: tuple) -> list[tuple[str, int, float]]:
        """What can stand here: (text, who may still be meant afterwards, chance) for each text."""
        # 1. Ask who may be meant. Zero says that nobody has spoken of this variable yet.
        mask = bound[self.variable] or self.everyone
        if mask & (mask - 1):
            mask = self._without_rivals(mask, bound)
        # 2. Split those members by the text they show here: a girl is still every girl, a name is one.
        size = mask.bit_count()
        hits = [(text, mask & members) for text, members in self.forms if mask & members]
        return [(text, hit, hit.bit_count() / size) for text, hit in hits]

    def _without_rivals(self, mask: int, bound: tuple) -> int:
        """The mask without the members that another variable already stands for."""
        for rival in self.rivals:
            if bound[rival].bit_count() == 1:
                mask &= ~bound[rival]
        return mask


Sequence = tuple[str | Choice | Mark | Mention, ...]


class State(NamedTuple):
    """One derivation that agrees with the text so far, halted in front of its next letters."""

    text: str  # what it must say next; empty when its story is over
    stack: tuple | None  # what follows: (sequence, index, the stack below)
    bound: tuple  # a mask for each variable and, last, the name of the plot
    chance: float
    mention: Mention | None  # where `text` comes from, if it is a mention


def unfold(stack: tuple | None, bound: tuple, chance: float) -> Iterator[State]:
    """Every way to go on from a stack, each halted at its next letter or at the end of the story."""
    todo = [(stack, bound, chance)]
    while todo:
        # 1. Take the next pending item; an empty stack is the end of a story.
        stack, bound, chance = todo.pop()
        if stack is None:
            yield State("", None, bound, chance, None)
            continue
        # 2. Step over the end of a sequence, back into the one that called it.
        sequence, index, below = stack
        if index == len(sequence):
            todo.append((below, bound, chance))
            continue
        # 3. Halt at text, split at a choice, remember a plot.
        item, after = sequence[index], (sequence, index + 1, below)
        if isinstance(item, str):
            yield State(item, after, bound, chance, None)
        elif isinstance(item, Choice):
            todo += [((option, 0, after), bound, chance * p) for option, p in zip(item.options, item.chances)]
        # 4. Note the plot, or name a member of a class; from here on the bindings remember it.
        elif isinstance(item, Mark):
            todo.append((after, (*bound[:-1], item.plot), chance))
        else:
            for text, mask, p in item.readings(bound):
                now = (*bound[: item.variable], mask, *bound[item.variable + 1 :])
                yield State(text, after, now, chance * p, item)


def advance(states: list[State], letter: str) -> list[State]:
    """The states that survive when the next letter of the text is `letter`."""
    survivors = []
    for state in states:
        # 1. Drop what expected another letter; open the next item where one is used up.
        if state.text[:1] != letter:
            continue
        if len(state.text) > 1:
            survivors.append(state._replace(text=state.text[1:]))
        else:
            survivors += unfold(state.stack, state.bound, state.chance)
    return survivors


class Grammar:
    """A compiled grammar: `story` is the sequence to walk, `empty` the bindings before the first word.

    `kinds` tells of each text that a mention can show whether it is a name, a thing or a pronoun;
    `plots` lists the plots in their order. Raises ValueError, naming the line, for a broken file.
    """

    def __init__(self, path: Path) -> None:
        self.plots: list[str] = []
        self.kinds: dict[str, str] = {}
        self._classes: dict[str, tuple[str, list[dict[str, str]]]] = {}
        self._variables: dict[str, str] = {}
        self._rules: dict[str, tuple[list[str], list[str]]] = {}
        self._sequences: dict[tuple, Sequence] = {}
        self._read(path.read_text(encoding="ascii"))
        self.empty = (0,) * len(self._variables) + (None,)
        self.story = self._rule("story", ())

    def texts(self) -> Iterator[str]:
        """Every piece of text in the grammar, as often as it stands there."""
        seen, todo = set(), [self.story]
        while todo:
            # 1. Look into each item once: rules are shared by many callers.
            for item in todo.pop():
                if isinstance(item, str):
                    yield item
                elif isinstance(item, Mention):
                    yield from (text for text, _ in item.forms)
                elif isinstance(item, Choice) and item not in seen:
                    # 2. Queue what a choice can lead to.
                    seen.add(item)
                    todo += item.options

    def _read(self, source: str) -> None:
        """Fill the tables from the file: a header line, then indented lines that belong to it."""
        header, body = "", []
        for line in [*source.splitlines(), "end"]:
            # 1. Collect the indented lines; comments and empty lines are for people.
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith(" "):
                body.append(line.strip())
                continue
            # 2. A new header closes the block before it.
            if header:
                self._block(header.split(), body)
            header, _, text = line.partition(":")
            body = [text.strip()] if text else []

    def _block(self, header: list[str], body: list[str]) -> None:
        """Keep one block: a class, a variable, a rule (its lines are alternatives) or a plot."""
        # 1. Members of a class: their names, then the forms that they share.
        word, name, rest = header[0], header[1], header[2:]
        if word == "class":
            self._classes[name] = (rest[0], [m for line in body for m in self._members(rest[1:], line)])
        elif word == "let":
            self._variables.update((variable, rest[-1]) for variable in header[1:-2])
        # 2. A plot is told line by line; a rule needs one of its lines.
        elif word in ("plot", "lines"):
            self._rules[name] = (rest, ["".join(self._line(i, line) for i, line in enumerate(body))])
            self.plots += [name] if word == "plot" else []
        elif word == "rule":
            self._rules[name] = (rest, body)
        else:
            raise ValueError(f"stories.txt: unknown header {word!r}; use class, let, rule, lines or plot")

    @staticmethod
    def _line(index: int, line: str) -> str:
        """A line of a plot with the space before it; a line that begins with ? may be left out."""
        space = " " if index else ""
        return f"[{space}{line[1:].strip()}|]" if line.startswith("?") else space + line

    @staticmethod
    def _members(columns: list[str], line: str) -> list[dict[str, str]]:
        """The members that a line of a class names, each with its forms."""
        names, _, forms = line.partition("=")
        shared = dict(zip(columns[1:], forms.split(), strict=True))
        return [{columns[0]: n.replace("_", " "), "noun": n.split("_")[-1], **shared} for n in names.split()]

    def _rule(self, name: str, arguments: tuple[str, ...]) -> Sequence:
        """The compiled rule for these variables; the same call always gives the same object."""
        # 1. Compile a call once: equal calls share their items, so the grammar stays small.
        key = (name, arguments)
        if key not in self._sequences:
            if name not in self._rules or len(self._rules[name][0]) != len(arguments):
                raise ValueError(f"stories.txt: no rule <{' '.join((name, *arguments))}>; check its name and variables")
            # 2. Put the caller's variables in place of the rule's own, and mark a plot's beginning.
            parameters, lines = self._rules[name]
            names = dict(zip(parameters, arguments))
            body = self._choice([self._compile(*self._weighted(line), names) for line in lines])
            self._sequences[key] = (Mark(name), *body) if name in self.plots else body
        return self._sequences[key]

    @staticmethod
    def _weighted(line: str) -> tuple[float, str]:
        """The weight and the text of an alternative: `3: text` is three times as likely as `text`."""
        weight = re.match(r"(\d+): ?", line)
        return (float(weight[1]), line[weight.end() :]) if weight else (1.0, line)

    @staticmethod
    def _choice(options: list[tuple[float, Sequence]]) -> Sequence:
        """A sequence that goes on in one of several ways."""
        total = sum(weight for weight, _ in options)
        choice = Choice(tuple(s for _, s in options), tuple(weight / total for weight, _ in options))
        return options[0][1] if len(options) == 1 else (choice,)

    def _compile(self, weight: float, line: str, names: dict[str, str]) -> tuple[float, Sequence]:
        """The items of one line; brackets hold choices, braces mentions, angles calls of rules."""
        # 1. Keep a stack of open brackets; each holds its finished alternatives and the current one.
        open_choices: list[tuple[list, float]] = []
        items: list = []
        for mention, call, sign, text in TOKEN.findall(line):
            if mention:
                items.append(self._mention(mention, names))
            elif call:
                # 2. A call hands its variables on under the names that the rule uses.
                rule, *arguments = call.split()
                items += self._rule(rule, tuple(names.get(a, a) for a in arguments))
            elif sign == "[":
                open_choices.append(([], items, weight))
                weight, items = 0.0, []
            elif sign:
                # 3. A bar or a closing bracket ends an alternative.
                open_choices[-1][0].append((weight or 1.0, tuple(items)))
                weight, items = 0.0, []
                if sign == "]":
                    options, items, weight = open_choices.pop()
                    items += self._choice(options)
            else:
                # 4. A weight stands at the very beginning of an alternative in brackets.
                if not items and not weight:
                    weight, text = self._weighted(text)
                items += [text] if text else []
        return weight, tuple(items)

    def _mention(self, words: str, names: dict[str, str]) -> Mention:
        """A mention from its braces: `hero`, `hero.he`, or with a capital letter `hero.He`."""
        # 1. Find the variable, its class and the form; the class's first column is the plain one.
        name, _, form = words.partition(".")
        variable = names.get(name, name)
        if variable not in self._variables:
            raise ValueError(f"stories.txt: {{{words}}} speaks of an unknown variable; declare it with let")
        kind, members = self._classes[self._variables[variable]]
        form = form or next(iter(members[0]))
        # 2. Group the members by what they show, in the order of the file.
        masks: dict[str, int] = {}
        for bit, member in enumerate(members):
            shown = member[form.lower()]
            shown = shown[0].upper() + shown[1:] if form[0].isupper() else shown
            masks[shown] = masks.get(shown, 0) | 1 << bit
        # 3. Remember the kind for diagnoses; a pronoun is a pronoun whoever it stands for.
        kind = "pronoun" if form.lower() in PRONOUN_FORMS else kind
        for shown in masks:
            self.kinds.setdefault(shown, kind)
        order = list(self._variables)
        rivals = [i for i, v in enumerate(order) if v != variable and self._variables[v] == self._variables[variable]]
        everyone = (1 << len(members)) - 1
        return Mention(order.index(variable), tuple(rivals), everyone, tuple(masks.items()), kind)

"""A tokenizer.json taken apart: what Hugging Face's file says about cutting text, as far as it changes ids.

    added_tokens     texts that are one token each, such as <|endoftext|>
    normalizer       how a text is changed on its way in
    pre_tokenizer    where it is cut into words, which no merge crosses
    model            the tokens with their ids, and the merges in their order
    post_processor   what stands before every text

A token is a string of bytes, and JSON holds only text. GPT-2's answer writes each byte as one visible letter: " the"
is "Ġthe", and "é" is "Ã©". A file whose tokens are written so starts from bytes; SentencePiece's kind, that of Llama
2's files, starts from characters, with other rules for the space, and is refused.
"""

import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import regex

from engine.config import read_object
from engine.safetensors import REMEDY

# GPT-2's rule for where words end: endings such as 's; then letters, digits, or marks, each with the one space before
# them; then spaces, of which the last is left to the word that follows. Every ByteLevel step has it built in.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# How often a rule for cutting may repeat something, all its repeats multiplied. Published rules need fewer than ten.
MOST_REPEATS = 10_000

# The letter of each byte: those that print stay, the others (space, newline, halves of characters) borrow letters
# from number 256 on, in their order.
_HIDDEN = [byte for byte in range(256) if byte == 32 or not chr(byte).isprintable()]
BYTE_OF = {chr(256 + _HIDDEN.index(byte)) if byte in _HIDDEN else chr(byte): byte for byte in range(256)}


@dataclass(frozen=True)
class Parts:
    """All that a file says that changes ids.

        id_of           the id of each ordinary token, by its bytes; all single bytes are there
        merges          for two ids that may be glued, how late (the lowest goes first) and what they become
        special_tokens  texts that are found before anything is cut, with their ids
        rules           where words end; each rule cuts what the one before it has left whole
        compose         whether an accent that stands alone is first joined to its letter (Unicode's form NFC)
        take_at_once    whether a word that is a token is taken as it is, without looking at merges
        start_ids       what stands before every text; None where the file says nothing of it
    """

    id_of: dict[bytes, int]
    merges: dict[tuple[int, int], tuple[int, int]]
    special_tokens: dict[str, int]
    rules: list[regex.Pattern]
    compose: bool
    take_at_once: bool
    start_ids: list[int] | None


def read_tokenizer_json(path: str | Path) -> Parts:
    """Return what a `tokenizer.json` says.

    Raises FileNotFoundError where there is none, and ValueError in one line for whatever is broken or asks for what
    is not known here.
    Source: the file's format is that of the `tokenizers` library.
    """
    # 1. Turn every way in which it can be wrong into one line with its name.
    content = read_object(Path(path))
    try:
        return _read_parts(content)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is no tokenizer.json ({type(error).__name__} {error}); {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


def _read_parts(content: dict) -> Parts:
    """Return the parts of a parsed file; what is wrong raises an error."""
    # 1. Refuse what would give other ids here, and know the steps before the gluing.
    _check_kind(content)
    rules, compose, model = _rules(content["pre_tokenizer"]), _composes(content.get("normalizer")), content["model"]

    # 2. Read tokens. Special ones may be listed among the others too, and are no byte strings.
    special = {name: _token_id(number) for name, number in _added(content, compose).items()}
    ids = {name: _token_id(number) for name, number in model["vocab"].items() if name not in special}
    id_of = {_to_bytes(name): number for name, number in ids.items()}
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"two of its tokens have the same id; {REMEDY}")

    # 3. See that every text has ids: it may need each of the single bytes.
    if missing := [byte for byte in range(256) if bytes([byte]) not in id_of]:
        raise ValueError(f"it has no token for byte {missing[0]}: byte-level BPE needs all 256")

    # 4. Read merges, and what stands before every text.
    take_at_once, merges = bool(model.get("ignore_merges")), _merges(model["merges"], ids)
    return Parts(id_of, merges, special, rules, compose, take_at_once, _start_ids(content))


def _merges(listed: list, ids: dict[str, int]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return for two ids that may be glued how late that is, and what they become."""
    # 1. Take a merge apart. Older files write it as a text with a space between, newer ones as a list.
    merges = {}
    for rank, merge in enumerate(listed):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        # 2. Look up its tokens. Only ordinary ones can be glued.
        if odd := [part for part in (left, right, left + right) if part not in ids]:
            raise ValueError(f"a merge names {ascii(odd[0])[:40]}, which is none of its tokens; {REMEDY}")
        merges[ids[left], ids[right]] = rank, ids[left + right]
    return merges


def _to_bytes(letters: str) -> bytes:
    """Return the token that is written with one visible letter for each byte: "Ġthe" is b" the"."""
    try:
        return bytes(map(BYTE_OF.__getitem__, letters))
    except KeyError as error:
        raise ValueError(f"its token {letters[:40]!r} holds {error}, which is no byte: use byte-level BPE") from None


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


def _composes(step: dict | None) -> bool:
    """Return whether a text is put into the form NFC on its way in; raise ValueError for any other change to it."""
    steps = step["normalizers"] if step and step["type"] == "Sequence" else [step] if step else []
    kinds = [step["type"] for step in steps]
    if set(kinds) - {"NFC"}:
        raise ValueError(f"it changes text by {ascii(kinds)[:80]}, and only NFC is known here")
    return bool(kinds)


def _rules(step: dict) -> list[regex.Pattern]:
    """Return the rules by which a file cuts text into words, in the order in which they are applied.

    The last step is the one that turns letters into bytes, with GPT-2's rule in it unless the file says otherwise.
    Before it, a Split cuts by a rule of the file's own, and Digits takes digits apart.
    """
    # 1. See one step as a list of one.
    *steps, last = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        raise ValueError("it does not end in a ByteLevel step without add_prefix_space: that is all that is known here")

    # 2. Compile the rules of the others, and the built-in one.
    built_in = [GPT2_PATTERN] if last.get("use_regex", True) else []
    try:
        return [regex.compile(rule) for rule in [*map(_rule, steps), *built_in]]
    except regex.error as error:
        raise ValueError(f"one of its rules for cutting is no regular expression: {error}") from None


def _rule(step: dict) -> str:
    """Return the regular expression of one step. Only steps that keep every match as a piece of its own are known."""
    # 1. Take digits apart, each from the next or only from the letters beside them.
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"

    # 2. Cut by an expression, or by a text as it stands.
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        own = step["pattern"]
        return _bounded(own["Regex"]) if "Regex" in own else regex.escape(own["String"])
    raise ValueError(f"its step {ascii(step)[:80]} cuts text by rules that are not known here")


def _bounded(rule: str) -> str:
    """Return a regular expression as it is, unless it repeats something so often that compiling it takes gigabytes.

    The library writes a{1000} out a thousand times, and a repeat within a repeat as often as both together.
    """
    counts = [int(number) for braces in regex.findall(r"{[^}]*}", rule) for number in regex.findall(r"[0-9]+", braces)]
    if math.prod(filter(None, counts)) > MOST_REPEATS:
        raise ValueError(f"its rule {ascii(rule)[:40]} repeats something more than {MOST_REPEATS} times; {REMEDY}")
    return rule


def _added(content: dict, compose: bool) -> dict[str, object]:
    """Return the tokens that a file adds to the others; raise ValueError for one that is found otherwise here.

    Such are tokens that swallow the spaces beside them, that count only as whole words, or that are looked for only
    after a text has been changed.
    """
    # 1. Look at the flags. A file of an older version may leave some out, which says no.
    flags = ["single_word", "lstrip", "rstrip"] + ["normalized"] * compose
    for entry in (entries := content.get("added_tokens") or []):
        name = entry["content"]
        if found := [flag for flag in flags if entry.get(flag)]:
            raise ValueError(f"its token {ascii(name)[:40]} asks for {found[0]}, which is not known here")
        # 2. Refuse an empty text: it would be found everywhere.
        if not isinstance(name, str) or not name:
            raise ValueError(f"it adds a token called {ascii(name)[:40]}, which is no text")
    return {entry["content"]: entry["id"] for entry in entries}


def _start_ids(content: dict) -> list[int] | None:
    """Return the ids that a file puts before every text, None where it says nothing of it."""
    # 1. List the steps behind the encoding.
    last = content.get("post_processor") or {}
    steps = last["processors"] if last.get("type") == "Sequence" else [last]

    # 2. Find the template: marks, the text, marks.
    templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
    if not templates:
        return None

    # 3. Read up to the text itself. What follows it would end it, and a prompt shall go on.
    before = takewhile(lambda piece: "Sequence" not in piece, templates[0]["single"])
    names = [piece["SpecialToken"]["id"] for piece in before]
    return [_token_id(number) for name in names for number in templates[0]["special_tokens"][name]["ids"]]

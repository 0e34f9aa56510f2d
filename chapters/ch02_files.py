"""Tokenizers on disk: the `tokenizer.json` of Hugging Face, and the vocabularies that tiktoken publishes.

A token is a string of bytes, and JSON holds only text. GPT-2's answer, which everybody kept, writes each
byte as one visible letter: the 188 bytes that already print as themselves stay, and the other 68 (space,
newline, halves of characters) borrow letters from number 256 on.

    b" the"  ->  "Ġthe"          b"\\n"  ->  "Ċ"          "é" = b"\\xc3\\xa9"  ->  "Ã©"

`BPETokenizer.save`, `.load` and `.from_tiktoken` call what is here. A file from elsewhere is believed in
nothing: whatever is missing, damaged or of another kind ends in one line that names the file and the rule.
"""

import dataclasses
import json
import math
from itertools import pairwise, takewhile
from pathlib import Path

import tiktoken

from chapters.ch02_merges import Pair, glue
from chapters.ch02_splitting import DIGITS_PATTERN, GPT2_PATTERN
from chapters.ch02_writing import replacing


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a tokenizer is made of, and all that is read from a file; nothing else in one changes the ids.

        vocab, merges    tokens by id, and the pairs that were glued
        special_tokens   texts that stand for no text, with their ids
        pattern          where words are cut
        compose          whether an accent that stands alone is first joined to its letter (Unicode's form NFC)
        ignore_merges    whether a word that is a token is taken at once, without looking at merges
        start_ids        what stands before every text; None: the end of the text before, if there is such a mark
    """

    vocab: dict[int, bytes]
    merges: list[Pair]
    special_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    pattern: str = GPT2_PATTERN
    compose: bool = False
    ignore_merges: bool = True
    start_ids: list[int] | None = None


# The letter of each byte, and back. A space prints, but as nothing, so it is counted among the hidden ones.
_PRINTABLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_LETTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE = {letter: byte for byte, letter in _LETTER.items()}


def bytes_to_letters(token: bytes) -> str:
    """Return a token as visible letters, one for each byte: b" the" becomes "Ġthe".

    `json` and every editor can hold them, whatever bytes the token has.
    """
    return "".join(_LETTER[byte] for byte in token)


def letters_to_bytes(letters: str) -> bytes:
    """Return the token that `bytes_to_letters` wrote.

    Raises ValueError for a letter that stands for no byte, as in the files of SentencePiece tokenizers.
    """
    try:
        return bytes(_BYTE[letter] for letter in letters)
    except KeyError as error:
        raise ValueError(f"token {letters!r} holds {error}, which is no byte: use byte-level BPE") from None


def write_tokenizer_json(path: Path, parts: Parts) -> Path:
    """Write `tokenizer.json` to a path that ends in .json, or into a folder with its config; return its path.

    The folder's `tokenizer_config.json` tells `AutoTokenizer` which class to take and which token is the
    end. The files are replaced whole, so a reader never meets half of one.
    """
    # 1. List the tokens in the order of their ids. Special ones stand among them as they are: the library would
    # give ids of its own choice to those that do not.
    specials = {number: name for name, number in parts.special_tokens.items()}
    letters = {number: bytes_to_letters(token) for number, token in parts.vocab.items()} | specials
    vocab = {letters[number]: number for number in sorted(letters)}

    # 2. Add the merges. `ignore_merges` takes a word that is a token at once.
    pairs = [[bytes_to_letters(left), bytes_to_letters(right)] for left, right in parts.merges]
    model = {"type": "BPE", "ignore_merges": parts.ignore_merges, "vocab": vocab, "merges": pairs}

    # 3. Describe special tokens: found anywhere, and nothing around them is touched.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for number, name in specials.items()]

    # 4. Say how text is cut. The byte step knows GPT-2's pattern; any other one goes before it.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cutting: dict = byte_level
    if parts.pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": parts.pattern}, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}

    # 5. Write the file. The bytes go back to text on the way out.
    target = path if path.suffix == ".json" else path / "tokenizer.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    steps = {"normalizer": {"type": "NFC"} if parts.compose else None, "pre_tokenizer": cutting}
    steps |= {"post_processor": _template(parts.start_ids, specials), "decoder": byte_level}
    _write_json(target, {"version": "1.0", "added_tokens": added, **steps, "model": model})

    # 6. Add what AutoTokenizer asks a folder for. Cleaning up spaces would break the round trip.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ends = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in parts.special_tokens else {}
    if path.suffix != ".json":
        _write_json(path / "tokenizer_config.json", {**config, **ends})
    return target


def _template(start_ids: list[int] | None, specials: dict[int, str]) -> dict | None:
    """Return what a file says about tokens before every text; None where it leaves that to its readers."""
    # 1. Name the tokens in order, then the text, which the format calls A.
    if start_ids is None:
        return None
    names = {specials[number]: number for number in start_ids}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    text = {"Sequence": {"id": "A", "type_id": 0}}

    # 2. Give their ids once more: so the format wants it. It also asks how a pair of texts is joined, which
    # nobody does here: as two texts.
    tokens = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()}
    pair = [*single, text, *single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [*single, text], "pair": pair, "special_tokens": tokens}


def _write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all.

    Letters such as Ġ are written as they are, so that the file can be read by eye.
    """
    with replacing(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))


def read_json(path: Path) -> tuple[Path, dict]:
    """Return the path and the contents of a `tokenizer.json`, or of the one in a folder.

    Raises FileNotFoundError where there is none, and ValueError where it is no JSON object.
    """
    # 1. Find the file. A missing one is named in full.
    target = path if path.suffix == ".json" else path / "tokenizer.json"
    if not target.is_file():
        raise FileNotFoundError(f"{target} does not exist: give a folder that holds a tokenizer.json")

    # 2. Read it.
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{target} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{target} is no tokenizer.json: it has no object called model")
    return target, content


def read_tokenizer_json(path: Path) -> Parts:
    """Return the parts of the tokenizer in a `tokenizer.json`, or in the one of a folder.

    Raises FileNotFoundError where there is none, and ValueError in one line for whatever is damaged or is
    no byte-level BPE. Whether the parts fit together, BPETokenizer checks.
    Source: the file's format is that of the `tokenizers` library.
    """
    # 1. Take the file apart, and turn every way in which it can be wrong into one line with its name.
    target, content = read_json(path)
    try:
        return _parts_of(content)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{target} is no tokenizer.json ({type(error).__name__} {error})") from None
    except ValueError as error:
        raise ValueError(f"{target} cannot be read: {error}") from None


def _parts_of(content: dict) -> Parts:
    """Return the parts of a parsed `tokenizer.json`; what is wrong raises an error.

    Only what changes ids is looked at, so files of older and newer versions can be read.
    """
    # 1. Refuse what would give other ids here: other models, other gluing.
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is {model['type']!r}, and only byte-level 'BPE' is read here")
    odd = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    if found := {key: model[key] for key in odd if model.get(key)}:
        raise ValueError(f"it asks for {found}, which this tokenizer does not have: use its own library")

    # 2. Know the one change to the text on its way in that is made here.
    compose = content.get("normalizer") == {"type": "NFC"}
    if content.get("normalizer") and not compose:
        raise ValueError(f"it changes text by {content['normalizer']}, which this tokenizer does not")

    # 3. Read tokens. Special ones may be listed among the others too, and are no byte strings.
    special = {str(entry["content"]): _whole(entry["id"]) for entry in _added(content, compose)}
    ordinary = {token: _whole(number) for token, number in model["vocab"].items() if token not in special}
    vocab = {number: letters_to_bytes(letters) for letters, number in ordinary.items()}
    if len(vocab) < len(ordinary):
        raise ValueError("two of its tokens have the same id: save it again")

    # 4. Read merges. Older files write one as a text with a space between the parts, newer ones as a list:
    # a token of a file's own making may hold a space, though no byte is written as one.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(letters_to_bytes(left), letters_to_bytes(right)) for left, right in pairs]
    pattern, whole = _pattern_of(content["pre_tokenizer"]), bool(model.get("ignore_merges"))
    return Parts(vocab, merges, special, pattern, compose, whole, read_start_ids(content))


def _added(content: dict, compose: bool) -> list[dict]:
    """Return the entries of a file's special tokens; raise ValueError for one that is found otherwise here.

    Such are tokens that swallow the spaces beside them, that count only as whole words, or that are looked for
    only once accents have been joined.
    """
    # 1. Look at the flags. A file of an older version may leave some out, which says no.
    entries = content.get("added_tokens") or []
    for entry in entries:
        flags = ["single_word", "lstrip", "rstrip"] + ["normalized"] * compose
        if found := [flag for flag in flags if entry.get(flag)]:
            raise ValueError(f"its token {entry['content']!r} asks for {found[0]}, which is not known here")
    return entries


def read_start_ids(content: dict) -> list[int] | None:
    """Return the ids that a parsed `tokenizer.json` puts before every text, None where it says nothing of it.

    Llama's files do: a text begins with <|begin_of_text|>, or with <s>.
    """
    # 1. List the steps behind the encoding. One of them may be a template: marks, the text, marks.
    last = content.get("post_processor") or {}
    steps = last["processors"] if last.get("type") == "Sequence" else [last]

    # 2. Find the template. Without one, the file leaves it to its readers how a text begins.
    templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
    if not templates:
        return None

    # 3. Read up to the text itself. What follows it would end it, and a prompt shall go on.
    before = takewhile(lambda piece: "Sequence" not in piece, templates[0]["single"])
    names = [piece["SpecialToken"]["id"] for piece in before]
    return [_whole(number) for name in names for number in templates[0]["special_tokens"][name]["ids"]]


def _whole(number: object) -> int:
    """Return an id, which must be a whole number from 0 on.

    To Python, True is a number too; to a reader of files it is a mistake.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no token id: ids are whole numbers from 0 on")
    return number


def _pattern_of(cutting: dict) -> str:
    """Return the split pattern that a pre-tokenizer stands for.

    Three kinds are known: the byte step alone, which has GPT-2's pattern built in; the same behind a step that
    takes digits apart, as in SmolLM2's files; and a pattern of the file's own before a byte step without one,
    as in those of Llama 3 and Qwen. All others raise ValueError.
    """
    # 1. See one step as a list of one.
    steps = cutting["pretokenizers"] if cutting["type"] == "Sequence" else [cutting]
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise ValueError("it adds a space before the text, so a round trip would not give the text back")

    # 2. Know the byte step with its own pattern, alone or behind single digits.
    built_in = kinds[-1:] == ["ByteLevel"] and steps[-1].get("use_regex", True)
    if built_in and kinds == ["ByteLevel"]:
        return GPT2_PATTERN
    if built_in and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return DIGITS_PATTERN

    # 3. Take the pattern before it, if each match is one piece and nothing is thrown away.
    own = kinds == ["Split", "ByteLevel"] and not built_in
    if own and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
        return str(steps[0]["pattern"]["Regex"])
    raise ValueError(f"its pre-tokenizer {kinds} cuts text by rules that this tokenizer does not know")


def read_tiktoken(name: str) -> Parts:
    """Return the parts of a vocabulary that tiktoken publishes under a name.

    tiktoken keeps ranks, not merges: a token's rank says when it was made, and not of what.
    Raises ValueError for an unknown name, ConnectionError where it is neither kept on disk nor reachable.
    """
    # 1. Ask tiktoken, which looks into the folder TIKTOKEN_CACHE_DIR before it asks the network.
    if name not in (names := tiktoken.list_encoding_names()):
        raise ValueError(f"unknown vocabulary {name!r}: choose one of {', '.join(names)}")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:
        raise ConnectionError(
            f"vocabulary {name!r} is not on this disk and cannot be downloaded ({type(error).__name__}): "
            "fetch it once with TIKTOKEN_CACHE_DIR set to a folder, or load a tokenizer.json instead"
        ) from None

    # 2. Find each token's merge, which such a file leaves out.
    ranks = encoding._mergeable_ranks
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [_last_merge(token, ranks) for token in longer]
    vocab = {rank: token for token, rank in ranks.items()}
    return Parts(vocab, merges, dict(encoding._special_tokens), encoding._pat_str)


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> Pair:
    """Return the two parts that a token was made of.

    Glue its bytes, earliest token first, until two parts are left: the last merge joined these.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        earliest = min(pairwise(parts), key=lambda pair: ranks.get(pair[0] + pair[1], math.inf))
        parts = glue(parts, earliest)
    return parts[0], parts[1]

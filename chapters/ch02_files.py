"""Tokenizers on disk: the `tokenizer.json` that Hugging Face reads, and the vocabularies that tiktoken publishes.

A token is a string of bytes, and JSON holds only text. GPT-2's answer, which everybody kept, writes each
byte as one visible letter: the 188 bytes that already print as themselves stay, and the other 68 (space,
newline, halves of characters) borrow letters from number 256 on. A space becomes Ġ, a newline Ċ.
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import tiktoken

from chapters.ch02_merges import Pair, glue
from chapters.ch02_splitting import GPT2_PATTERN

Parts = tuple[dict[int, bytes], list[Pair], dict[str, int], str]

_PRINTABLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_LETTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE = {letter: byte for byte, letter in _LETTER.items()}


def bytes_to_letters(token: bytes) -> str:
    """Return a token as visible letters, one for each byte: b" the" becomes "Ġthe"."""
    return "".join(_LETTER[byte] for byte in token)


def letters_to_bytes(letters: str) -> bytes:
    """Return the token that `bytes_to_letters` wrote. Raises ValueError for a letter that stands for no byte."""
    try:
        return bytes(_BYTE[letter] for letter in letters)
    except KeyError as error:
        raise ValueError(f"token {letters!r} holds {error}, which stands for no byte: not a byte-level file") from None


def write_tokenizer_json(
    path: Path, ids: dict[bytes, int], merges: list[Pair], special_tokens: dict[str, int], pattern: str
) -> Path:
    """Write `tokenizer.json` at a path that ends in .json, or in a folder together with its config; return its path."""
    # 1. Say how text is cut. The byte step has GPT-2's pattern built in; any other goes before it.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cutting: dict = byte_level
    if pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}

    # 2. Write tokens as letters, in the order of their ids. `ignore_merges` takes a word that is a token at once.
    vocab = {bytes_to_letters(token): number for token, number in sorted(ids.items(), key=lambda item: item[1])}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
             "vocab": vocab, "merges": [[bytes_to_letters(part) for part in pair] for pair in merges]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for name, number in special_tokens.items()]

    # 3. Put the file in place, and beside it what AutoTokenizer asks for: the class and the end token.
    is_file = path.suffix == ".json"
    target = path if is_file else path / "tokenizer.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_json(target, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                         "normalizer": None, "pre_tokenizer": cutting, "post_processor": None,
                         "decoder": byte_level, "model": model})
    if not is_file:
        ends = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in special_tokens else {}
        _write_json(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ends,
                                                     "clean_up_tokenization_spaces": False})
    return target


def _write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all: a new file, flushed, then renamed over the old one."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def read_tokenizer_json(path: Path) -> Parts:
    """Return vocabulary, merges, special tokens and pattern of a `tokenizer.json`, or of the folder around it.

    Raises FileNotFoundError where there is none, and ValueError in one line for whatever is damaged or is
    no byte-level BPE: a file from elsewhere is believed in nothing.
    """
    # 1. Read the text. A missing file is told by its full name.
    target = path if path.suffix == ".json" else path / "tokenizer.json"
    if not target.is_file():
        raise FileNotFoundError(f"{target} does not exist: give a folder that holds a tokenizer.json")
    # 2. Take it apart, and turn every way in which it can be wrong into one line with the file's name.
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
        return _parts_of(content)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{target} is no tokenizer.json: {type(error).__name__} {error}; download or save it again") from None
    except ValueError as error:
        raise ValueError(f"{target} cannot be used: {error}") from None


def _parts_of(content: dict) -> Parts:
    """Return the four parts of a parsed `tokenizer.json`. Raises ValueError, KeyError or TypeError."""
    # 1. Refuse what would give other ids here: other models, text changed on the way in, letters glued by other rules.
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is {model['type']!r}, only byte-level 'BPE' is read here")
    for owner, key in ((content, "normalizer"), (model, "dropout"), (model, "byte_fallback"),
                       (model, "continuing_subword_prefix"), (model, "end_of_word_suffix")):
        if owner.get(key):
            raise ValueError(f"its {key!r} is {owner[key]!r}, which this tokenizer does not have")

    # 2. Read tokens and merges; older files write a merge as one text with a space between.
    special = {str(entry["content"]): _whole(entry["id"]) for entry in content.get("added_tokens") or []}
    vocab = {_whole(number): letters_to_bytes(letters) for letters, number in model["vocab"].items() if letters not in special}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(letters_to_bytes(left), letters_to_bytes(right)) for left, right in pairs]
    return vocab, merges, special, _pattern_of(content["pre_tokenizer"])


def _whole(number: object) -> int:
    """Return an id, which must be a whole number from 0 on."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no token id: ids are whole numbers from 0 on")
    return number


def _pattern_of(cutting: dict) -> str:
    """Return the split pattern that a pre-tokenizer stands for. Raises ValueError for kinds with other rules."""
    # 1. See one step as a list of one. GPT-2's files have only the byte step, with its pattern built in.
    steps = cutting["pretokenizers"] if cutting["type"] == "Sequence" else [cutting]
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise ValueError("it adds a space before the text, so a round trip would not give the text back")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN

    # 2. Else a pattern of its own must come first, and each match must be one piece.
    whole = kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert")
    if whole and not steps[1].get("use_regex", True):
        return str(steps[0]["pattern"]["Regex"])
    raise ValueError(f"its pre-tokenizer {kinds} cuts text in a way this tokenizer does not know")


def read_tiktoken(name: str) -> Parts:
    """Return vocabulary, merges, special tokens and pattern of a vocabulary that tiktoken publishes.

    Raises ValueError for an unknown name, ConnectionError where it is neither kept on disk nor reachable.
    """
    # 1. Ask tiktoken, which looks in TIKTOKEN_CACHE_DIR before it asks the network.
    if name not in tiktoken.list_encoding_names():
        raise ValueError(f"unknown vocabulary {name!r}: choose one of {', '.join(tiktoken.list_encoding_names())}")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:
        raise ConnectionError(
            f"vocabulary {name!r} could not be downloaded ({type(error).__name__}): fetch it once with a network "
            "and TIKTOKEN_CACHE_DIR set to a folder, or load a tokenizer.json with BPETokenizer.load"
        ) from None

    # 2. Find each token's merge, which such a file leaves out.
    ranks = encoding._mergeable_ranks
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [_last_merge(token, ranks) for token in longer]
    vocab = {rank: token for token, rank in ranks.items()}
    return vocab, merges, dict(encoding._special_tokens), encoding._pat_str


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> Pair:
    """Return the two parts that a token was made of: glue its bytes by rank until two parts are left."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        parts = glue(parts, min(pairwise(parts), key=lambda pair: ranks.get(pair[0] + pair[1], len(ranks) * 2)))
    return parts[0], parts[1]

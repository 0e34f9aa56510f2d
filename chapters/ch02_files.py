"""Tokenizers on disk: the `tokenizer.json` of Hugging Face, and the vocabularies that tiktoken publishes.

A token is a string of bytes, and JSON holds only text. GPT-2's answer, which everybody kept, writes each
byte as one visible letter: the 188 bytes that already print as themselves stay, and the other 68 (space,
newline, halves of characters) borrow letters from number 256 on.

    b" the"  ->  "Ġthe"          b"\\n"  ->  "Ċ"          "é" = b"\\xc3\\xa9"  ->  "Ã©"

`BPETokenizer.save`, `.load` and `.from_tiktoken` call what is here. A file from elsewhere is believed in
nothing: whatever is missing, damaged or of another kind ends in one line that names the file and the rule.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import tiktoken

from chapters.ch02_merges import Pair, glue
from chapters.ch02_splitting import GPT2_PATTERN
from chapters.ch02_writing import replacing

# What a tokenizer is made of, and all that is read from a file: vocabulary, merges, special tokens and
# split pattern. Nothing else in such a file changes the ids.
Parts = tuple[dict[int, bytes], list[Pair], dict[str, int], str]

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


def write_tokenizer_json(
    path: Path, ids: dict[bytes, int], merges: list[Pair], special_tokens: dict[str, int], pattern: str
) -> Path:
    """Write `tokenizer.json` to a path that ends in .json, or into a folder with its config; return its path.

    The folder's `tokenizer_config.json` tells `AutoTokenizer` which class to take and which token is the
    end. The files are replaced whole, so a reader never meets half of one.
    """
    # 1. List the tokens in the order of their ids. `ignore_merges` takes a word that is a token at once.
    vocab = {bytes_to_letters(token): ids[token] for token in sorted(ids, key=ids.__getitem__)}
    pairs = [[bytes_to_letters(left), bytes_to_letters(right)] for left, right in merges]
    model = {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": pairs}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for name, number in special_tokens.items()]

    # 2. Say how text is cut. The byte step knows GPT-2's pattern; any other one goes before it.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cutting: dict = byte_level
    if pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}

    # 3. Write the file. The bytes go back to text on the way out, and nothing else is done to the text.
    target = path if path.suffix == ".json" else path / "tokenizer.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    steps = {"normalizer": None, "pre_tokenizer": cutting, "post_processor": None, "decoder": byte_level}
    _write_json(target, {"version": "1.0", "added_tokens": added, **steps, "model": model})

    # 4. Add what AutoTokenizer asks a folder for. Cleaning up spaces would break the round trip.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ends = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in special_tokens else {}
    if path.suffix != ".json":
        _write_json(path / "tokenizer_config.json", {**config, **ends})
    return target


def _write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all.

    Letters such as Ġ are written as they are, so that the file can be read by eye.
    """
    with replacing(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))


def read_tokenizer_json(path: Path) -> Parts:
    """Return the parts of the tokenizer in a `tokenizer.json`, or in the one of a folder.

    Raises FileNotFoundError where there is none, and ValueError in one line for whatever is damaged or is
    no byte-level BPE. Whether the parts fit together, BPETokenizer checks.
    Source: the file's format is that of the `tokenizers` library.
    """
    # 1. Find the file. A missing one is named in full.
    target = path if path.suffix == ".json" else path / "tokenizer.json"
    if not target.is_file():
        raise FileNotFoundError(f"{target} does not exist: give a folder that holds a tokenizer.json")
    # 2. Take it apart, and turn every way in which it can be wrong into one line with its name.
    try:
        return _parts_of(json.loads(target.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{target} is no tokenizer.json ({type(error).__name__} {error})") from None
    except ValueError as error:
        raise ValueError(f"{target} cannot be read: {error}") from None


def _parts_of(content: dict) -> Parts:
    """Return the parts of a parsed `tokenizer.json`; what is wrong raises an error.

    Only what is needed is looked at, so files of older and newer versions can be read.
    """
    # 1. Refuse what would give other ids here: other models, text changed on the way in, other gluing.
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is {model['type']!r}, and only byte-level 'BPE' is read here")
    foreign = {"normalizer": content.get("normalizer")}
    foreign |= {key: model.get(key) for key in ("dropout", "byte_fallback", "end_of_word_suffix")}
    if found := {key: value for key, value in foreign.items() if value}:
        raise ValueError(f"it asks for {found}, which this tokenizer does not have: use its own library")

    # 2. Read tokens. Special ones may be listed among the others too, and are no byte strings.
    special = {str(entry["content"]): _whole(entry["id"]) for entry in content.get("added_tokens") or []}
    ordinary = {token: _whole(number) for token, number in model["vocab"].items() if token not in special}
    vocab = {number: letters_to_bytes(letters) for letters, number in ordinary.items()}
    if len(vocab) < len(ordinary):
        raise ValueError("two of its tokens have the same id: save it again")

    # 3. Read merges. Older files write one as a text with a space between the parts, newer ones as a list:
    # a token of a file's own making may hold a space, though no byte is written as one.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(letters_to_bytes(left), letters_to_bytes(right)) for left, right in pairs]
    return vocab, merges, special, _pattern_of(content["pre_tokenizer"])


def _whole(number: object) -> int:
    """Return an id, which must be a whole number from 0 on.

    To Python, True is a number too; to a reader of files it is a mistake.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no token id: ids are whole numbers from 0 on")
    return number


def _pattern_of(cutting: dict) -> str:
    """Return the split pattern that a pre-tokenizer stands for.

    Two kinds are known: the byte step alone, which has GPT-2's pattern built in, and a pattern of the file's
    own before it, as in the files of Llama 3 and Qwen. All others raise ValueError.
    """
    # 1. See one step as a list of one, and know the byte step alone.
    steps = cutting["pretokenizers"] if cutting["type"] == "Sequence" else [cutting]
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise ValueError("it adds a space before the text, so a round trip would not give the text back")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN

    # 2. Take the pattern before it, if each match is one piece and nothing is thrown away.
    own = kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True)
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
    return vocab, merges, dict(encoding._special_tokens), encoding._pat_str


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> Pair:
    """Return the two parts that a token was made of.

    Glue its bytes, earliest token first, until two parts are left: the last merge joined these.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        earliest = min(pairwise(parts), key=lambda pair: ranks.get(pair[0] + pair[1], math.inf))
        parts = glue(parts, earliest)
    return parts[0], parts[1]

"""Published tokenizers: whichever kind a model's folder holds, opened with one call.

    byte-level BPE         "Ġthe"   GPT-2, Llama 3, Qwen, SmolLM2      read by our own BPETokenizer
    SentencePiece's BPE    "▁the"   Llama 2, TinyLlama, Mistral        read by the `tokenizers` library

Both glue pairs that often stand together. They differ in what they start from: the second kind glues whole
characters, with ▁ in place of the space, and falls back to bytes (tokens such as <0xE5>) only for characters it
has never met. It also puts a space before the text, so that a first word is the same token as any other. The
rules for spaces differ from file to file, and the library that wrote the files knows them all; what is added
here is the face of a BPETokenizer, so that chapter 9 need not know which kind it has.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from chapters.ch02_files import read_json, read_start_ids
from chapters.ch02_tokenization import BPETokenizer


class SentencePieceTokenizer:
    """Turns text into ids and back with a SentencePiece-style `tokenizer.json`, as a BPETokenizer does.

    path: the file, or its folder. `vocab` gives the bytes that each id adds to a text, `start_ids` what stands
    before every text, `stop_ids` what ends one. Raises ValueError in one line for a damaged file.
    """

    def __init__(self, path: str | Path):
        # 1. Open it. The library speaks of damage in many ways, and all of them shall name the file.
        target, content = read_json(Path(path))
        try:
            self._library = Tokenizer.from_file(str(target))
            start_ids = read_start_ids(content)
        except Exception as error:
            raise ValueError(f"{target} cannot be read: {str(error).splitlines()[0]}") from None

        # 2. Switch off what is meant for batches: a text shall neither be cut short nor filled up.
        self._library.no_truncation()
        self._library.no_padding()

        # 3. Work out the bytes of each token. Special ones are shown by their names.
        added = self._library.get_added_tokens_decoder()
        self.special_tokens = {token.content: number for number, token in added.items() if token.special}
        pieces = {number: piece for piece, number in self._library.get_vocab(with_added_tokens=False).items()}
        self.vocab = {number: _piece_bytes(piece) for number, piece in pieces.items()}
        self.vocab |= {number: token.content.encode() for number, token in added.items()}

        # 4. Know where a text begins and ends.
        self.stop_ids = [] if self.eot_id is None else [self.eot_id]
        self.start_ids = start_ids or []

    @property
    def vocab_size(self) -> int:
        """How many rows a model needs for these tokens: the largest id plus one."""
        return max(self.vocab) + 1

    @property
    def eot_id(self) -> int | None:
        """The id of </s>, which ends a text in this kind of vocabulary; None where it has none."""
        return self.special_tokens.get("</s>")

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text, without what stands before every text.

        With `allow_special`, special tokens written in the text become their ids; without, they are text.
        Raises ValueError for a lone surrogate, half a character that no bytes can hold.
        """
        self._library.encode_special_tokens = not allow_special
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"the text has a lone surrogate, half a character: {error}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, without the space that encoding puts before it.

        Bytes that are no character become U+FFFD. Raises ValueError for an id that the vocabulary does not have.
        """
        numbers = [int(number) for number in ids]
        if unknown := [number for number in numbers if number not in self.vocab]:
            raise ValueError(f"token id {unknown[0]} is unknown: ids go from 0 to {self.vocab_size - 1}")
        return self._library.decode(numbers, skip_special_tokens=False)


def _piece_bytes(piece: str) -> bytes:
    """Return the bytes that a piece of this kind adds to a text: "▁the" is b" the", and "<0xE5>" is one byte."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def open_tokenizer(folder: str | Path) -> BPETokenizer | SentencePieceTokenizer:
    """Return the tokenizer of a model's folder, whichever kind it is, with the ids that end the model's texts.

    Raises FileNotFoundError where there is none, and ValueError in one line where it is damaged or of another
    kind.
    """
    # 1. Tell the kinds apart: only SentencePiece's falls back to bytes, as the other is made of them.
    folder = Path(folder)
    _, content = read_json(folder)
    kind = SentencePieceTokenizer if content["model"].get("byte_fallback") else BPETokenizer.load
    tokenizer = kind(folder)

    # 2. Ask the model where it stops: one that chats ends its turns with another token than its documents.
    tokenizer.stop_ids = _read_stop_ids(folder) or tokenizer.stop_ids
    return tokenizer


def _read_stop_ids(folder: Path) -> list[int]:
    """Return the ids at which a folder says that its model stops, none where it does not say.

    `generation_config.json` counts before `config.json`, and each may give one id or several.
    """
    # 1. Look into one file, then the other. A broken one is as good as none here: the model's own reader names it.
    for path in (folder / "generation_config.json", folder / "config.json"):
        try:
            ends = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue

        # 2. Take what it says. Null says nothing.
        ends = ends if isinstance(ends, list) else [ends]
        if ends and all(type(number) is int for number in ends):
            return ends
    return []

"""Generation: a model and a tokenizer that speak, for one text or for several at once.

    engine = load_model("models/storyteller")
    for piece in engine.generate("Once upon a time", temperature=0.7):
        print(piece, end="", flush=True)

The loop is that of chapter 9: ask for scores, draw a token, append it, ask again. The prompt is read in one pass;
then each pass reads one token per text, and the cache remembers the rest. Texts of a batch end one by one, and one
that has ended costs nothing any more.
"""

import codecs
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from engine import machine
from engine.model import Model
from engine.quantize import check_dtype
from engine.sampling import SamplingConfig, sample_next
from engine.tokenizer import load_tokenizer
from engine.weights import load_weights


class TextStream:
    """Turns tokens into text as they come, and holds back what could still turn out otherwise.

    One letter can be spread over several tokens (an emoji is four bytes), and so can a stop string. `before` is the
    last token of the prompt. `ended` says whether a stop string has come; neither it nor what follows is ever said.
    """

    def __init__(self, tokenizer, before: int, stop_strings: Iterable[str] = ()):
        # 1. Know how many letters may belong to a stop string that has only begun.
        self._tokenizer, self._before, self.ended = tokenizer, before, False
        self._stops = [stop for stop in stop_strings if stop]
        self._reach = max(map(len, self._stops), default=1) - 1
        self._letters, self._held = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""

    def push(self, token: int) -> str:
        """Return the text that has become certain with this token; often nothing."""
        # 1. Pass over a number without a token. Published models have a few rows more than tokens, to make it round.
        if token not in self._tokenizer.vocab:
            return ""

        # 2. See what it adds to the one before: some tokenizers put a space before a text's first word, which is none.
        known = len(self._tokenizer.decode_bytes([self._before]))
        added = self._tokenizer.decode_bytes([self._before, token])[known:]
        self._before = token
        return self._say(self._letters.decode(added), self._reach)

    def finish(self) -> str:
        """Return what is left when no more tokens come. Bytes that never became a letter show as U+FFFD."""
        return "" if self.ended else self._say(self._letters.decode(b"", final=True), 0)

    def _say(self, text: str, reach: int) -> str:
        """Return the held text and the new one, but for the last `reach` letters or what follows a stop string."""
        # 1. End before the earliest stop string.
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.ended = True
            return text[:found]

        # 2. Hold back the tail, in which one may have begun.
        certain = max(0, len(text) - reach)
        self._held = text[certain:]
        return text[:certain]


@dataclasses.dataclass
class GrowingText:
    """One text while it grows: its number in the batch, its ids, those not read yet, its memory and its dice."""

    number: int
    ids: list[int]
    new: list[int]
    cache: object
    dice: np.random.Generator


def check_prompt(length: int, context: int) -> None:
    """Refuse a prompt that cannot be continued. To cut it in silence would be to answer another question."""
    if not 1 <= length < context:
        raise ValueError(f"the prompt has {length} tokens: it must have 1 to {context - 1}, give another one")


def next_tokens(model, prompts: Sequence[Sequence[int]], config: SamplingConfig, stop_ids: Iterable[int] = (),
                ended: Iterable[int] = ()) -> Iterator[tuple[int, int | None]]:
    """Yield (number of the text, next token) as tokens are drawn, and (number, None) once when a text has ended.

    A text ends with an id of `stop_ids`, which is not given, after `max_new_tokens`, or where its context is full;
    and when the caller, while listening, adds its number to `ended`. Then it leaves the batch. Text n says what it
    would say alone under the seed `config.seed` + n.

    Raises ValueError, at the first token asked for, for no prompt, an empty one, and one that leaves no room.
    """
    # 1. Refuse what cannot be continued.
    texts, context, stop_ids = [], model.config.max_seq_len, set(stop_ids)
    for prompt in prompts or [[]]:
        check_prompt(len(prompt), context)

    # 2. Give each text a memory as long as it can become, and dice of its own.
    for number, ids in enumerate(map(list, prompts)):
        cache = model.new_cache(min(context, len(ids) + config.max_new_tokens))
        texts.append(GrowingText(number, ids, ids[:], cache, np.random.default_rng(config.seed + number)))

    # 3. Read the prompts in one pass, later one token of each text. Draw, and append what was drawn.
    for left in reversed(range(config.max_new_tokens)):
        for text, scores in zip(texts, read(model, texts), strict=True):
            token = sample_next(scores, config, np.array(text.ids), text.dice)
            text.ids, text.new = [*text.ids, token], [token]

            # 4. Say it, unless it ends the text; and say when there is no more to come.
            if token not in stop_ids:
                yield text.number, token
            if token in stop_ids or len(text.ids) >= context or not left or text.number in ended:
                text.new = []
                yield text.number, None

        # 5. Go on with those that still grow.
        texts = [text for text in texts if text.new]
        if not texts:
            return


def read(model, texts: Sequence[GrowingText]) -> Iterable[np.ndarray]:
    """Return the scores (V,) for the next token of each text, after the model has read what is new in it.

    The plain model reads all texts together, which reads each matrix from memory once. The fast one reads them one
    after the other: it is made for one text.
    """
    if isinstance(model, Model):
        return model.forward_batch([text.new for text in texts], [text.cache for text in texts], last_only=True)
    return [model.forward(text.new, text.cache, last_only=True)[0] for text in texts]


class Engine:
    """A model that reads and writes text: prompts in, pieces of text out, in the order in which they are made."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.stop_ids = model.config.eos_ids or own

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, behind those that stood before every text that the model learnt from."""
        return [*self.tokenizer.start_ids, *self.tokenizer.encode(prompt)]

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        """Return the score of every token of the vocabulary after each of these ids. Shapes: (T,) -> (T, V)."""
        return self.model.forward(ids)

    def generate(self, prompt: str, stop: Iterable[str] = (), **options) -> Iterator[str]:
        """Yield what the model says after the prompt, piece by piece; no piece ends within a letter.

        `options` are the fields of `SamplingConfig`; `stop` are texts to end before. The prompt is not repeated.
        Raises ValueError, at the call, for an impossible option and a prompt that cannot be continued.
        """
        return (piece for _, piece in self.generate_batch([prompt], stop, **options))

    def generate_batch(self, prompts: Sequence[str], stop: Iterable[str] = (), **options) -> Iterator[tuple[int, str]]:
        """Yield (number of the prompt, piece of text) for several prompts, whose texts are made side by side.

        Each says what it would say alone under the seed `seed` + its number. Raises ValueError as `generate` does.
        """
        # 1. Check all at the call: a mistake shall not wait for the first word.
        config = SamplingConfig(**options)
        ids, context = [self.encode(prompt) for prompt in prompts], self.model.config.max_seq_len
        for row in ids or [[]]:
            check_prompt(len(row), context)

        # 2. Return the loop itself.
        return self._pieces(ids, list(stop), config)

    def _pieces(self, prompts: list[list[int]], stop: list[str], config: SamplingConfig) -> Iterator[tuple[int, str]]:
        """Yield (number, piece) until every text has ended."""
        # 1. Take the tokens as they come, each to the stream of its text.
        streams, ended = [TextStream(self.tokenizer, ids[-1], stop) for ids in prompts], set()
        for number, token in next_tokens(self.model, prompts, config, self.stop_ids, ended):
            piece = streams[number].finish() if token is None else streams[number].push(token)

            # 2. Say what is certain. A text that has met a stop string needs no more tokens.
            if piece:
                yield number, piece
            if streams[number].ended:
                ended.add(number)


def check_tokenizer(tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose texts the model cannot read; with fewer tokens, it may still be another model's.

    A special token that no text becomes may lie beyond the model's: files get such added, to fill up batches.
    """
    used = tokenizer.vocab.keys() - tokenizer.special_tokens.values() | {*tokenizer.start_ids}
    if max(used) >= vocab_size:
        raise ValueError(f"the tokenizer gives the id {max(used)}, but the model knows only {vocab_size} tokens: put "
                         "the model's own tokenizer beside it")


def load_model(path: str | Path, dtype: str = "fp32", fast: bool | None = None, threads: int | None = None,
               tokenizer: str | Path | None = None) -> Engine:
    """Return an engine for a Hugging Face model folder, or for a `.bin` file of llama2.c.

    `dtype` is what the matrices are kept in: "fp32", "bf16", "int8" or "int4". Beside the last three, the embedding
    and what is remembered of the text are kept in bfloat16. `fast=False` keeps to plain NumPy;
    `fast=True` insists on compiled loops, by `threads` threads; by default they are taken where they can be.
    `tokenizer` is a file to take in place of the one in the folder, or beside the `.bin` file.

    Raises OSError for a missing file, and ValueError in one line for a broken one, for a tokenizer of another model,
    for a dtype that is not known, and where `fast=True` cannot be had.
    """
    # 1. Read the config and the tokenizer first: a mistake there shall not wait for gigabytes.
    check_dtype(dtype)
    config, weights = load_weights(path)
    words = load_tokenizer(tokenizer or path)
    check_tokenizer(words, config.vocab_size)

    # 2. Take the compiled loops where Numba is there and they can compute this model.
    if fast is not False and machine.HAS_NUMBA and config.family == "llama":
        from engine.fast import FastModel

        if FastModel.supports(config):
            return Engine(FastModel(config, weights, dtype, threads), words)

    # 3. Or the plain model, which computes all of them.
    if fast:
        raise ValueError("fast=True: this model or this machine has no compiled loops; leave it out for plain NumPy")
    return Engine(Model(config, weights, dtype), words)

"""Inference: draw the next token, append it, ask again. That loop is all there is to a chatbot's voice.

    logits → penalty → temperature → top-k, top-p, min-p → softmax → draw → append → again

Two things make it useful. Sampling settings choose between safe and surprising. And a KV cache keeps the
keys and values of all tokens read so far, so that each new token costs one column of work and not
the whole table again. The cache changes no result, which is a test.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_config import SamplingConfig
from chapters.ch09_fused import FusedGPT

__all__ = [
    "KVCache", "LayerCache", "SamplingConfig", "generate", "generate_batch", "next_tokens", "sample_next",
    "stream_story", "stream_text", "token_probabilities",
]


class LayerCache:
    """The keys and values that one attention layer has computed so far, in memory reserved once.

    With a `window` of W, no token sees more than the newest W: older ones go when the memory is full.
    """

    def __init__(self, batch: int, num_kv_heads: int, capacity: int, head_dim: int, device, dtype,
                 window: int | None = None):
        shape = (batch, num_kv_heads, capacity, head_dim)
        self.keys, self.values = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        self.window, self.length, self.dropped = window, 0, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; return those of all tokens that some new one may see.

        Shapes: k and v (B, K, T, D) -> two of (B, K, S, D), S being the tokens so far with these, or at most
        W - 1 + T with a window of W.
        """
        # 1. Find the place behind what is there, and where the first new token's window begins.
        start, self.length = self.length, self.length + k.shape[2]
        first = 0 if self.window is None else max(0, start - self.window + 1)
        begin, end, stop = (place - self.dropped for place in (first, start, self.length))
        if stop > self.keys.shape[2] and self.window is not None:
            return self._move(begin, end, k, v)  # (B, K, S, D), (B, K, S, D)

        # 2. Write there. What is returned is a view of the reserved memory, not a copy: the cost of a token
        # does not grow with the text.
        self.keys[:, :, end:stop], self.values[:, :, end:stop] = k, v
        return self.keys[:, :, begin:stop], self.values[:, :, begin:stop]  # (B, K, S, D), (B, K, S, D)

    def _move(self, begin: int, end: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append where the memory is full: move what the next token may see to the front, and drop the rest."""
        # 1. Join what the new tokens may see. A long prompt alone may be more than the memory holds.
        k = torch.cat([self.keys[:, :, begin:end], k], dim=2)  # (B, K, S, D)
        v = torch.cat([self.values[:, :, begin:end], v], dim=2)  # (B, K, S, D)

        # 2. Keep its end. The next token brings itself, so a window less one is enough.
        kept = min(self.window - 1, k.shape[2])
        self.keys[:, :, :kept], self.values[:, :, :kept] = k[:, :, k.shape[2] - kept :], v[:, :, v.shape[2] - kept :]
        self.dropped = self.length - kept
        return k, v  # (B, K, S, D), (B, K, S, D)


class KVCache:
    """One `LayerCache` per block of a model, for `batch` texts that grow together.

    The memory holds `max_seq_len` tokens; in a model with a sliding window twice the window is enough for a text of
    any length. `rolling=False` keeps all of them nevertheless, which `cut` may need.
    """

    def __init__(self, model: GPT, batch: int = 1, max_seq_len: int | None = None, rolling: bool = True):
        # 1. Reserve what will be needed. With twice the window, tokens are moved to the front once in a window.
        c, weight = model.config, model.token_embedding.weight
        capacity = max_seq_len or c.max_seq_len
        if rolling and c.sliding_window is not None:
            capacity = min(capacity, 2 * c.sliding_window)

        # 2. Give each layer its own.
        sizes = batch, c.num_kv_heads, capacity, c.head_dim, weight.device, weight.dtype, c.sliding_window
        self.layers = [LayerCache(*sizes) for _ in model.blocks]

    @property
    def length(self) -> int:
        """Return the number of tokens that every layer has seen."""
        return self.layers[-1].length

    def cut(self, length: int) -> None:
        """Forget all tokens behind the first `length`, as if they had never been read.

        Raises ValueError when a rolling cache has dropped tokens that the window would now need.
        """
        # 1. Refuse to go back to where the memory has been overwritten.
        layer = self.layers[-1]
        if layer.dropped and length - layer.window + 1 < layer.dropped:
            raise ValueError(f"cannot cut the cache back to {length} tokens: the first {layer.dropped} are dropped; "
                             "make it with rolling=False")

        # 2. Move the mark. What stands behind it will be written over.
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def select(self, rows: Tensor) -> None:
        """Let row i of the batch go on from what row `rows[i]` holds; a row may be taken twice, or left out.

        Shapes: rows (B,) of row numbers, B being the new batch.
        """
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]  # (B, K, S, D), (B, K, S, D)


def penalize_repetition(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Return the scores with those of tokens already in the text made less likely.

    A positive score is divided by the penalty and a negative one multiplied: dividing both would make
    unlikely tokens likelier.

    Shapes: logits (B, V), history (B, S) of ids -> (B, V).
    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1.
    """
    seen = logits.gather(1, history)  # (B, S)
    lowered = torch.where(seen > 0, seen / penalty, seen * penalty)  # (B, S)
    return logits.scatter(1, history, lowered)  # (B, V)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return the scores with all but the `k` highest of each row set to -inf.

    Shapes: (B, V) -> (B, V).
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -float("inf"))  # (B, V)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return the scores of the smallest set of tokens whose probabilities reach `p`; the rest are -inf.

    The likeliest token is always kept, however small `p` is.

    Shapes: (B, V) -> (B, V).
    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    # 1. Line the tokens up, likeliest first, and drop each whose predecessors have reached p already.
    ordered, ids = logits.sort(descending=True)  # (B, V), (B, V)
    probs = ordered.softmax(dim=-1)  # (B, V)
    drop = probs.cumsum(dim=-1) - probs >= p  # (B, V)
    drop[:, 0] = False

    # 2. Carry the decisions back to the vocabulary's own order.
    return logits.masked_fill(drop.gather(1, ids.argsort()), -float("inf"))  # (B, V)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Return the scores of tokens at least `min_p` times as probable as the likeliest; the rest are -inf.

    Shapes: (B, V) -> (B, V).
    Source: Nguyen et al. 2024 (arXiv 2407.01082).
    """
    probs = logits.softmax(dim=-1)  # (B, V)
    return logits.masked_fill(probs < min_p * probs.max(dim=-1, keepdim=True).values, -float("inf"))  # (B, V)


def penalized_logits(logits: Tensor, config: SamplingConfig, history: Tensor | None = None) -> Tensor:
    """Return the scores with those of tokens already in `history` (the ids so far) lowered, where that is asked for.

    Shapes: logits (B, V), history (B, S) -> (B, V). Raises ValueError for scores that are no numbers: whatever were
    drawn from them would look like a choice.
    """
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the model's scores are not finite: its folder is damaged, get it again")
    if config.repetition_penalty != 1 and history is not None:
        logits = penalize_repetition(logits, history, config.repetition_penalty)  # (B, V)
    return logits  # (B, V)


def token_probabilities(logits: Tensor, config: SamplingConfig, history: Tensor | None = None) -> Tensor:
    """Return the probability with which each token is drawn next, after penalty, temperature and filters.

    At temperature 0 the likeliest token has all of it. `history` (the ids so far) is needed by the
    repetition penalty alone.

    Shapes: logits (B, V), history (B, S) -> (B, V); rows sum to 1.
    """
    # 1. Give all to the best if nothing is to be drawn.
    logits = penalized_logits(logits, config, history)  # (B, V)
    if config.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()  # (B, V)

    # 2. Sharpen or flatten, in float32: small differences decide.
    logits = logits.float() / config.temperature  # (B, V)

    # 3. Cut the tail, by rank or by mass.
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)  # (B, V)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)  # (B, V)

    # 4. Cut it by share of the best. Softmax divides the whole among what is left.
    if config.min_p:
        logits = keep_min_p(logits, config.min_p)  # (B, V)
    return logits.softmax(dim=-1)  # (B, V)


def sample_next(logits: Tensor, config: SamplingConfig, history: Tensor | None = None,
                generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
    """Return one next token id for each row of scores.

    `history` is what `token_probabilities` takes. A `generator` makes a draw repeatable; with one for each row, a
    row's draw does not depend on how many rows there are.

    Shapes: logits (B, V), history (B, S) -> (B,).
    """
    # 1. Take the likeliest, if that is asked for.
    if config.temperature == 0:
        return penalized_logits(logits, config, history).argmax(dim=-1)  # (B,)

    # 2. Draw.
    probs = token_probabilities(logits, config, history)  # (B, V)
    if isinstance(generator, Sequence):
        rows = zip(probs.split(1), generator, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=dice)[:, 0] for row, dice in rows])  # (B,)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]  # (B,)


@contextmanager
def evaluating(*models: GPT) -> Iterator[None]:
    """Switch dropout off inside of `with`, and leave the models as they were found, also after an error."""
    # 1. Switch off.
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield

    # 2. Give back, also when whoever listens to a stream stops before its end.
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def check_prompt(length: int, context: int) -> None:
    """Refuse a prompt that cannot be continued. Cutting it silently would answer another question."""
    if not 1 <= length < context:
        raise ValueError(f"the prompt has {length} tokens: it must have 1 to {context - 1}, give another one")


def pad_left(prompts: Sequence[Sequence[int]] | Tensor, device) -> tuple[Tensor, Tensor]:
    """Return prompts of unequal length as one table, and how many ids at the left of each row are padding.

    So all texts end together, and grow at one place. The padding repeats a text's own first token: no model
    sees it, and the repetition penalty meets nothing that the text does not say.

    Shapes: -> (B, T), (B,), T being the longest prompt.
    """
    rows = [torch.as_tensor(prompt, dtype=torch.long, device=device) for prompt in prompts]
    longest = max(len(row) for row in rows)
    pads = [longest - len(row) for row in rows]
    ids = [F.pad(row, (count, 0), value=int(row[0])) for row, count in zip(rows, pads, strict=True)]
    return torch.stack(ids), torch.tensor(pads, device=device)  # (B, T), (B,)


def next_tokens(model: GPT, prompts: Sequence[Sequence[int]] | Tensor, config: SamplingConfig,
                use_cache: bool = True, stop_ids: Iterable[int] = ()) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `generate_batch` yields, each time with the scores that the tokens were drawn from.

    Shapes: -> each time (B,), (B, V). Raises ValueError as `generate_batch` does, at the call.
    """
    # 1. Refuse what cannot be continued, here and not at the first token asked for.
    lengths, context = [len(prompt) for prompt in prompts], model.config.max_seq_len
    for length in lengths or [0]:
        check_prompt(length, context)

    # 2. Return the loop itself. The shortest prompt has most room.
    device, steps = model.token_embedding.weight.device, min(config.max_new_tokens, context - min(lengths))
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    return _generation_loop(model, *pad_left(prompts, device), config, steps, stops, use_cache)


@torch.inference_mode()
def _generation_loop(model: GPT, ids: Tensor, pads: Tensor, config: SamplingConfig, steps: int,
                     stops: Tensor, use_cache: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield up to `steps` tokens for each row of `ids` (B, T), whose first `pads` (B,) ids are padding."""
    # 1. Prepare: dice for each row, and a cache as long as the text can become.
    context, new = model.config.max_seq_len, ids
    dice = [torch.Generator(ids.device).manual_seed(config.seed + row) for row in range(len(ids))]
    cache = KVCache(model, len(ids), ids.shape[1] + steps) if use_cache else None
    fused = FusedGPT(model)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # (B,)

    # 2. Read the prompts in one pass, later one token at a time. Texts of one length have no padding to speak of.
    with evaluating(model):
        for _ in range(steps):
            padding = pads if pads.any() else None
            scores = (fused(new, cache, padding) if use_cache else model(ids, None, padding))[:, -1]  # (B, V)

            # 3. Draw, and append what was drawn, so that the next pass sees it.
            token = sample_next(scores, config, ids, dice)  # (B,)
            yield token.where(~finished, -1), scores
            new = token[:, None]  # (B, 1)
            ids = torch.cat([ids, new], dim=1)

            # 4. End rows that met a stop id or the end of their context, and the loop with the last of them. A
            # finished row is nothing but padding from now on, whatever is drawn for it.
            finished |= torch.isin(token, stops) | (ids.shape[1] - pads >= context)
            if finished.all():
                return
            pads = pads.where(~finished, ids.shape[1])  # (B,)


def generate_batch(model: GPT, prompts: Sequence[Sequence[int]] | Tensor, config: SamplingConfig,
                   use_cache: bool = True, stop_ids: Iterable[int] = ()) -> Iterator[Tensor]:
    """Yield the next token of every row, again and again, until all rows are finished.

    A row is finished by an id of `stop_ids`, which is still given, by `max_new_tokens`, or when its context is
    full; from then on it gives -1. The prompts may differ in length. Row r says what it would say alone under the
    seed `config.seed` + r. `use_cache=False` computes everything anew for each token: the slow and obvious way, for
    comparison. The model's training mode is left as it was found.

    Shapes: prompts rows of ids, or (B, T) -> each time (B,).
    Raises ValueError for no prompt, an empty one, or one that leaves no room in the context.
    """
    return (token for token, _ in next_tokens(model, prompts, config, use_cache, stop_ids))


def generate(model: GPT, prompt: Sequence[int], config: SamplingConfig, stop_ids: Iterable[int] = (),
             use_cache: bool = True) -> Iterator[int]:
    """Yield new token ids one by one as they are drawn, up to and without the first id in `stop_ids`.

    The prompt is not repeated; it is never cut. Raises ValueError, at the first token asked for, as
    `generate_batch` does.
    """
    stop_ids = set(stop_ids)
    for token in generate_batch(model, [prompt], config, use_cache, stop_ids):
        if token.item() in stop_ids:
            return
        yield token.item()


def stream_text(
    tokenizer: BPETokenizer, ids: Iterable[int], stop_strings: Iterable[str] = ()
) -> Iterator[str]:
    """Yield readable text as token ids arrive, and end before the first stop string.

    One letter can be spread over several tokens (an emoji is four bytes), and a stop string too: text that
    could still turn out otherwise is held back until it is certain.
    """
    # 1. Know how much may belong to a stop string that has only begun.
    stops, text = [s for s in stop_strings if s], ""
    longest = max((len(s) for s in stops), default=1) - 1
    letters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    # 2. Take bytes in; the decoder keeps an unfinished letter for the next token. Published models may have a few
    # rows more than there are tokens, to make a round number: they say nothing.
    for token in ids:
        text += letters.decode(tokenizer.vocab.get(token, b""))

        # 3. Stop at the earliest stop string; what came before it is still said.
        found = min((at for s in stops if (at := text.find(s)) >= 0), default=-1)
        if found >= 0:
            yield from [text[:found]] if found else []
            return

        # 4. Say all but the tail that may be the start of a stop string.
        safe = len(text) - longest
        if safe > 0:
            yield text[:safe]
            text = text[safe:]

    # 5. Say the rest, since no stop string came. Bytes that never became a letter show as the replacement
    # mark.
    text += letters.decode(b"", final=True)
    if text:
        yield text


def stream_story(
    model: GPT, tokenizer: BPETokenizer, text: str, config: SamplingConfig, stop_strings: Iterable[str] = ()
) -> Iterator[str]:
    """Yield what the model says after `text`, piece by piece, until it ends its document.

    The model hears first what stood before every document it was trained on: here, the end of the one before.
    """
    ids = [*tokenizer.start_ids, *tokenizer.encode(text)]
    if max(ids, default=0) >= model.config.vocab_size:
        raise ValueError(f"the tokenizer gives the id {max(ids)}, but the model knows only {model.config.vocab_size} "
                         "tokens: put the model's own tokenizer.json into its folder")
    return stream_text(tokenizer, generate(model, ids, config, tokenizer.stop_ids), stop_strings)

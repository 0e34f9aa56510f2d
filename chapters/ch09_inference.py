"""Inference: draw the next token, append it, ask again. That loop is all there is to a chatbot's voice.

    logits → penalty → temperature → top-k, top-p, min-p → softmax → draw → append → again

Two things make it useful. Sampling settings choose between safe and surprising. And a KV cache keeps the
keys and values of all tokens read so far, so that each new token costs one column of work and not
the whole table again. The cache changes no result, which is a test.
"""

import codecs
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_config import SamplingConfig

__all__ = [
    "KVCache", "LayerCache", "SamplingConfig", "generate", "generate_batch", "sample_next", "stream_story",
           "stream_text"
]


class LayerCache:
    """The keys and values that one attention layer has computed so far, in memory reserved once."""

    def __init__(self, batch: int, num_kv_heads: int, max_seq_len: int, head_dim: int, device, dtype):
        shape = (batch, num_kv_heads, max_seq_len, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; return those of all tokens so far.

        Shapes: k and v (B, K, T, D) -> two of (B, K, S, D), S being the tokens so far with these.
        """
        # 1. Write behind what is there. What is returned is a window on the reserved memory, not a copy: the
        # cost of a token does not grow with the text.
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]  # (B, K, S, D), (B, K, S, D)


class KVCache:
    """One `LayerCache` per block of a model, for `batch` texts that grow together."""

    def __init__(self, model: GPT, batch: int = 1, max_seq_len: int | None = None):
        c, weight = model.config, model.token_embedding.weight
        sizes = batch, c.num_kv_heads, max_seq_len or c.max_seq_len, c.head_dim
        self.layers = [LayerCache(*sizes, weight.device, weight.dtype) for _ in model.blocks]

    @property
    def length(self) -> int:
        """Return the number of tokens that every layer has seen."""
        return self.layers[-1].length


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


def sample_next(logits: Tensor, config: SamplingConfig, history: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
    """Return one next token id for each row of scores.

    `history` (the ids so far) is needed by the repetition penalty alone; `generator` makes a draw repeatable.

    Shapes: logits (B, V), history (B, S) -> (B,).
    """
    # 1. Refuse scores that are no numbers: whatever were drawn from them would look like a choice.
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the model's scores are not finite: its folder is damaged, get it again")

    # 2. Lower what was said before, then take the best if nothing is to be drawn.
    if config.repetition_penalty != 1 and history is not None:
        logits = penalize_repetition(logits, history, config.repetition_penalty)  # (B, V)
    if config.temperature == 0:
        return logits.argmax(dim=-1)  # (B,)

    # 3. Sharpen or flatten, in float32: small differences decide.
    logits = logits.float() / config.temperature  # (B, V)

    # 4. Cut the tail, by rank, by mass, or by share of the best.
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)  # (B, V)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)  # (B, V)

    # 5. Draw from what is left.
    if config.min_p:
        logits = keep_min_p(logits, config.min_p)  # (B, V)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]  # (B,)


def generate_batch(
    model: GPT, prompts: Tensor, config: SamplingConfig, use_cache: bool = True
) -> Iterator[Tensor]:
    """Yield the next token of every row, again and again, until `max_new_tokens` or the context is full.

    The prompts have one length. `use_cache=False` computes everything anew for each token: the slow and
    obvious way, for comparison. The model's training mode is left as it was found.

    Shapes: prompts (B, T) -> each time (B,).
    Raises ValueError for an empty prompt, or one that leaves no room in the context.
    """
    # 1. Refuse what cannot be continued. Cutting the prompt silently would answer another question.
    length, context = prompts.shape[1], model.config.max_seq_len
    if not 1 <= length < context:
        raise ValueError(f"the prompt has {length} tokens: it must have 1 to {context - 1}, give another one")

    # 2. Return the loop itself, so that the check above runs at the call and not at the first token.
    return _generation_loop(model, prompts, config, min(config.max_new_tokens, context - length), use_cache)


@torch.inference_mode()
def _generation_loop(
    model: GPT, ids: Tensor, config: SamplingConfig, steps: int, use_cache: bool
) -> Iterator[Tensor]:
    """Yield `steps` tokens for each row of `ids` (B, T)."""
    # 1. Prepare: no dropout, a seeded dice, and a cache as long as the text can become.
    training, device = model.training, ids.device
    model.eval()
    generator = torch.Generator(device).manual_seed(config.seed)
    cache = KVCache(model, ids.shape[0], ids.shape[1] + steps) if use_cache else None

    # 2. Read the prompt in one pass, later one token at a time; draw from the last position.
    try:
        new = ids  # (B, T)
        for _ in range(steps):
            logits = model(new, cache) if use_cache else model(ids)
            token = sample_next(logits[:, -1], config, ids, generator)  # (B,)

            # 3. Append, so that the next pass sees it.
            new = token[:, None]  # (B, 1)
            ids = torch.cat([ids, new], dim=1)
            yield token

    # 4. Leave the model as it was found, also when the reader stops listening before the end.
    finally:
        model.train(training)


def generate(
    model: GPT, prompt: list[int], config: SamplingConfig, stop_ids: Iterable[int] = (),
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield new token ids one by one as they are drawn, up to and without the first id in `stop_ids`.

    The prompt is not repeated; it is never cut. Raises ValueError, at the first token asked for, as
    `generate_batch` does.
    """
    # 1. Make a batch of one. The dtype is said, because an empty list would become one of fractions.
    stop_ids, device = set(stop_ids), model.token_embedding.weight.device
    prompts = torch.tensor([prompt], dtype=torch.long, device=device)

    # 2. Hand the tokens on. The loop draws the next one only when it is asked for.
    for token in generate_batch(model, prompts, config, use_cache):
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

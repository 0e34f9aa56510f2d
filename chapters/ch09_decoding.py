"""Decoding, three more ways: ask for the likeliest text, ask faster, and ask how sure the model was.

    beam search            keep the best few beginnings instead of one, and return the likeliest texts found
    speculative decoding   a small draft model guesses ahead, the large one checks all guesses in one pass
    log-probabilities      the logarithm of the probability that the model gave each token

The check of a guess is what keeps speculative decoding honest. With p and q for what the large and the
small model would draw with:

    accept a guess x with probability min(1, p(x) / q(x)), otherwise draw anew from max(0, p - q), rescaled

What comes out then follows p, however bad the guesses are; bad ones only cost time. All of it rests on chapter 9's
loop in `ch09_inference.py`: its settings, its cache, its probabilities.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_config import DecodingConfig, SamplingConfig
from chapters.ch09_inference import (
    KVCache,
    check_prompt,
    evaluating,
    next_tokens,
    stream_story,
    stream_text,
    token_probabilities,
)

__all__ = ["Acceptance", "Beam", "beam_search", "generate_with_logprobs", "score", "speculative_generate",
           "stream_decoded"]


@torch.no_grad()
def score(model: GPT, ids: Sequence[int]) -> Tensor:
    """Return the logarithm of the probability that the model gives each token of a text, given those before it.

    The first token has nothing before it and gets none. The sum is the log-probability of the text.

    Shapes: T + 1 ids -> (T,). Raises ValueError for fewer than two tokens, or more than the context holds.
    """
    # 1. Ask for all positions in one pass: the opinion about token t + 1 stands at t.
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens: to be scored it must have 2 or more")
    text = torch.tensor([list(ids)], device=model.token_embedding.weight.device)  # (B, T+1)
    with evaluating(model):
        logprobs = model(text[:, :-1]).float().log_softmax(dim=-1)  # (B, T, V)

    # 2. Pick the tokens that came.
    return logprobs[0].gather(1, text[0, 1:, None])[:, 0]  # (T,)


def generate_with_logprobs(model: GPT, prompt: Sequence[int], config: SamplingConfig, stop_ids: Iterable[int] = (),
                           use_cache: bool = True) -> Iterator[tuple[int, float]]:
    """Yield the tokens that `generate` yields, as they are drawn, each with its log-probability.

    That is what `score` would say: the model's own opinion, before penalty, temperature and filters.
    """
    stop_ids = set(stop_ids)
    for token, scores in next_tokens(model, [prompt], config, use_cache, stop_ids):
        if token.item() in stop_ids:
            return
        yield token.item(), scores.float().log_softmax(dim=-1)[0, token].item()


class Beam(NamedTuple):
    """A continuation without prompt and stop id, its log-probability (the stop's included), and its rank's score."""

    ids: list[int]
    log_probability: float
    score: float


@torch.inference_mode()
def beam_search(model: GPT, prompt: Sequence[int], beams: int, max_new_tokens: int = 250,
                stop_ids: Iterable[int] = (), length_penalty: float = 1.0) -> list[Beam]:
    """Return the best continuations that a search with so many `beams` finds, best first.

    A continuation ends with a stop id, after `max_new_tokens`, or where the context is full. The score is
    log-probability / (new tokens, a stop included) ** length_penalty: 0 ranks by probability, which favours
    short texts, 1 by the mean of a token. The prompt counts for nothing.

    Raises ValueError for fewer than one beam, and for a prompt that cannot be continued.
    Source: Wu et al. 2016 (arXiv 1609.08144), section 7, with another form of the penalty.
    """
    # 1. Refuse what cannot be searched. Then begin with one beam, the prompt, which is read once for all.
    check_prompt(len(prompt), context := model.config.max_seq_len)
    if beams < 1:
        raise ValueError(f"beams is {beams}: it must be 1 or above")
    stops, steps = set(stop_ids), min(max_new_tokens, context - len(prompt))
    live, finished, cache = [Beam([], 0.0, 0.0)], [], KVCache(model, 1, len(prompt) + steps)
    new = torch.tensor([list(prompt)], device=model.token_embedding.weight.device)

    # 2. Lengthen all beams by one token, and keep the best of those that have ended.
    with evaluating(model):
        for step in range(1, steps + 1):
            logprobs = model(new, cache)[:, -1].float().log_softmax(dim=-1)  # (B, V)
            ended, live, parents = _lengthen(live, logprobs, beams, stops, step == steps, length_penalty)
            finished = sorted([*finished, *ended], key=lambda beam: -beam.score)[:beams]

            # 3. Stop when nothing that still grows could push one of these out: a log-probability only falls,
            # and the penalty helps it most at one of the lengths that are left.
            hopes = [beam.log_probability / n**length_penalty for beam in live[:1] for n in (step + 1, steps)]
            if not hopes or (len(finished) == beams and finished[-1].score >= max(hopes)):
                break

            # 4. Let each beam go on from the memory of the one it lengthens.
            cache.select(torch.tensor(parents, device=new.device))
            new = torch.tensor([[beam.ids[-1]] for beam in live], device=new.device)  # (B, 1)
    return finished


def _lengthen(live: list[Beam], logprobs: Tensor, beams: int, stops: set[int], last: bool,
              length_penalty: float) -> tuple[list[Beam], list[Beam], list[int]]:
    """Return the beams that end with their next token, the best that go on, and the rows that these came from.

    Shapes: logprobs (B, V), a row for each live beam.
    """
    # 1. Rank every beam with every next token: over the whole vocabulary, or a good text could be lost to a
    # worse beam's. Each beam can end in as many ways as there are stops, so enough are left to go on.
    totals = torch.tensor([[beam.log_probability] for beam in live], device=logprobs.device) + logprobs  # (B, V)
    best = totals.flatten().topk(min(totals.numel(), beams * (1 + len(stops))))
    ended, going, parents = [], [], []

    # 2. Let those end that are among the best here. Ending from a lower rank would fill the result with texts that
    # broke off.
    for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        parent, token = divmod(place, logprobs.shape[1])
        before, rated = live[parent].ids, total / (len(live[parent].ids) + 1) ** length_penalty
        if last or token in stops:
            ended += [Beam(before if token in stops else [*before, token], total, rated)] if rank < beams else []

        # 3. Keep as many going as there are beams.
        elif len(going) < beams:
            going.append(Beam([*before, token], total, rated))
            parents.append(parent)
    return ended, going, parents


@dataclasses.dataclass
class Acceptance:
    """How many guesses of a draft model the large one accepted, counted while the text is made."""

    guessed: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def rate(self) -> float:
        """Return the share of guesses that were accepted, 0 if there were none."""
        return self.accepted / max(1, self.guessed)


def speculative_generate(model: GPT, draft: GPT, prompt: Sequence[int], config: SamplingConfig,
                         stop_ids: Iterable[int] = (), draft_tokens: int = 4,
                         acceptance: Acceptance | None = None) -> Iterator[int]:
    """Yield new tokens as `generate` does, several for each pass of the model when the `draft` guesses well.

    The draft may be any model with the same tokens; where its context ends, the model goes on alone. Greedy text is
    that of the model alone; drawn text has the model's own probabilities, though one seed gives another text.
    `acceptance` is counted up on the way. Both caches hold the whole text, also under a sliding window.

    Raises ValueError for a draft with another vocabulary, for draft_tokens below 1, and as `generate_batch` does.
    Source: Leviathan et al. 2022 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (2302.01318), algorithm 2.
    """
    # 1. Refuse what cannot work. The ids of one vocabulary mean nothing in another.
    sizes, context = (model.config.vocab_size, draft.config.vocab_size), model.config.max_seq_len
    if sizes[0] != sizes[1]:
        raise ValueError(f"the draft model has {sizes[1]} tokens, the model {sizes[0]}: they must be the same tokens")
    if draft_tokens < 1:
        raise ValueError(f"draft_tokens is {draft_tokens}: it must be 1 or above")

    # 2. Return the loop itself.
    check_prompt(len(prompt), context)
    ids = torch.tensor([list(prompt)], device=model.token_embedding.weight.device)
    end = min(context, len(prompt) + config.max_new_tokens)
    return _speculative_loop(model, draft, ids, config, set(stop_ids), end, draft_tokens, acceptance or Acceptance())


@torch.inference_mode()
def _speculative_loop(model: GPT, draft: GPT, ids: Tensor, config: SamplingConfig, stop_ids: set[int], end: int,
                      draft_tokens: int, acceptance: Acceptance) -> Iterator[int]:
    """Yield the tokens behind `ids` (B, T) until the text has `end` tokens."""
    # 1. Prepare dice and memories. Guesses must be taken back, so these memories drop nothing.
    dice = torch.Generator(ids.device).manual_seed(config.seed)
    cache, draft_cache = (KVCache(each, 1, end, rolling=False) for each in (model, draft))
    with evaluating(model, draft):
        while (start := ids.shape[1]) < end:
            # 2. Let the draft guess, but no further than the text may go: the model adds one token of its own.
            count = max(0, min(draft_tokens, end - start - 1, draft.config.max_seq_len - start))
            guessed, proposals = _guess(draft, draft_cache, ids, count, config, dice)

            # 3. Read all guesses in one pass of the model, and keep those that it accepts.
            scores = model(guessed[:, cache.length :], cache)[0, -count - 1 :]  # (T, V)
            ids = _check(scores, guessed, proposals, config, dice)

            # 4. Take back what was read of rejected guesses. The newest token has not been read by either.
            for each in (cache, draft_cache):
                each.cut(ids.shape[1] - 1)
            acceptance.guessed, acceptance.passes = acceptance.guessed + count, acceptance.passes + 1
            acceptance.accepted += ids.shape[1] - start - 1

            # 5. Say what is certain now.
            for token in ids[0, start:].tolist():
                if token in stop_ids:
                    return
                yield token


def _guess(draft: GPT, cache: KVCache, ids: Tensor, count: int, config: SamplingConfig,
           dice: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """Return the text with `count` guesses behind it, and for each the probabilities (1, V) it was drawn with.

    Shapes: ids (B, T) -> (B, T + count), and a list.
    """
    # 1. Read what the draft has not read yet: the prompt at first, later a token or two.
    proposals = []
    for _ in range(count):
        scores = draft(ids[:, cache.length :], cache)[:, -1]  # (B, V)

        # 2. Draw from it as the model itself would draw.
        proposals.append(token_probabilities(scores, config, ids))
        ids = torch.cat([ids, torch.multinomial(proposals[-1], 1, generator=dice)], dim=1)
    return ids, proposals


def _check(scores: Tensor, guessed: Tensor, proposals: list[Tensor], config: SamplingConfig,
           dice: torch.Generator) -> Tensor:
    """Return the text up to the last guess that is accepted, and one token of the model's own behind it.

    Shapes: scores (T, V), one row for each guess and one behind them; guessed (1, S) -> (1, S) or shorter by the
    guesses rejected, and longer by one.
    """
    # 1. Go through the guesses. What both models would draw with depends on the text before each.
    start = guessed.shape[1] - len(proposals)
    for i, q in enumerate(proposals):
        text, guess = guessed[:, : start + i], guessed[0, start + i]
        p = token_probabilities(scores[i : i + 1], config, text)  # (B, V)

        # 2. Accept with probability min(1, p / q), written without the division.
        if torch.rand((), generator=dice, device=scores.device) * q[0, guess] < p[0, guess]:
            continue

        # 3. Otherwise draw from what the draft proposes too seldom. That makes up exactly for what it proposes
        # too often, so the whole is p. Only rounding can leave nothing there; then p and q are one.
        rest = (p - q).clamp(min=0)  # (B, V)
        rest = rest if rest.sum() > 0 else p
        return torch.cat([text, torch.multinomial(rest, 1, generator=dice)], dim=1)

    # 4. Add a token of the model's own, since all guesses were right: the pass has given its scores too.
    p = token_probabilities(scores[-1:], config, guessed)  # (B, V)
    return torch.cat([guessed, torch.multinomial(p, 1, generator=dice)], dim=1)


def stream_decoded(model: GPT, tokenizer: BPETokenizer, text: str, config: SamplingConfig,
                   decoding: DecodingConfig, draft: GPT | None = None, stop_strings: Iterable[str] = (),
                   acceptance: Acceptance | None = None) -> Iterator[str]:
    """Yield what the model says after `text`, made in the way that `decoding` asks for.

    The likeliest text of a search comes at once, the others piece by piece; with log-probabilities each
    token has a line of its own, its probability in front. `draft` is the opened model of `decoding.draft`.
    """
    # 1. Search.
    ids, stops = [*tokenizer.start_ids, *tokenizer.encode(text)], tokenizer.stop_ids
    if decoding.beams:
        found = beam_search(model, ids, decoding.beams, config.max_new_tokens, stops, decoding.length_penalty)
        return stream_text(tokenizer, found[0].ids)

    # 2. Let the draft guess ahead.
    if draft is not None:
        guessed = speculative_generate(model, draft, ids, config, stops, decoding.draft_tokens, acceptance)
        return stream_text(tokenizer, guessed, stop_strings)

    # 3. Show the probabilities, or what chapter 9 has always shown. A token alone need not be a whole letter.
    if decoding.logprobs:
        tokens = generate_with_logprobs(model, ids, config, stops)
        return (f"{math.exp(logprob):8.4f}  {tokenizer.decode([token])!r}\n" for token, logprob in tokens)
    return stream_story(model, tokenizer, text, config, stop_strings)

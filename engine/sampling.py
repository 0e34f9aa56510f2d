"""Sampling: from scores to the next token.

    scores → penalty → temperature → top-k → top-p → min-p → softmax → draw

The settings and their meaning are those of chapter 9, flag by flag. Here a text is one row of scores at a time, and
the dice are NumPy's: the same seed gives the same text again, but not the text that PyTorch's dice give.
"""

import dataclasses
import math

import numpy as np

from engine.layers import softmax

# Dice can begin at any number below this one.
SEEDS = 1 << 63


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to choose among the model's guesses; the defaults change nothing but the temperature.

        temperature          0 always takes the likeliest token, below 1 sharpens, above 1 flattens
        top_k                only this many of the likeliest tokens may be drawn
        top_p                only the likeliest ones that together reach this probability
        min_p                only those at least this share as probable as the likeliest
        repetition_penalty   above 1 makes tokens that were said before less likely
        max_new_tokens       when to stop at the latest
        seed                 where the dice start: same seed, same text

    top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch these filters off.
    Raises ValueError naming the setting, its value and its range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 250
    seed: int = 0

    def __post_init__(self):
        # 1. Know each setting's range. Outside of it nothing need fail: a negative temperature draws the unlikeliest
        # tokens, and a reader would blame the model.
        ranges = {
            "temperature": (lambda value: value >= 0, "0 or above; 0 means always the likeliest token"),
            "top_k": (lambda value: value >= 0, "0 or above; 0 means no limit"),
            "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1; 1 means no limit"),
            "min_p": (lambda value: 0 <= value < 1, "0 or above and below 1; 0 means no limit"),
            "repetition_penalty": (lambda value: value > 0, "above 0; 1 means none"),
            "max_new_tokens": (lambda value: value >= 1, "1 or above"),
            "seed": (lambda value: 0 <= value < SEEDS, f"0 or above and below {SEEDS}"),
        }

        # 2. Hold each against its kind first: no comparison ever finds nan wrong, and to Python True is 1.
        for field in dataclasses.fields(self):
            value, (holds, rule) = getattr(self, field.name), ranges[field.name]
            if type(value) not in (int, field.type) or not math.isfinite(value):
                kind = "whole" if field.type is int else "finite"
                raise ValueError(f"{field.name} is {value!r}: it must be a {kind} number")
            if not holds(value):
                raise ValueError(f"{field.name} is {value}: it must be {rule}")


def penalize_repetition(scores: np.ndarray, history: np.ndarray, penalty: float) -> np.ndarray:
    """Return the scores with those of tokens already in the text made less likely.

    A positive score is divided by the penalty and a negative one multiplied: dividing both would make unlikely
    tokens likelier.

    Shapes: scores (V,), history (S,) of ids -> (V,).
    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1.
    """
    seen, lowered = scores[history], scores.copy()  # (S,), (V,)
    lowered[history] = np.where(seen > 0, seen / np.float32(penalty), seen * np.float32(penalty))
    return lowered  # (V,)


def keep_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the scores with all but the `k` highest set to -inf; those equal to the last one stay.

    Shapes: (V,) -> (V,).
    """
    place = max(0, len(scores) - k)
    return np.where(scores < np.partition(scores, place)[place], -np.inf, scores)  # (V,)


def keep_top_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Return the scores of the smallest set of tokens whose probabilities reach `p`; the rest are -inf.

    The likeliest token always stays, however small `p` is.

    Shapes: (V,) -> (V,).
    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    # 1. Line the tokens up, likeliest first. Among equals the order is that of their ids, as it must be some order.
    order = np.argsort(-scores, kind="stable")  # (V,)
    probs = softmax(scores[order])  # (V,)

    # 2. Drop each whose predecessors have reached p already; the first has none.
    drop = np.cumsum(probs) - probs >= p  # (V,)
    kept = scores.copy()  # (V,)
    kept[order[drop]] = -np.inf
    return kept  # (V,)


def keep_min_p(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Return the scores of tokens at least `min_p` times as probable as the likeliest; the rest are -inf.

    Shapes: (V,) -> (V,).
    Source: Nguyen et al. 2024 (arXiv 2407.01082).
    """
    probs = softmax(scores)  # (V,)
    return np.where(probs < min_p * probs.max(), -np.inf, scores)  # (V,)


def token_probabilities(scores: np.ndarray, config: SamplingConfig, history: np.ndarray | None = None) -> np.ndarray:
    """Return the probability with which each token is drawn next; at temperature 0 the likeliest has all of it.

    `history` (the ids so far) is needed by the repetition penalty alone.

    Shapes: scores (V,), history (S,) -> (V,), with sum 1.
    Raises ValueError for scores that are no numbers: whatever were drawn from them would look like a choice.
    """
    # 1. Refuse what is no opinion, and lower what was said before.
    if not np.isfinite(scores.max()):
        raise ValueError("the model's scores are not finite: its folder is damaged, get it again")
    if config.repetition_penalty != 1 and history is not None:
        scores = penalize_repetition(scores, history, config.repetition_penalty)  # (V,)

    # 2. Give all to the best if nothing is to be drawn; otherwise sharpen or flatten, in double precision: small
    # differences decide. With the best at 0, which changes no share, even a temperature near 0 leaves it a number.
    if config.temperature == 0:
        return (np.arange(len(scores)) == scores.argmax()).astype(np.float64)  # (V,)
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()).astype(np.float64) / config.temperature  # (V,)

    # 3. Cut the tail, by rank, by mass, or by share of the best.
    if config.top_k:
        scores = keep_top_k(scores, config.top_k)  # (V,)
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p)  # (V,)

    # 4. Share the whole among what is left.
    if config.min_p:
        scores = keep_min_p(scores, config.min_p)  # (V,)
    return softmax(scores)  # (V,)


def sample_next(scores: np.ndarray, config: SamplingConfig, history: np.ndarray | None = None,
                dice: np.random.Generator | None = None) -> int:
    """Return the next token's id, drawn with `dice` or, at temperature 0, the likeliest.

    Shapes: scores (V,), history (S,).
    """
    # 1. Take the likeliest, if that is asked for.
    probs = token_probabilities(scores, config, history)  # (V,)
    if config.temperature == 0:
        return int(probs.argmax())

    # 2. Lay the probabilities end to end, and see on whose stretch a random point falls. A token that was cut has a
    # stretch without length, and is never drawn.
    reach = probs.cumsum()  # (V,)
    point = (dice or np.random.default_rng(config.seed)).random() * reach[-1]
    return int(np.searchsorted(reach, point, side="right"))

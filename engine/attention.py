"""Attention: every token looks back at the tokens before it and takes what it needs.

    attention(Q, K, V) = softmax(Q Kᵀ / √D) V

A query says what its token is looking for, a key what a token offers, a value what it hands over. This file climbs
from one head that sees everything to what a real engine runs:

    one_head         softmax(Q Kᵀ / √D) V, as the formula says
    causal_head      the same, with the future hidden
    many_heads       several heads, one after the other, that share keys and values in groups
    attend           all heads in a few large products, over the keys that can be seen at all: what the model uses
    KVCache          keys and values of the text so far, so that a new token need not compute them again

Each is equal to the one before it where both can answer, which the tests check.
"""

import math

import numpy as np

from engine.layers import softmax
from engine.quantize import from_bfloat16, to_bfloat16

# How many queries are answered together. The table of scores has so many rows at a time, however long the text is.
QUERY_BLOCK = 256


def one_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return what each token takes home from the tokens that it may look at: from all of them without a `mask`.

    Shapes: q (T, D), k and v (S, D), mask (T, S) True where looking is allowed -> (T, D).
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    # 1. Score every pair. A sum of D products grows with √D, and is divided by it: else softmax would choose one
    # key and forget the others.
    scores = q @ k.T / np.float32(math.sqrt(q.shape[-1]))  # (T, S)

    # 2. Hide what may not be seen. exp(-inf) is exactly 0, so nothing leaks through.
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf))  # (T, S)

    # 3. Mix the values by their shares.
    return softmax(scores) @ v  # (T, D)


def causal_mask(num_queries: int, num_keys: int, window: int | None = None) -> np.ndarray:
    """Return True where a query may look: at itself and what came before, or at the newest `window` of these.

    The last query stands at the last key: with remembered keys, the first query already has a past.

    Shapes: -> (T, S) of booleans with T = num_queries, S = num_keys.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3; window: Jiang et al. 2023 (2310.06825).
    """
    # 1. Number queries and keys on one scale, and measure how far back each key lies.
    back = np.arange(num_keys - num_queries, num_keys)[:, None] - np.arange(num_keys)  # (T, S)

    # 2. Forbid the future, and with a window the distant past.
    allowed = back >= 0  # (T, S)
    return allowed if window is None else allowed & (back < window)  # (T, S)


def causal_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None = None) -> np.ndarray:
    """Return what each token takes home from itself and the tokens before it.

    Shapes: q (T, D), k and v (S, D), the last query at the last key -> (T, D).
    """
    return one_head(q, k, v, causal_mask(len(q), len(k), window))  # (T, D)


def many_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None = None) -> np.ndarray:
    """Return what each head takes home, one head after the other: the slow and obvious way.

    With fewer key/value heads than query heads, neighbouring query heads share one.

    Shapes: q (H, T, D), k and v (K, S, D) -> (H, T, D).
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; groups: Ainslie et al. 2023 (2305.13245).
    """
    group = len(q) // len(k)
    return np.stack([causal_head(q[h], k[h // group], v[h // group], window) for h in range(len(q))])  # (H, T, D)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None = None) -> np.ndarray:
    """Return what `many_heads` returns, by few large products and without the scores that nobody may see.

    Shapes: q (H, T, D), k and v (K, S, D) -> (H, T, D).
    """
    # 1. Line up the query heads that share a key/value head, so that one product serves them all.
    (heads, length, size), past = q.shape, k.shape[1] - q.shape[1]
    groups = q.reshape(len(k), heads // len(k), length, size) / np.float32(math.sqrt(size))  # (K, H/K, T, D)
    out = np.empty_like(groups)  # (K, H/K, T, D)

    # 2. Take a block of queries, and of the keys only those from the oldest that its first query may see to its last
    # query's own. Half of a long table of scores is future: most of that half is never computed.
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        begin = 0 if window is None else max(0, past + start - window + 1)
        keys, values = k[:, None, begin : past + stop], v[:, None, begin : past + stop]
        scores = groups[:, :, start:stop] @ keys.swapaxes(-1, -2)

        # 3. Hide the rest. A single query sees all the keys that are left.
        if stop - start > 1:
            mask = causal_mask(stop - start, past + stop - begin, window)
            scores = np.where(mask, scores, np.float32(-np.inf))
        out[:, :, start:stop] = softmax(scores) @ values
    return out.reshape(heads, length, size)  # (H, T, D)


class LayerCache:
    """The keys and values of one layer for the text so far, in memory that is reserved once.

    With a `window` nobody looks further back than that; when the memory is full, what is still seen moves to its
    front and the rest is dropped, so a text may be longer than the memory. `short` rounds all to bfloat16, which is
    how `fast.py` keeps them beside short weights: of a long text they are most of what is read.
    """

    def __init__(self, num_kv_heads: int, capacity: int, head_dim: int, window: int | None = None, short: bool = False):
        self.keys, self.values = np.empty((2, num_kv_heads, capacity, head_dim), np.float32)
        self.window, self.short, self.length, self.dropped = window, short, 0, 0

    def append(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Remember the keys and values of new tokens; return those of all tokens that one of the new ones may see.

        What is returned is a view of the memory, valid until the next call.

        Shapes: k and v (K, T, D) -> (K, S, D), (K, S, D).
        """
        # 1. Find the place behind what is there, and the oldest token that the first new one may see.
        k, v = (from_bfloat16(to_bfloat16(x)) for x in (k, v)) if self.short else (k, v)
        first = 0 if self.window is None else max(0, self.length - self.window + 1)
        begin, end = first - self.dropped, self.length - self.dropped
        stop, self.length = end + k.shape[1], self.length + k.shape[1]

        # 2. Write there, if there is room. The text so far is not copied: a token costs the same early and late.
        if stop <= self.keys.shape[1]:
            self.keys[:, end:stop], self.values[:, end:stop] = k, v
            return self.keys[:, begin:stop], self.values[:, begin:stop]  # (K, S, D), (K, S, D)

        # 3. Else join what the new tokens may see; a long prompt alone may be more than the memory holds.
        k = np.concatenate([self.keys[:, begin:end], k], axis=1)  # (K, S, D)
        v = np.concatenate([self.values[:, begin:end], v], axis=1)  # (K, S, D)

        # 4. Keep the end of it. The next token brings itself, so a window less one is enough.
        kept = self.window - 1
        self.keys[:, :kept], self.values[:, :kept] = k[:, k.shape[1] - kept :], v[:, v.shape[1] - kept :]
        self.dropped = self.length - kept
        return k, v  # (K, S, D), (K, S, D)


class KVCache:
    """What every layer of a model remembers of one text of up to `max_len` tokens.

    In a model with a sliding window, memory for twice the window serves a text of any length: then tokens move to
    the front once in a window, not at each step.
    """

    def __init__(self, config, max_len: int, short: bool = False):
        capacity = max_len if config.sliding_window is None else min(max_len, 2 * config.sliding_window)
        sizes = config.num_kv_heads, capacity, config.head_dim, config.sliding_window, short
        self.max_len, self.layers = max_len, [LayerCache(*sizes) for _ in range(config.num_layers)]

    @property
    def length(self) -> int:
        """How many tokens every layer has seen."""
        return self.layers[-1].length

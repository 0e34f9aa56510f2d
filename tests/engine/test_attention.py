"""Attention: every rung is PyTorch's kernel, and what the cache remembers is what would be computed again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine import attention
from engine.attention import KVCache, LayerCache, attend, causal_head, causal_mask, many_heads, one_head

D = 6


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def heads(queries: int, keys: int, length: int, past: int = 0) -> tuple[np.ndarray, ...]:
    return random(queries, length, D), random(keys, past + length, D, seed=1), random(keys, past + length, D, seed=2)


def pytorch(q, k, v, window=None) -> np.ndarray:
    """What PyTorch's fused kernel gives, with a mask written anew."""
    length, total = q.shape[1], k.shape[1]
    past = torch.arange(total - length, total)[:, None] - torch.arange(total)
    mask = (past >= 0) & (past < (window or total))
    q, k, v = (torch.from_numpy(x)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)[0].numpy()


def test_one_head_sees_all_there_is():
    q, k, v = random(5, D), random(8, D, seed=1), random(8, D, seed=2)
    theirs = F.scaled_dot_product_attention(*(torch.from_numpy(x) for x in (q, k, v)))
    np.testing.assert_allclose(one_head(q, k, v), theirs.numpy(), atol=1e-6)


def test_future_tokens_cannot_change_the_past():
    q, k, v = (x[0] for x in heads(1, 1, 9))
    before = causal_head(q, k, v)
    k[6:], v[6:] = 99, -99
    after = causal_head(q, k, v)
    np.testing.assert_array_equal(before[:6], after[:6])
    assert (before[6:] != after[6:]).all()


def test_a_mask_looks_back_from_the_end_and_no_further_than_the_window():
    np.testing.assert_array_equal(causal_mask(2, 4), [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(causal_mask(3, 4, window=2), [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])


@pytest.mark.parametrize("block", [3, 256])
@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_slow_and_fast_heads_are_pytorchs(length, queries, keys, past, window, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    q, k, v = heads(queries, keys, length, past)
    np.testing.assert_allclose(many_heads(q, k, v, window), pytorch(q, k, v, window), atol=2e-6)
    np.testing.assert_allclose(attend(q, k, v, window), pytorch(q, k, v, window), atol=2e-6)


@pytest.mark.parametrize("window", [None, 1, 2, 5])
@pytest.mark.parametrize("steps", [[13], [1] * 13, [4, 1, 1, 6, 1], [1, 9, 3]])
def test_remembered_keys_give_what_all_keys_give(steps, window):
    q, k, v = heads(6, 2, 13)
    cache = LayerCache(2, 13 if window is None else min(13, 2 * window), D, window)
    at, found = 0, []
    for count in steps:
        new = slice(at, at := at + count)
        keys, values = cache.append(k[:, new], v[:, new])
        assert window is None or keys.shape[1] <= window - 1 + count
        found.append(attend(q[:, new], keys, values, window))
    np.testing.assert_allclose(np.concatenate(found, axis=1), pytorch(q, k, v, window), atol=2e-6)


def test_memory_is_reserved_once_and_is_small_where_the_model_slides():
    config = SimpleNamespace(num_layers=3, num_kv_heads=2, head_dim=D, sliding_window=None)
    cache = KVCache(config, 40)
    first, _ = cache.layers[0].append(*random(2, 2, 3, D))
    second, _ = cache.layers[0].append(*random(2, 2, 1, D))
    assert cache.layers[0].keys.shape == (2, 40, D) and np.shares_memory(first, second)
    config.sliding_window = 5
    assert KVCache(config, 40).layers[0].keys.shape == (2, 10, D)
    assert KVCache(config, 7).layers[0].keys.shape == (2, 7, D)

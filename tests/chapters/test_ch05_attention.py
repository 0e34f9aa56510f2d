"""Chapter 5: by hand equals fused, the past never learns of the future, shared heads are repeated heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chapters.ch04_positional_encoding import apply_rope, rope_tables
from chapters.ch05_attention import (
    MultiHeadAttention,
    attend,
    causal_mask,
    repeat_kv,
    scaled_dot_product_attention,
    softmax,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(**changes) -> MultiHeadAttention:
    """Return a layer of six query heads on a width of 30, in evaluation mode, from one seed."""
    torch.manual_seed(5)
    return MultiHeadAttention(**({"d_model": 30, "num_heads": 6, "head_dim": 4} | changes)).eval()


class Memory:
    """A cache for one layer, as short as can be."""

    def __init__(self):
        self.k = self.v = torch.empty(0)

    def append(self, k, v):
        self.k = torch.cat([self.k, k], dim=2) if self.k.numel() else k
        self.v = torch.cat([self.v, v], dim=2) if self.v.numel() else v
        return self.k, self.v


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_equals_that_of_torch(dim):
    x = noise(3, 5, 7) * 20
    torch.testing.assert_close(softmax(x, dim), F.softmax(x, dim))


def test_softmax_survives_huge_scores_and_gives_hidden_ones_nothing():
    scores = torch.tensor([1000.0, 999.0, -float("inf")])
    weights = softmax(scores)
    torch.testing.assert_close(weights, F.softmax(scores, -1))
    assert weights[2] == 0 and weights.sum() == 1
    assert [round(w, 3) for w in softmax(torch.tensor([0.297, -0.106, -0.368])).tolist()] == [
        0.458,
        0.306,
        0.236,
    ]


@pytest.mark.parametrize(
    "queries, keys, window", [(7, 7, None), (3, 8, None), (1, 5, None), (7, 7, 3), (2, 9, 4), (6, 6, 1)]
)
def test_mask_allows_oneself_and_the_past_within_the_window(queries, keys, window):
    mask = causal_mask(queries, keys, window)
    assert mask.shape == (queries, keys) and mask.dtype == torch.bool
    for row in range(queries):
        position = keys - queries + row
        for key in range(keys):
            near = window is None or position - key < window
            assert mask[row, key].item() == (key <= position and near)


@pytest.mark.parametrize("queries, keys, window", [(11, 11, None), (3, 11, None), (11, 11, 4), (1, 11, None)])
def test_by_hand_equals_the_fused_kernel(queries, keys, window):
    q, k, v = noise(2, 3, queries, 5), noise(2, 3, keys, 5, seed=1), noise(2, 3, keys, 5, seed=2)
    mask = causal_mask(queries, keys, window)
    output, weights = scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, queries))
    assert (weights.masked_select(~mask) == 0).all()


def test_by_hand_has_the_gradients_of_the_fused_kernel():
    mask, gradients = causal_mask(7, 7), []
    for attention in (
        lambda *x: scaled_dot_product_attention(*x, mask)[0],
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True),
    ):
        inputs = [noise(2, 3, 7, 5, seed=i).requires_grad_() for i in range(3)]
        attention(*inputs).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    torch.testing.assert_close(*gradients)


def test_without_turning_the_layer_equals_torch_multihead_attention():
    ours = layer(d_model=24, head_dim=None, qkv_bias=True)
    theirs = nn.MultiheadAttention(24, 6, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]),
            "in_proj_bias": torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]),
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": torch.zeros(24),
        }
    )
    x = noise(2, 9, 24)
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(9, 9), need_weights=False)
    torch.testing.assert_close(ours(x, torch.ones(9, 2), torch.zeros(9, 2)), expected)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("extras", [{}, {"qkv_bias": True}, {"qk_norm": True}])
def test_layer_equals_the_specification(window, kv_heads, extras):
    model, x, tables = layer(num_kv_heads=kv_heads, **extras), noise(2, 11, 30), rope_tables(4, 11)
    mask = causal_mask(11, 11, window)
    q, k, v = model.project(x, *tables)
    assert k.shape == v.shape == (2, kv_heads, 11, 4)
    heads, _ = scaled_dot_product_attention(q, repeat_kv(k, 6 // kv_heads), repeat_kv(v, 6 // kv_heads), mask)
    expected = model.output(heads.transpose(1, 2).reshape(2, 11, 24))
    torch.testing.assert_close(model(x, *tables, mask=mask), expected)
    if window is None:
        torch.testing.assert_close(model(x, *tables), expected)


@pytest.mark.parametrize("queries, keys, window", [(7, 7, None), (1, 9, None), (7, 7, 3), (600, 600, None)])
def test_what_is_handed_to_the_compiler_and_the_fused_kernel_agree(monkeypatch, queries, keys, window):
    shapes = (2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)
    q, k, v = (noise(*shape, seed=i).bfloat16() for i, shape in enumerate(shapes))
    mask = None if window is None else causal_mask(queries, keys, window)
    fused, calls = attend(q, k, v, mask), []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: calls.append(1) or kernel(*args))
    torch.testing.assert_close(attend(q, k, v, mask), fused, rtol=0.02, atol=0.02)
    assert len(calls) == (keys > 512), "long rows belong to the kernel, short ones to the compiler"
    torch.testing.assert_close(attend(q.float(), k.float(), v.float(), mask), fused.float(), rtol=0.02, atol=0.02)
    assert len(calls) == 1 + (keys > 512), "float32 belongs to the kernel"


@pytest.mark.parametrize("kv_heads", [3, 2, 1])
def test_grouped_heads_equal_full_heads_that_repeat_the_shared_ones(kv_heads):
    grouped, full = layer(num_kv_heads=kv_heads), layer()
    full.load_state_dict(
        grouped.state_dict()
        | {
            f"{name}.weight": getattr(grouped, name)
            .weight.view(kv_heads, 4, 30)
            .repeat_interleave(6 // kv_heads, 0)
            .flatten(0, 1)
            for name in ("key", "value")
        }
    )
    x, tables = noise(2, 7, 30), rope_tables(4, 7)
    torch.testing.assert_close(grouped(x, *tables), full(x, *tables))
    q, k, v = grouped.project(x, *tables)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(grouped(x, *tables), grouped.output(theirs.transpose(1, 2).flatten(2)))


def test_queries_and_keys_are_turned_and_values_are_not():
    model, x, tables = layer(num_kv_heads=2), noise(1, 5, 30), rope_tables(4, 5)
    q, k, v = model.project(x, *tables)
    flat = [m(x).unflatten(-1, (-1, 4)).transpose(1, 2) for m in (model.query, model.key, model.value)]
    torch.testing.assert_close(
        (q, k, v), (apply_rope(flat[0], *tables), apply_rope(flat[1], *tables), flat[2])
    )


def test_sliding_window_equals_attending_to_the_newest_tokens_alone():
    q, k, v, window = noise(1, 2, 13, 6), noise(1, 2, 13, 6, seed=1), noise(1, 2, 13, 6, seed=2), 4
    whole, _ = scaled_dot_product_attention(q, k, v, causal_mask(13, 13, window))
    for t in range(13):
        seen = slice(max(0, t - window + 1), t + 1)
        alone = F.scaled_dot_product_attention(q[:, :, t : t + 1], k[:, :, seen], v[:, :, seen])
        torch.testing.assert_close(whole[:, :, t : t + 1], alone)


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 2}, {"qk_norm": True}])
def test_future_tokens_cannot_change_the_past(changes):
    model, x, tables = layer(**changes), noise(2, 12, 30), rope_tables(4, 12)
    other = x.clone()
    other[:, 8:] += 10
    before, after = model(x, *tables), model(other, *tables)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=1e-6)
    assert not torch.isclose(before[:, 8:], after[:, 8:]).all(dim=-1).any()


def test_no_gradient_flows_from_the_past_into_the_future():
    x = noise(1, 9, 30).requires_grad_()
    layer()(x, *rope_tables(4, 9))[:, 5].square().sum().backward()
    reached = x.grad[0].abs().sum(dim=-1) > 0
    assert reached.tolist() == [True] * 6 + [False] * 3


def test_qk_norm_makes_scores_blind_to_the_size_of_queries_and_keys():
    model, x, tables = layer(qk_norm=True, norm_eps=1e-12), noise(2, 7, 30), rope_tables(4, 7)
    before = model(x, *tables)
    q, k, _ = model.project(x, *tables)
    torch.testing.assert_close(q.norm(dim=-1), torch.full((2, 6, 7), 4**0.5))
    assert (q @ k.mT).abs().max() / 4**0.5 <= 4**0.5 + 1e-4  # √D, the largest score there can be
    with torch.no_grad():
        model.query.weight *= 100
        model.key.weight *= 0.01
    torch.testing.assert_close(model(x, *tables), before)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_one_token_at_a_time_with_a_cache_equals_the_whole_text_at_once(kv_heads, window):
    model, x, (cos, sin) = layer(num_kv_heads=kv_heads), noise(2, 8, 30), rope_tables(4, 8)
    whole, memory, parts = model(x, cos, sin, causal_mask(8, 8, window)), Memory(), []
    for t in range(8):
        mask = causal_mask(1, t + 1, window) if window else None
        parts.append(model(x[:, t : t + 1], cos[t : t + 1], sin[t : t + 1], mask, memory))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_several_tokens_after_a_cache_see_the_cache_and_their_own_past():
    model, x, (cos, sin), memory = layer(), noise(1, 8, 30), rope_tables(4, 8), Memory()
    whole = model(x, cos, sin)
    parts = [model(x[:, p], cos[p], sin[p], cache=memory) for p in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_dropout_acts_in_training_only():
    model, x, tables = layer(dropout=0.5), noise(1, 7, 30), rope_tables(4, 7)
    torch.testing.assert_close(model(x, *tables), layer(dropout=0.0)(x, *tables))
    model.train()
    assert not torch.equal(model(x, *tables), model(x, *tables))


def test_attention_is_not_linear_in_its_input():
    model, x, tables = layer(), noise(1, 7, 30), rope_tables(4, 7)
    assert (model(2 * x, *tables) - 2 * model(x, *tables)).abs().max() > 0.01


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"d_model": 31, "head_dim": None}, "d_model 31 is not divisible by num_heads 6"),
        ({"num_kv_heads": 4}, "num_heads 6 is not divisible by num_kv_heads 4"),
    ],
)
def test_heads_that_do_not_divide_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        layer(**changes)

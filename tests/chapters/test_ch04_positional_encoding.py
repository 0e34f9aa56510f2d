"""Chapter 4: RoPE turns and never stretches, scores know distances only, files agree with Transformers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from chapters.ch04_positional_encoding import (
    apply_rope,
    rope_tables,
    scaled_frequencies,
    sinusoidal_positions,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sinusoids_are_the_papers_formula():
    table = sinusoidal_positions(19, 6)
    assert table.shape == (19, 6)
    for position in (0, 1, 7, 18):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_tables_equal_those_of_transformers(theta):
    config = LlamaConfig(
        hidden_size=70,
        num_attention_heads=5,
        head_dim=14,
        max_position_embeddings=53,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(53)[None])
    ours = rope_tables(14, 53, theta)
    assert [t.dtype for t in ours] == [torch.float32] * 2
    torch.testing.assert_close(torch.cat([ours[0]] * 2, dim=-1), cos[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([ours[1]] * 2, dim=-1), sin[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scaling", [LLAMA3, LLAMA3 | {"factor": 32.0}, {"rope_type": "linear", "factor": 4.0}]
)
def test_context_scaling_equals_that_of_transformers(scaling):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, device="cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2) / 128)
    ours = scaled_frequencies(plain, scaling)
    assert factor == 1.0
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    # A scaling that left everything alone, or slowed everything alike, would not test the bands.
    ratios = (plain / ours).round(decimals=3)
    assert ratios.max() == scaling["factor"]
    if scaling["rope_type"] == "llama3":
        assert ratios.min() == 1 and len(ratios.unique()) > 3


def test_tables_use_the_scaling_they_are_given():
    plain, squeezed = rope_tables(6, 40), rope_tables(6, 40, scaling={"rope_type": "linear", "factor": 4.0})
    torch.testing.assert_close(squeezed[0][::4], plain[0][:10], rtol=0, atol=1e-6)


def test_half_split_rotation_equals_that_of_transformers():
    q, k, (cos, sin) = noise(2, 6, 11, 10), noise(2, 3, 11, 10, seed=1), rope_tables(10, 11)
    full = [torch.cat([t, t], dim=-1)[None] for t in (cos, sin)]
    theirs = apply_rotary_pos_emb(q, k, *full)
    torch.testing.assert_close(apply_rope(q, cos, sin), theirs[0])
    torch.testing.assert_close(apply_rope(k, cos, sin), theirs[1])


def test_interleaved_rotation_is_multiplication_of_complex_numbers():
    x, (cos, sin) = noise(3, 5, 7, 8), rope_tables(8, 7)
    expected = torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.complex(cos, sin)
    ).flatten(-2)
    torch.testing.assert_close(apply_rope(x, cos, sin, interleaved=True), expected)


def test_the_two_layouts_differ_by_a_fixed_reordering_only():
    x, (cos, sin) = noise(2, 3, 13, 10), rope_tables(10, 13)
    order = torch.arange(10).view(5, 2).T.flatten()  # the even places, then the odd ones
    reordered = apply_rope(x[..., order], cos, sin)
    torch.testing.assert_close(reordered, apply_rope(x, cos, sin, interleaved=True)[..., order])
    assert not torch.allclose(apply_rope(x, cos, sin), apply_rope(x, cos, sin, interleaved=True))


def test_at_head_size_two_layouts_coincide_and_theta_has_no_effect():
    x = noise(1, 2, 9, 2)
    tables, others = rope_tables(2, 9, theta=10000.0), rope_tables(2, 9, theta=7.0)
    assert torch.equal(tables[0], others[0]) and torch.equal(tables[1], others[1])
    assert torch.equal(apply_rope(x, *tables), apply_rope(x, *tables, interleaved=True))
    assert not torch.equal(rope_tables(4, 9, theta=10000.0)[0], rope_tables(4, 9, theta=7.0)[0])


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 60), second=st.integers(0, 60), shift=st.integers(1, 60), layout=st.booleans())
def test_a_score_depends_on_the_difference_of_positions_only(first, second, shift, layout):
    cos, sin = (t.double() for t in rope_tables(14, 128))
    q, k = noise(1, 14).double(), noise(1, 14, seed=1).double()

    def score(m: int, n: int) -> float:
        turned = [apply_rope(x, cos[p : p + 1], sin[p : p + 1], layout) for x, p in ((q, m), (k, n))]
        return (turned[0] * turned[1]).sum().item()

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-5)
    assert score(first, second) != pytest.approx(score(first + shift, second), abs=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_keeps_lengths_and_leaves_position_zero_alone(interleaved):
    x, (cos, sin) = noise(2, 3, 17, 6), rope_tables(6, 17)
    turned = apply_rope(x, cos, sin, interleaved)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.isclose(turned[:, :, 1:], x[:, :, 1:]).all(dim=-1).any()
    torch.testing.assert_close(apply_rope(turned, cos, -sin, interleaved), x)


def test_a_token_turns_alike_alone_and_in_its_text():
    x, (cos, sin) = noise(1, 2, 12, 6), rope_tables(6, 12)
    assert torch.equal(apply_rope(x, cos, sin)[:, :, 7:9], apply_rope(x[:, :, 7:9], cos[7:9], sin[7:9]))


def test_the_dtype_stays_and_late_positions_remain_distinct():
    cos, sin = rope_tables(4, 1000)
    assert apply_rope(noise(1, 1, 1000, 4).bfloat16(), cos, sin).dtype == torch.bfloat16
    assert torch.tensor(301.0).bfloat16() == torch.tensor(300.0).bfloat16()
    assert (cos[301] - cos[300]).abs().max() > 0.01


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"head_dim": 7, "max_seq_len": 5}, "head_dim 7"),
        ({"head_dim": 8, "max_seq_len": 5, "scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_impossible_rotations_are_refused_in_one_line(arguments, word):
    with pytest.raises(ValueError, match=word) as caught:
        rope_tables(**arguments)
    assert "\n" not in str(caught.value)

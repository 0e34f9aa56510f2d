"""Layers: each is the function of PyTorch that has its name, for large numbers too."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine import layers
from engine.quantize import quantize

T, C, HIDDEN = 7, 24, 41


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def close(ours: np.ndarray, theirs: torch.Tensor, atol: float = 2e-6) -> None:
    assert ours.dtype == np.float32 and ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=atol)


@pytest.mark.parametrize("shape", [(5,), (T, C), (2, 3, 5)])
@pytest.mark.parametrize(("name", "theirs"), [
    ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("silu", F.silu),
])
def test_activations_bend_as_in_pytorch(name, theirs, shape):
    x = random(*shape, scale=5)
    close(layers.ACTIVATIONS[name](x), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_survive_numbers_of_any_size(name):
    x = np.array([-3e4, -200, -0.0, 0, 200, 3e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        bent = layers.ACTIVATIONS[name](x)
    np.testing.assert_array_equal(bent, np.maximum(x, 0))


def test_the_fast_gelu_differs_from_the_exact_one_by_less_than_it_says():
    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    assert np.abs(layers.gelu(x) - layers.gelu_tanh(x)).max() < 0.0005


def test_linear_is_pytorchs_with_and_without_a_bias():
    x, weight, bias = random(T, C), random(HIDDEN, C, seed=1), random(HIDDEN, seed=2)
    close(layers.linear(x, weight, bias), F.linear(*map(torch.from_numpy, (x, weight, bias))), atol=1e-5)
    close(layers.linear(x, weight), F.linear(*map(torch.from_numpy, (x, weight))), atol=1e-5)


def test_linear_takes_a_quantised_matrix_too():
    x, weight, bias = random(T, C), random(HIDDEN, C, seed=1), random(HIDDEN, seed=2)
    np.testing.assert_array_equal(layers.linear(x, quantize(weight, "fp32"), bias), layers.linear(x, weight, bias))
    assert np.abs(layers.linear(x, quantize(weight, "int8")) - layers.linear(x, weight)).max() < 0.5


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_norms_level_as_in_pytorch(scale, eps):
    x, weight, bias = random(3, T, C, scale=scale), random(C, seed=1), random(C, seed=2)
    a, w, b = map(torch.from_numpy, (x, weight, bias))
    close(layers.layer_norm(x, weight, bias, eps), F.layer_norm(a, (C,), w, b, eps), atol=2e-5)
    close(layers.rms_norm(x, weight, eps), F.rms_norm(a, (C,), w, eps), atol=2e-5)


def test_a_vector_of_equal_numbers_is_levelled_without_a_division_by_zero():
    same, one = np.full((1, C), 3, np.float32), np.ones(C, np.float32)
    np.testing.assert_array_equal(layers.layer_norm(same, one, one), np.ones((1, C)))
    assert np.isfinite(layers.rms_norm(0 * same, one)).all()


@pytest.mark.parametrize("softmax", [layers.softmax_naive, layers.softmax, layers.softmax_online])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_every_softmax_gives_pytorchs_shares(softmax, length):
    x = random(3, 5, length, scale=4)
    close(softmax(x), torch.from_numpy(x).softmax(dim=-1))


@pytest.mark.parametrize("softmax", [layers.softmax, layers.softmax_online])
def test_large_scores_overflow_the_naive_softmax_alone(softmax):
    x = random(2, 300, scale=1000)
    x[0, :70], x[1, 130:] = -np.inf, -np.inf
    close(softmax(x), torch.from_numpy(x).softmax(dim=-1))
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isnan(layers.softmax_naive(x)).any()


@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_online_softmax_is_the_same_whatever_it_sees_at_once(block):
    x = np.sort(random(4, 50, scale=9))
    np.testing.assert_allclose(layers.softmax_online(x, block), layers.softmax(x), rtol=1e-5, atol=1e-9)


def test_networks_are_pytorchs_linears_around_a_bend():
    x, up, down, gate = random(T, C), random(HIDDEN, C, seed=1), random(C, HIDDEN, seed=2), random(HIDDEN, C, seed=3)
    up_bias, down_bias = random(HIDDEN, seed=4), random(C, seed=5)
    a, u, d, g, ub, db = map(torch.from_numpy, (x, up, down, gate, up_bias, down_bias))
    theirs = F.linear(F.gelu(F.linear(a, u, ub), approximate="tanh"), d, db)
    close(layers.mlp(x, up, up_bias, down, down_bias), theirs, atol=2e-4)
    close(layers.swiglu(x, gate, up, down), F.linear(F.silu(F.linear(a, g)) * F.linear(a, u), d), atol=2e-4)


def test_the_exact_gelu_is_the_chance_of_a_bell_shaped_dice():
    assert layers.gelu(np.float32([1.0]))[0] == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), rel=1e-6)

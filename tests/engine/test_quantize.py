"""The formats of weights: what they keep, what they cost, what they refuse."""

import numpy as np
import pytest
import torch

from engine.quantize import DTYPES, GROUP, quantize, quantize_input, to_bfloat16

N, T = 37, 5


def matrix(columns: int, rows: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@pytest.mark.parametrize("columns", [1, 31, 64, 100])
@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0), ("bf16", 2**-8), ("int8", 0.5 / 127), ("int4", 1 / 8)])
def test_no_weight_moves_by_more_than_its_format_allows(dtype, error, columns):
    weights = matrix(columns)
    stored = quantize(weights, dtype).rows(slice(None))
    assert stored.shape == weights.shape and stored.dtype == np.float32
    largest = np.abs(weights).max() if dtype.startswith("int") else np.abs(weights)
    assert (np.abs(stored - weights) <= error * 1.01 * largest).all()


@pytest.mark.parametrize("columns", [33, 96])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_that_of_the_stored_weights(dtype, columns):
    stored, x = quantize(matrix(columns), dtype), matrix(columns, T, seed=1)
    exact = x.astype(np.float64) @ stored.rows(slice(None)).astype(np.float64).T
    rounding = 0.03 if dtype.startswith("int") else 1e-6
    assert np.abs(stored.product(x) - exact).max() <= rounding * np.abs(exact).max()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_sum_over_groups_of_whole_numbers_says_the_same_as_the_product(dtype):
    stored, x = quantize(matrix(70), dtype), matrix(70, T, seed=1)
    numbers, scales = quantize_input(x)
    sums = np.einsum("tgc,ngc->tng", numbers.reshape(T, -1, GROUP).astype(int),
                     stored.integers(slice(None)).reshape(N, -1, GROUP).astype(int))
    expected = (sums * scales[:, None, :].astype(float) * stored.scales.astype(float)).sum(axis=-1)
    np.testing.assert_allclose(stored.product(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_worked_on_in_blocks_and_come_out_as_at_once(dtype, monkeypatch):
    whole, x = quantize(matrix(70), dtype), matrix(70, T, seed=1)
    expected = whole.product(x)
    monkeypatch.setattr("engine.quantize.BLOCK_ROWS", 7)
    stored = quantize(matrix(70), dtype)
    np.testing.assert_array_equal(stored.rows(slice(None)), whole.rows(slice(None)))
    np.testing.assert_allclose(stored.product(x), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -127, 127), ("int4", -8, 7)])
@pytest.mark.parametrize("size", [1, 1e-5, 5e-6, 1e-6, 3e-7, 1e-30])
def test_whole_numbers_stay_in_their_range_though_the_scale_is_rounded(size, dtype, low, high):
    # A scale of 1e-9 is among the last numbers that 16 bits hold, or is rounded to nothing: then so are the weights.
    weights = matrix(64) * np.float32(size)
    stored = quantize(weights, dtype)
    assert low <= stored.integers(slice(None)).min() and stored.integers(slice(None)).max() <= high
    assert (np.abs(stored.rows(slice(None)) - weights) <= np.abs(weights).max()).all()
    numbers, _ = quantize_input(weights)
    assert -127 <= numbers.min() and numbers.max() <= 127


def test_ties_between_two_bfloat16_go_to_the_even_one():
    halfway = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000], np.uint32).view(np.float32)
    assert to_bfloat16(halfway).tolist() == [0x3F80, 0x3F82, 0xBF80, 0xBF82]


def test_bfloat16_rounds_as_pytorch_does():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    numbers = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    theirs = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(to_bfloat16(numbers), theirs)


@pytest.mark.parametrize(("dtype", "per_weight"), [("fp32", 4), ("bf16", 2), ("int8", 34 / 32), ("int4", 18 / 32)])
def test_the_bytes_are_those_promised(dtype, per_weight):
    assert quantize(matrix(128), dtype).nbytes == N * 128 * per_weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros(dtype):
    with np.errstate(all="raise", under="ignore"):
        stored = quantize(np.zeros((3, 40), np.float32), dtype)
        assert not stored.rows(slice(None)).any() and not stored.product(np.ones((2, 40))).any()
        assert not quantize(matrix(40), dtype).product(np.zeros((2, 40))).any()
        assert not quantize_input(np.full((1, 40), 1e-40, np.float32))[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_another_kind_and_order_are_taken_as_float32(dtype):
    turned = quantize(matrix(40).T.copy().T.astype(np.float64), dtype)
    np.testing.assert_array_equal(turned.rows(slice(None)), quantize(matrix(40), dtype).rows(slice(None)))
    assert turned.rows(slice(None)).dtype == np.float32 and turned.values.flags.c_contiguous
    assert turned.product(matrix(40, T, seed=1).astype(np.float64)).dtype == np.float32


def test_four_bits_err_less_than_the_largest_weight_at_minus_eight_would():
    groups = matrix(64, 200).reshape(200, 2, GROUP)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    naive = np.clip(np.rint(groups / (extreme / -8)), -8, 7) * (extreme / -8)
    ours = quantize(groups.reshape(200, 64), "int4").rows(slice(None))
    assert np.square(ours - groups.reshape(200, 64)).sum() < 0.95 * np.square(naive - groups).sum()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_weights_that_a_format_cannot_hold_are_refused(dtype, bad):
    weights = matrix(64)
    weights[2, 3] = bad
    with np.errstate(over="raise", invalid="raise"), pytest.raises(ValueError, match="not finite, or too large"):
        quantize(weights, dtype)


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="dtype is 'fp8': it must be one of fp32"):
        quantize(matrix(8), "fp8")
    with pytest.raises(ValueError, match="two axes"):
        quantize(np.zeros(8, np.float32), "int8")
    with pytest.raises(ValueError, match=r"x has shape \(5, 9\): it must be \(T, 8\)"):
        quantize(matrix(8), "int8").product(matrix(9, T))
    with pytest.raises(ValueError, match=r"x has shape \(8,\)"):
        quantize(matrix(8), "int8").product(matrix(8)[0])

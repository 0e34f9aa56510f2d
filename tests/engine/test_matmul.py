"""Each rung gives NumPy's product, also for sizes that fit no block, and the same bits on any number of cores."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine import machine
from engine import matmul as ladder
from tools.source import ROOT

RUNGS = [ladder.matmul_ijk, ladder.matmul_ikj, ladder.matmul_dot, ladder.matmul_registers, ladder.matmul_blocked,
         ladder.matmul_packed, ladder.matmul_threads, ladder.matmul]
# One number; primes; beyond a block of rows, of depth, and of columns; nothing to add; nothing at all.
SIZES = [(1, 1, 1), (3, 5, 7), (13, 97, 33), (12, 8, 32), (197, 1031, 67), (2, 3, 4099), (5, 0, 3), (0, 4, 2),
         (3, 2, 0)]


def matrices(rows: int, depth: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, depth), dtype=np.float32),
            random.standard_normal((depth, columns), dtype=np.float32))


def assert_product(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Compare with the product in float64; sums of n float32 products may be off by their size times √n."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert out.shape == exact.shape and out.dtype == np.float32
    np.testing.assert_allclose(out, exact, atol=1e-6 * (1 + a.shape[-1]), rtol=0)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_rung_gives_the_product(rung, size):
    a, b = matrices(*size)
    assert_product(rung(a, b), a, b)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__)
def test_operands_may_lie_in_memory_in_any_order(rung):
    a, b = matrices(37, 66, 82)
    turned = np.ascontiguousarray(b.T).T
    for one, other in ((a[:, ::2], b[::2]), (a[::-1], b[:, ::-3]), (np.asfortranarray(a), turned)):
        assert_product(rung(one, other), one, other)


def test_lists_of_rows_give_the_product():
    a, b = matrices(3, 5, 7)
    np.testing.assert_allclose(ladder.matmul_lists(a.tolist(), b.tolist()), a @ b, rtol=1e-5)
    assert ladder.matmul_lists([[2.0]], [[3.0]]) == [[6.0]]


def test_not_a_number_and_infinity_stay_where_they_belong():
    a, b = matrices(14, 6, 35)
    a[3, 2], b[1, 33] = np.nan, np.inf
    assert np.array_equal(np.isnan(ladder.matmul_packed(a, b)), np.isnan(a @ b))
    assert np.isnan(ladder.matmul_threads(a, b)[3]).all()


def test_operands_are_left_as_they_were():
    a, b = matrices(31, 45, 71)
    before = a.copy(), b.copy()
    for rung in RUNGS:
        rung(a, b)
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])


@pytest.mark.parametrize("size", [(193, 1030, 65), (13, 7, 4100), (1, 600, 40)], ids=str)
def test_one_core_and_two_give_the_same_bits(size):
    numba = pytest.importorskip("numba")
    a, b = matrices(*size)
    alone = ladder.matmul_packed(a, b)
    for cores in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(cores)
        assert np.array_equal(ladder.matmul_threads(a, b), alone)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.skipif(not machine.HAS_AVX2, reason="needs AVX2: one chain of multiply-adds for each number")
def test_a_row_has_the_same_bits_alone_and_among_others():
    a, b = matrices(29, 1100, 50)
    together = ladder.matmul(a, b)
    for row in (0, 11, 12, 28):
        assert np.array_equal(ladder.matmul(a[row:row + 1], b)[0], together[row])


@pytest.mark.parametrize(
    ("one", "other"),
    [((2, 3, 5, 7), (2, 3, 7, 4)), ((2, 1, 5, 7), (3, 7, 4)), ((5, 7), (6, 7, 4)), ((4, 5, 7), (7, 3)),
     ((0, 5, 7), (7, 3)), ((3, 0, 7), (1, 7, 2)), ((2, 5, 0), (0, 3)), ((1, 1, 1, 1), (1, 1))],
    ids=str,
)
def test_batches_broadcast_as_in_numpy(one, other):
    random = np.random.default_rng(1)
    a, b = (random.standard_normal(shape, dtype=np.float32) for shape in (one, other))
    assert_product(ladder.matmul(a, b), a, b)
    swapped = np.swapaxes(np.ascontiguousarray(np.swapaxes(b, -1, -2)), -1, -2)
    assert_product(ladder.matmul(a, swapped), a, b)


F32 = np.float32


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__)
@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((2, 3), F32), np.zeros((4, 5), F32), "3 columns and b .* 4 rows"),
        (np.zeros((2, 3)), np.zeros((3, 5), F32), "a holds float64"),
        (np.zeros((2, 3), F32), np.zeros((3, 5), np.int32), "b holds int32"),
        (np.zeros(3, F32), np.zeros((3, 5), F32), r"a has shape \(3,\)"),
        (np.zeros((2, 3), F32), np.zeros(3, F32), r"use b.reshape\(1, -1\)"),
        ([[1.0]], np.zeros((1, 1), F32), "a holds list"),
    ],
)
def test_what_cannot_be_multiplied_is_refused_in_one_line(rung, a, b, words):
    with pytest.raises(ValueError, match=words) as refused:
        rung(a, b)
    assert "\n" not in str(refused.value)


def test_batches_are_refused_where_they_do_not_fit():
    with pytest.raises(ValueError, match="differ: leading axes are equal or 1"):
        ladder.matmul(np.zeros((2, 3, 4), F32), np.zeros((3, 4, 5), F32))
    with pytest.raises(ValueError, match="use matmul for batches"):
        ladder.matmul_packed(np.zeros((2, 3, 4), F32), np.zeros((4, 5), F32))
    with pytest.raises(ValueError, match="3 numbers in each row"):
        ladder.matmul_lists([[1, 2]], [[1], [2], [3]])


SMALL = """
import numpy as np
from engine import matmul as ladder
random = np.random.default_rng(0)
for size in ((1, 1, 1), (13, 21, 35), (7, 515, 18), (2, 0, 3)):
    a, b = (random.standard_normal(shape, dtype=np.float32) for shape in (size[:2], size[1:]))
    for name in ("packed", "threads", "blocked", "ijk", ""):
        out = getattr(ladder, f"matmul_{name}".rstrip("_"))(a, b)
        assert out.shape == (a @ b).shape and np.allclose(out, a @ b, atol=1e-4), (name, size)
print("equal", ladder.HAS_AVX2, getattr(getattr(ladder, "micro_kernel", None), "VECTOR", 0))
"""


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"ENGINE_PLAIN": "1"}, "equal False 0"),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma"}, "equal True 8"),
        ({"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2"}, "equal False 0"),
    ],
    ids=["no Numba", "AVX2", "no vectors"],
)
def test_lesser_machines_give_the_product_too(settings, answer):
    if "ENGINE_PLAIN" not in settings and not machine.HAS_AVX2:
        pytest.skip("this processor has no AVX2 to play an older one with")
    result = subprocess.run([sys.executable, "-c", SMALL], env=os.environ | settings, cwd=ROOT, capture_output=True,
                            text=True, timeout=300)
    assert result.stdout.strip() == answer, result.stderr[-500:]

"""A tensor does what NumPy's array does, on random shapes: also on those with no axis, and with no number."""

from array import array

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.tensor import Tensor, broadcast_shapes

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
settings.register_profile("tensor", deadline=None, max_examples=40)
settings.load_profile("tensor")


def pair(shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """Return a tensor and an array that count up in one shape."""
    numbers = [float(n) for n in range(1, int(np.prod(shape)) + 1)]
    return Tensor.over(numbers, shape), np.array(numbers).reshape(shape)


def mixed(shape: tuple[int, ...], data: st.DataObject) -> tuple[Tensor, np.ndarray]:
    """Return a view of random strides on both sides: sliced with steps, back to front, axes in any order."""
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in shape]
    larger = tuple(length * abs(step) for length, step in zip(shape, steps, strict=True))
    ours, theirs = pair(tuple(larger[axis] for axis in order))
    back, cut = np.argsort(order).tolist(), tuple(slice(None, None, step) for step in steps)
    return (ours.transpose(*back)[cut], theirs.transpose(back)[cut]) if shape else (ours, theirs)


def assert_same(ours: Tensor | float, theirs: np.ndarray) -> None:
    ours = ours if isinstance(ours, Tensor) else Tensor(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.array(ours.flat(), float).reshape(ours.shape), theirs, rtol=1e-12)


@given(SHAPES)
def test_nested_lists_become_a_tensor_and_come_back(shape):
    values = pair(shape)[1].tolist()
    tensor = Tensor(values)
    assert tensor.tolist() == values
    assert_same(tensor, np.array(values))


@given(SHAPES, st.data())
def test_an_index_finds_what_numpy_finds(shape, data):
    ours, theirs = mixed(shape, data)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    assert_same(ours[index], theirs[index])


@given(SHAPES, st.data())
def test_writing_to_a_part_writes_to_the_whole_as_in_numpy(shape, data):
    ours, theirs = mixed(shape, data)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    value = np.arange(np.asarray(theirs[index]).size, dtype=float).reshape(np.asarray(theirs[index]).shape)
    ours[index], theirs[index] = Tensor(value.tolist()) if value.size else 0.0, value
    assert_same(ours, theirs)


@given(SHAPES, st.data())
def test_axes_in_any_order_are_a_view(shape, data):
    ours, theirs = mixed(shape, data)
    axes = data.draw(st.permutations(range(len(shape))))
    signed = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    assert_same(ours.transpose(*signed), theirs.transpose(axes) if axes else theirs)
    assert_same(ours.T, theirs.T)
    assert ours.transpose(*signed).shares_buffer(ours)


@given(SHAPES, st.data())
def test_reshape_keeps_the_order_and_copies_only_when_numpy_must(shape, data):
    ours, theirs = mixed(shape, data)
    left, target = theirs.size, []
    for _ in range(data.draw(st.integers(0, 3)) if left else 0):
        target.append(data.draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
        left //= target[-1]
    target = target + [left] if left != 1 or not target else target
    theirs_reshaped = theirs.reshape(target)
    reshaped = ours.reshape(*target)
    assert_same(reshaped, theirs_reshaped)
    assert theirs.size == 0 or reshaped.shares_buffer(ours) == np.shares_memory(theirs_reshaped, theirs)
    if theirs.size:
        at = data.draw(st.integers(0, len(target) - 1))
        assert ours.reshape(*target[:at], -1, *target[at + 1:]).shape == tuple(target)


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4), st.data())
def test_two_shapes_meet_where_numpy_lets_them(shapes, data):
    (a, na), (b, nb) = (mixed(shape, data) for shape in shapes.input_shapes)
    assert broadcast_shapes(a.shape, b.shape) == shapes.result_shape
    assert_same(a.broadcast_to(shapes.result_shape), np.broadcast_to(na, shapes.result_shape))
    for ours, theirs in ((a + b, na + nb), (a - b, na - nb), (a * b, na * nb), (a / b, na / nb)):
        assert_same(ours, theirs)
    assert_same(a ** (b / 100), na ** (nb / 100))


@given(SHAPES, SHAPES)
def test_shapes_that_numpy_refuses_are_refused(one, other):
    try:
        expected = np.broadcast_shapes(one, other)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast"):
            pair(one)[0] + pair(other)[0]
        return
    assert broadcast_shapes(one, other) == expected
    if expected != other:
        with pytest.raises(ValueError, match="does not broadcast to"):
            pair(one)[0].broadcast_to(other)


@given(SHAPES, st.data())
def test_numbers_and_maths_apply_to_each_element(shape, data):
    x, n = mixed(shape, data)
    for ours, theirs in ((2 + x, 2 + n), (2 - x, 2 - n), (2 * x, 2 * n), (2 / x, 2 / n), (1.01 ** x, 1.01 ** n),
                         (-x, -n), (abs(-x), n), ((x / 100).exp(), np.exp(n / 100)), (x.log(), np.log(n)),
                         (x.sqrt(), np.sqrt(n)), (x.tanh(), np.tanh(n)), (x.map(lambda v: v % 3), n % 3)):
        assert_same(ours, np.asarray(theirs))


@given(SHAPES, st.data(), st.booleans())
def test_reductions_go_along_any_axes(shape, data, keepdims):
    x, n = mixed(shape, data)
    axis = data.draw(st.none() | hnp.valid_tuple_axes(len(shape)) | st.integers(-len(shape), len(shape) - 1)
                     if shape else st.none() | st.just(()))
    assert_same(x.sum(axis, keepdims), np.asarray(n.sum(axis, keepdims=keepdims)))
    assume(n.size)
    for name in ("mean", "max", "min"):
        assert_same(getattr(x, name)(axis, keepdims), np.asarray(getattr(n, name)(axis, keepdims=keepdims)))


@given(SHAPES, st.data())
def test_contiguous_copies_only_what_is_out_of_order(shape, data):
    x, n = mixed(shape, data)
    assert_same(x.contiguous(), n)
    assert x.contiguous().is_contiguous() and x.contiguous().shares_buffer(x) == x.is_contiguous()
    assert x.is_contiguous() == n.flags.c_contiguous


def test_a_view_reads_and_writes_the_buffer_it_was_laid_over():
    buffer = array("f", range(12))
    matrix = Tensor.over(buffer, (3, 4))
    matrix.T[1] = Tensor([10, 20, 30])
    matrix[2, ::-2] = -1
    assert list(buffer) == [0, 10, 2, 3, 4, 20, 6, 7, 8, -1, 10, -1]
    assert matrix[1:].offset == 4 and matrix[:, ::-2].strides == (4, -2)


def test_a_row_moved_over_itself_arrives_whole():
    row = Tensor([1, 2, 3, 4])
    row[1:] = row[:-1]
    assert row.tolist() == [1, 1, 2, 3]


def test_printing_shows_rows_and_shortens_long_ones():
    assert repr(Tensor([[1, 2.5], [3, 1 / 3]])) == "Tensor([[1, 2.5],\n        [3, 0.3333]], shape=(2, 2))"
    assert repr(Tensor(list(range(9)))) == "Tensor([0, 1, 2, …, 6, 7, 8], shape=(9,))"
    assert repr(Tensor(list(range(6)))) == "Tensor([0, 1, 2, 3, 4, 5], shape=(6,))"
    assert repr(Tensor(list(range(7)))) == "Tensor([0, 1, 2, …, 4, 5, 6], shape=(7,))"
    assert repr(Tensor(7)) == "Tensor(7, shape=())"
    assert repr(Tensor([[], []])) == "Tensor([[],\n        []], shape=(2, 0))"


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: Tensor([[1, 2], [3]]), ValueError, "rows of one length"),
        (lambda: Tensor([1, [2]]), ValueError, "should: a tensor takes numbers"),
        (lambda: Tensor("abc"), ValueError, "a number should"),
        (lambda: Tensor([1, None]), ValueError, "None stands where a number"),
        (lambda: Tensor.over([1, 2, 3], (2, 2)), ValueError, "holds 3 numbers"),
        (lambda: Tensor.over([1, 2, 3], (2,), (-1,)), ValueError, "from -1 to 0"),
        (lambda: Tensor.over([1, 2, 3], (2, 2), (-1, 1)), ValueError, "from -1 to 1"),
        (lambda: Tensor.over([1], (1,), ()), ValueError, "one stride for each"),
        (lambda: Tensor.over([1], (-1,)), ValueError, "no length below 0"),
        (lambda: Tensor([1, 2])[2], IndexError, "index 2 is out of range for axis 0 of length 2"),
        (lambda: Tensor([1, 2])[-3], IndexError, "index -3 is out of range for axis 0 of length 2"),
        (lambda: Tensor([1, 2])[0, 0], IndexError, "2 indices for shape"),
        (lambda: Tensor([[1, 2], [3, 4]])[1.0], TypeError, "float"),
        (lambda: Tensor([[1, 2]]).transpose(0, 0), ValueError, "name each axis once"),
        (lambda: Tensor([[1, 2]]).transpose(0), ValueError, "name each axis once"),
        (lambda: Tensor([1, 2, 3]).reshape(2, -1), ValueError, r"does not fit into \(2, -1\)"),
        (lambda: Tensor([1, 2, 3, 4]).reshape(-1, -1), ValueError, "one may be -1"),
        (lambda: Tensor([]).reshape(0, -1), ValueError, "does not fit"),
        (lambda: Tensor([-4]) ** 0.5, ValueError, "math domain"),
        (lambda: Tensor([1, 2]).item(), ValueError, "exactly one"),
        (lambda: len(Tensor(1)), ValueError, "has no length"),
        (lambda: Tensor([1, 2]).sum(1), IndexError, "out of range"),
        (lambda: Tensor([[1, 2]]).sum((0, -2)), ValueError, r"axis \(0, -2\).*name each axis once"),
        (lambda: Tensor([]).mean(), ValueError, "mean of no numbers"),
        (lambda: Tensor([[], []]).max(1), ValueError, "max of no numbers"),
        (lambda: Tensor([1, 2, 3]).__setitem__(slice(2), Tensor([1, 2, 3])), ValueError, "do not broadcast"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, error, words):
    with pytest.raises(error, match=words) as refused:
        wrong()
    assert "\n" not in str(refused.value)

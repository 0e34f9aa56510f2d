"""A tensor built from nothing: one flat row of numbers, and the rule by which an index finds its place in it.

    place of x[i, j, k] = offset + i · strides[0] + j · strides[1] + k · strides[2]

That rule is all there is. A slice, a transpose and most reshapes move no number: they make another rule over the same
row, a *view*. Only arithmetic makes new numbers. NumPy's arrays work like this, a hundred times faster; once it is
clear what they are, the rest of the engine uses them.
"""

import math
import operator
from collections.abc import Callable, Iterator, MutableSequence
from itertools import zip_longest

# What arithmetic takes, and how a shape is written.
Number = int | float
Shape = tuple[int, ...]


class Tensor:
    """Numbers with a shape: what indexing, arithmetic and reductions give is again a tensor.

    `Tensor([[1, 2], [3, 4]])` takes nested lists or one number; `Tensor.over` lays a shape over a row that exists.
    An index with a number for every axis gives that number. Raises ValueError for rows of different lengths.
    """

    def __init__(self, values: Number | list | tuple):
        # 1. Read the shape off the first row of the first row, down to the numbers.
        shape, level = [], values
        while isinstance(level, list | tuple):
            shape.append(len(level))
            level = level[0] if level else 0

        # 2. Lay the rows end to end.
        self.buffer: MutableSequence = list(_flatten(values, tuple(shape)))
        self.shape, self.strides, self.offset = tuple(shape), _row_major(tuple(shape)), 0

    @classmethod
    def over(cls, buffer: MutableSequence, shape: Shape, strides: Shape | None = None, offset: int = 0) -> "Tensor":
        """Return a tensor that reads and writes `buffer`, a list or an array.array; row after row unless told.

        Raises ValueError if the shape reaches beyond the buffer.
        """
        # 1. Find the first and the last place that an index can reach. A negative stride reaches backwards.
        shape, strides = tuple(shape), _row_major(shape) if strides is None else tuple(strides)
        if len(shape) != len(strides) or any(length < 0 for length in shape):
            raise ValueError(f"shape {shape} and strides {strides}: one stride for each length, and no length below 0")
        reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
        low, high = offset + sum(min(r, 0) for r in reach), offset + sum(max(r, 0) for r in reach)

        # 2. Refuse what is not there: a wrong number is worse than an error.
        if 0 not in shape and (low < 0 or high >= len(buffer)):
            raise ValueError(f"shape {shape} with strides {strides} reaches from {low} to {high}, and the buffer holds "
                             f"{len(buffer)} numbers: choose a smaller shape or a longer buffer")
        tensor = cls.__new__(cls)
        tensor.buffer, tensor.shape, tensor.strides, tensor.offset = buffer, shape, strides, offset
        return tensor

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return how many numbers there are."""
        return math.prod(self.shape)

    @property
    def T(self) -> "Tensor":
        """Return a view with the axes in reverse order: rows become columns."""
        return self.transpose()

    def __len__(self) -> int:
        if not self.shape:
            raise ValueError("a tensor of shape () is one number and has no length: use .item()")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor | Number"]:
        return (self[i] for i in range(len(self)))

    # Views: another rule over the same numbers.

    def __getitem__(self, index: int | slice | tuple) -> "Tensor | Number":
        view = self._view(index)
        return view if view.shape else view.item()

    def __setitem__(self, index: int | slice | tuple, value: "Tensor | Number") -> None:
        # 1. Take the values out first: they may come from the places that are written to.
        target = self._view(index)
        values = _tensor(value).broadcast_to(target.shape).flat()
        for place, number in zip(target._places(), values, strict=True):
            self.buffer[place] = number

    def _view(self, index: int | slice | tuple) -> "Tensor":
        """Return the part that an index names, as a view. Raises IndexError for what is not there."""
        # 1. One part for each axis; `...` and what is missing at the end mean all of an axis.
        parts = list(index) if isinstance(index, tuple) else [index]
        if len(parts) - (Ellipsis in parts) > self.ndim:
            raise IndexError(f"{len(parts)} indices for shape {self.shape}: at most one for each axis")
        at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
        parts[at:at + 1] = [slice(None)] * (self.ndim - len(parts) + (Ellipsis in parts))

        # 2. A number fixes its axis. A slice starts elsewhere, and takes longer steps.
        shape, strides, offset = [], [], self.offset
        for axis, (part, length, stride) in enumerate(zip(parts, self.shape, self.strides, strict=True)):
            if isinstance(part, slice):
                places = range(length)[part]
                offset += places.start * stride

                # 3. Python's own range knows how many steps a slice has.
                shape.append(len(places))
                strides.append(places.step * stride)
            else:
                offset += _place(part, length, axis) * stride
        return Tensor.over(self.buffer, tuple(shape), tuple(strides), offset)

    def transpose(self, *axes: int) -> "Tensor":
        """Return a view with the axes in the order given; without arguments, reversed."""
        # 1. Each axis must be there once, or numbers would vanish.
        axes = [_place(axis, self.ndim, "transpose") for axis in axes or reversed(range(self.ndim))]
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError(f"transpose {tuple(axes)} of shape {self.shape}: name each axis once")

        # 2. Swap lengths and strides alike. The numbers stay where they are.
        shape, strides = tuple(self.shape[axis] for axis in axes), tuple(self.strides[axis] for axis in axes)
        return Tensor.over(self.buffer, shape, strides, self.offset)

    def broadcast_to(self, shape: Shape) -> "Tensor":
        """Return a view in which axes of length 1, and new ones in front, repeat: a stride of 0 stands still."""
        # 1. Compare from the last axis on.
        shape, new = tuple(shape), len(shape) - self.ndim
        if broadcast_shapes(self.shape, shape) != shape:
            raise ValueError(f"shape {self.shape} does not broadcast to {shape}: from the right, "
                             "each length must be equal or 1")

        # 2. Stand still where the length is 1.
        strides = [stride if length > 1 else 0 for stride, length in zip(self.strides, self.shape, strict=True)]
        return Tensor.over(self.buffer, shape, (0,) * new + tuple(strides), self.offset)

    def reshape(self, *shape: int) -> "Tensor":
        """Return the same numbers, in the same order, in another shape: a view where one rule can say it, else a copy.

        One length may be -1: what is left for it. `x.reshape(…).shares_buffer(x)` says which of the two it was.
        """
        # 1. Work out the open length.
        known = math.prod(length for length in shape if length != -1)
        if shape.count(-1) == 1 and known > 0 and self.size % known == 0:
            shape = tuple(self.size // known if length == -1 else length for length in shape)
        if min(shape, default=0) < 0 or math.prod(shape) != self.size:
            raise ValueError(f"shape {self.shape} has {self.size} numbers and does not fit into {shape}: "
                             "the lengths must multiply to as many, and one may be -1")

        # 2. Find a rule, or write the numbers out in order first.
        strides = self._strides_for(shape)
        if strides is None:
            return Tensor.over(self.flat(), shape)
        return Tensor.over(self.buffer, shape, strides, self.offset)

    def _strides_for(self, shape: Shape) -> Shape | None:
        """Return the strides that read this tensor in another shape of equal size, or None if no strides can."""
        # 1. Nothing to read, nothing to check.
        if self.size == 0:
            return _row_major(shape)

        # 2. Join neighbours that are one evenly spaced run: rows that follow upon each other without a gap.
        # Axes of length 1 have a stride that is never used.
        runs: list[tuple[int, int]] = []
        for length, stride in ((a, b) for a, b in zip(self.shape, self.strides, strict=True) if a > 1):
            if runs and runs[-1][1] == length * stride:
                length *= runs.pop()[0]
            runs.append((length, stride))

        # 3. Cut the runs, last first, into the new lengths.
        strides, left, stride = [], 1, 1
        for length in reversed(shape):
            if left == 1 < length:
                left, stride = runs.pop()

            # 4. Give up where a length needs parts of two runs. The next axis in front steps over all of this one.
            if left % length:
                return None
            strides.append(stride)
            left, stride = left // length, stride * length
        return tuple(reversed(strides))

    def shares_buffer(self, other: "Tensor") -> bool:
        """Return whether writing to one can change the other: both are rules over one buffer."""
        return self.buffer is other.buffer

    # Numbers: in order, and written out.

    def _places(self) -> list[int]:
        """Return the place in the buffer of each number, row after row."""
        places = [self.offset]
        for length, stride in zip(self.shape, self.strides, strict=True):
            places = [place + i * stride for place in places for i in range(length)]
        return places

    def flat(self) -> list[Number]:
        """Return the numbers in order, row after row, as a new list."""
        return [self.buffer[place] for place in self._places()]

    def is_contiguous(self) -> bool:
        """Return whether the numbers lie in the buffer in order and without gaps."""
        return self._places() == list(range(self.offset, self.offset + self.size))

    def contiguous(self) -> "Tensor":
        """Return this tensor if its numbers lie in order, else a copy in which they do."""
        return self if self.is_contiguous() else Tensor.over(self.flat(), self.shape)

    def item(self) -> Number:
        """Return the only number; raises ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"shape {self.shape} has {self.size} numbers: .item() wants exactly one")
        return self.buffer[self.offset]

    def tolist(self) -> list | Number:
        """Return nested lists, or for shape () the number."""
        return [row.tolist() if isinstance(row, Tensor) else row for row in self] if self.shape else self.item()

    def __repr__(self) -> str:
        return f"Tensor({_print(self, 7)}, shape={self.shape})"

    # Arithmetic: new numbers.

    def map(self, function: Callable[[Number], Number]) -> "Tensor":
        """Return a new tensor: `function` of each number."""
        return Tensor.over([function(number) for number in self.flat()], self.shape)

    def combine(self, other: "Tensor | Number", function: Callable[[Number, Number], Number]) -> "Tensor":
        """Return a new tensor: `function` of the pairs of numbers, after both were broadcast to one shape."""
        other = _tensor(other)
        shape = broadcast_shapes(self.shape, other.shape)
        pairs = zip(self.broadcast_to(shape).flat(), other.broadcast_to(shape).flat(), strict=True)
        return Tensor.over([function(x, y) for x, y in pairs], shape)

    def __add__(self, other: "Tensor | Number") -> "Tensor":
        return self.combine(other, operator.add)

    def __sub__(self, other: "Tensor | Number") -> "Tensor":
        return self.combine(other, operator.sub)

    def __mul__(self, other: "Tensor | Number") -> "Tensor":
        return self.combine(other, operator.mul)

    def __truediv__(self, other: "Tensor | Number") -> "Tensor":
        return self.combine(other, operator.truediv)

    def __pow__(self, other: "Tensor | Number") -> "Tensor":
        return self.combine(other, math.pow)

    def __radd__(self, other: Number) -> "Tensor":
        return _tensor(other) + self

    def __rsub__(self, other: Number) -> "Tensor":
        return _tensor(other) - self

    def __rmul__(self, other: Number) -> "Tensor":
        return _tensor(other) * self

    def __rtruediv__(self, other: Number) -> "Tensor":
        return _tensor(other) / self

    def __rpow__(self, other: Number) -> "Tensor":
        return _tensor(other) ** self

    def __neg__(self) -> "Tensor":
        return self.map(operator.neg)

    def __abs__(self) -> "Tensor":
        return self.map(abs)

    def exp(self) -> "Tensor":
        """Return e to the power of each number."""
        return self.map(math.exp)

    def log(self) -> "Tensor":
        """Return the natural logarithm of each number."""
        return self.map(math.log)

    def sqrt(self) -> "Tensor":
        """Return the square root of each number."""
        return self.map(math.sqrt)

    def tanh(self) -> "Tensor":
        """Return the hyperbolic tangent of each number."""
        return self.map(math.tanh)

    # Reductions: many numbers become one.

    def reduce(self, function: Callable[[list], Number], axis: int | Shape | None, keepdims: bool) -> "Tensor":
        """Return `function` of the list of numbers along one axis, some, or all (None); `keepdims` leaves length 1."""
        # 1. Move the axes that go away to the end, and split the numbers into rows of that much.
        axes = range(self.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = [_place(one, self.ndim, "reduce") for one in axes]
        if len(set(gone)) < len(gone):
            raise ValueError(f"axis {axis} of shape {self.shape}: name each axis once")
        kept = [one for one in range(self.ndim) if one not in gone]
        flat, run = self.transpose(*kept, *gone).flat(), math.prod(self.shape[one] for one in gone)

        # 2. One number for each row. Empty rows still have one each.
        rows = math.prod(self.shape[one] for one in kept)
        results = [function(flat[row * run:(row + 1) * run]) for row in range(rows)]
        lengths = [1 if one in gone else self.shape[one] for one in range(self.ndim) if keepdims or one in kept]
        return Tensor.over(results, tuple(lengths))

    def sum(self, axis: int | Shape | None = None, keepdims: bool = False) -> "Tensor":
        """Return the sums along the axes; of nothing it is 0."""
        return self.reduce(sum, axis, keepdims)

    def mean(self, axis: int | Shape | None = None, keepdims: bool = False) -> "Tensor":
        """Return the averages along the axes. Raises ValueError where there is nothing to average."""
        return self.reduce(lambda row: sum(row) / len(_filled(row, "mean")), axis, keepdims)

    def max(self, axis: int | Shape | None = None, keepdims: bool = False) -> "Tensor":
        """Return the largest numbers along the axes. Raises ValueError where there are none."""
        return self.reduce(lambda row: max(_filled(row, "max")), axis, keepdims)

    def min(self, axis: int | Shape | None = None, keepdims: bool = False) -> "Tensor":
        """Return the smallest numbers along the axes. Raises ValueError where there are none."""
        return self.reduce(lambda row: min(_filled(row, "min")), axis, keepdims)


def broadcast_shapes(one: Shape, other: Shape) -> Shape:
    """Return the shape in which tensors of two shapes meet: from the right, lengths are equal or one of them is 1."""
    lengths = []
    for a, b in zip_longest(reversed(one), reversed(other), fillvalue=1):
        if a != b and 1 not in (a, b):
            raise ValueError(f"shapes {one} and {other} do not broadcast: {a} meets {b}, and neither is 1")
        lengths.append(b if a == 1 else a)
    return tuple(reversed(lengths))


def _tensor(value: "Tensor | Number | list | tuple") -> Tensor:
    """Return a tensor as it is, and a number as a tensor of shape ()."""
    return value if isinstance(value, Tensor) else Tensor(value)


def _row_major(shape: Shape) -> Shape:
    """Return the strides of rows that follow upon each other: the last axis has 1, each other steps over the rest."""
    return tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))


def _flatten(values: Number | list | tuple, shape: Shape) -> Iterator[Number]:
    """Yield the numbers of nested lists in order. Raises ValueError for what is no number or no row of its length."""
    # 1. Refuse a row of another length than the first, and what is no number.
    if not isinstance(values, (list, tuple) if shape else Number) or shape and len(values) != shape[0]:
        wanted = f"a list of length {shape[0]}" if shape else "a number"
        raise ValueError(f"{values!r:.60} stands where {wanted} should: a tensor takes numbers, in rows of one length")

    # 2. Go row by row, and into each.
    if not shape:
        yield values
    for row in values if shape else ():
        yield from _flatten(row, shape[1:])


def _place(index: int, length: int, axis: int | str) -> int:
    """Return an index counted from the front; negative ones count from the end."""
    if not -length <= operator.index(index) < length:
        raise IndexError(f"index {index} is out of range for axis {axis} of length {length}")
    return index % length


def _filled(row: list, name: str) -> list:
    """Return the row. Raises ValueError if it is empty."""
    if not row:
        raise ValueError(f"{name} of no numbers: an axis of length 0 has none")
    return row


def _print(tensor: Tensor, indent: int) -> str:
    """Return the numbers as nested brackets, four digits each, long axes shortened in the middle."""
    # 1. Write a number.
    if not tensor.shape:
        return f"{tensor.item():.4g}"

    # 2. Write the rows: side by side if they are numbers, else below each other.
    rows = list(range(len(tensor)))
    shown = rows if len(rows) <= 6 else [*rows[:3], None, *rows[-3:]]
    words = ["…" if row is None else _print(_tensor(tensor[row]), indent + 1) for row in shown]
    return "[" + (", " if tensor.ndim == 1 else ",\n" + " " * (indent + 1)).join(words) + "]"

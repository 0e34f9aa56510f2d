"""Weights in fewer bytes: bfloat16, and whole numbers of 8 or 4 bits that share a scale.

To say one token, every weight of the model is fetched from memory once, and used once. So a model whose weights
take a quarter of the bytes speaks up to four times as fast. Four formats:

    fp32   4 bytes      the number itself
    bf16   2 bytes      its upper half: the same range, 8 bits of precision
    int8   1.06 bytes   32 neighbours in a row share one half-precision scale: weight = scale * (-127 … 127)
    int4   0.56 bytes   the same with -8 … 7

A product with whole numbers turns its input into 8-bit groups likewise. The sum over a group is then exact, and

    y[n] = sum over groups g of  input_scale[g] * weight_scale[n, g] * (sum over the group of input * weight)

All of this is plain NumPy: it says what the compiled kernels (`kernels.py`) compute, and runs where they cannot.
"""

import dataclasses

import numpy as np

# The formats, and how many neighbours share a scale.
DTYPES = ("fp32", "bf16", "int8", "int4")
GROUP = 32

# Rows worked on at a time, so that nothing as large as a whole matrix is made beside it.
BLOCK_ROWS = 1024

# Scales tried for four bits, as what the largest weight of a group becomes. Beyond 8 it is cut off, for finer steps.
INT4_EXTREMES = (8.0, 7.4, 6.8, 8.8)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix (N, C) stored in one of the formats, for products with rows of float32 numbers.

    values are float32 (N, C), the upper halves of float32 as uint16 (N, C), int8 (N, G*32) or, two to a byte,
    uint8 (N, G*16), with G groups to a row, the last one filled up with zeros; scales are float16 (N, G).
    """

    dtype: str
    shape: tuple[int, int]
    values: np.ndarray
    scales: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the weights take."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def integers(self, ids: np.ndarray | slice) -> np.ndarray:
        """Return the whole numbers of some rows, int8 (rows, G*32)."""
        stored = self.values[ids]
        if self.dtype == "int8":
            return stored
        fours = stored.reshape(len(stored), -1, 4)
        return np.concatenate([fours & 15, fours >> 4], axis=2).reshape(len(stored), -1).astype(np.int8) - np.int8(8)

    def rows(self, ids: np.ndarray | slice) -> np.ndarray:
        """Return some rows as float32, (rows, C)."""
        # 1. Give the rows back as they are, or with the lower half of each number filled with zeros.
        if self.dtype == "fp32":
            return self.values[ids]
        if self.dtype == "bf16":
            return from_bfloat16(self.values[ids])
        # 2. Multiply each group by its scale.
        numbers, scales = self.integers(ids), self.scales[ids]
        groups = numbers.reshape(*scales.shape, GROUP) * scales.astype(np.float32)[:, :, None]
        return groups.reshape(len(numbers), -1)[:, : self.shape[1]]

    def product(self, x: np.ndarray) -> np.ndarray:
        """Return x @ W.T in float32, (T, N), for x (T, C).

        With whole numbers as weights, x is rounded to 8-bit groups first. Raises ValueError for another C.
        """
        # 1. Take float32 as it is.
        if x.ndim != 2 or x.shape[1] != self.shape[1]:
            raise ValueError(f"x has shape {x.shape}: it must be (T, {self.shape[1]}) for this matrix")
        x = np.ascontiguousarray(x, np.float32)
        if self.dtype == "fp32":
            return x @ self.values.T

        # 2. Round it as the weights are. Products of whole numbers and their sums over a group are then exact.
        if self.scales is not None:
            numbers, scales = quantize_input(x)
            x = (numbers.reshape(*scales.shape, GROUP) * scales[:, :, None]).reshape(len(x), -1)

        # 3. Multiply block by block. A whole matrix in float32 would take the memory that was saved.
        result = np.empty((len(x), self.shape[0]), np.float32)
        for start in range(0, self.shape[0], BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            result[:, block] = x[:, : self.shape[1]] @ self.rows(block).T
        return result


def check_dtype(dtype: str) -> None:
    """Refuse a format that is not known."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")


def quantize(array: np.ndarray, dtype: str) -> Matrix:
    """Return a float matrix (N, C) in one of the formats "fp32", "bf16", "int8", "int4".

    Raises ValueError for another format, another number of axes, and weights that the format cannot hold.
    """
    # 1. Refuse what would only be noticed as nonsense in the text.
    check_dtype(dtype)
    if array.ndim != 2:
        raise ValueError(f"the array has shape {array.shape}: a matrix has two axes (N, C)")
    if dtype == "fp32":
        return Matrix(dtype, array.shape, np.ascontiguousarray(array, np.float32))

    # 2. Convert block by block, so that what is made on the way stays small.
    blocks = [array[start : start + BLOCK_ROWS] for start in range(0, len(array), BLOCK_ROWS)]
    if dtype == "bf16":
        return Matrix(dtype, array.shape, np.concatenate([to_bfloat16(block) for block in blocks]))

    # 3. Give each group its scale.
    convert = _int8_groups if dtype == "int8" else _int4_groups
    values, scales = zip(*(convert(_groups(block)) for block in blocks), strict=True)
    matrix = Matrix(dtype, array.shape, np.concatenate(values), np.concatenate(scales))

    # 4. Say so where a weight is no number, or too large for its scale.
    if not np.isfinite(matrix.scales).all():
        raise ValueError(f"a weight is not finite, or too large for {dtype}: use fp32 or bf16")
    return matrix


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 numbers as uint16, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 numbers whose upper halves these are, uint16; their lower halves are zeros."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantize_input(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows x (T, C) as whole numbers from -127 to 127, int8 (T, G*32), and scales, float32 (T, G)."""
    # 1. Let the largest number of each group become 127. A group of zeros (or nearly) stays zero.
    groups = _groups(x)
    largest = np.abs(groups).max(axis=-1)
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 1e-30)
    # 2. Round to the nearest whole number, ties to even, as the processor does.
    numbers = np.rint(groups * factor[:, :, None]).astype(np.int8)
    return numbers.reshape(len(x), -1), largest / np.float32(127)


def _groups(rows: np.ndarray) -> np.ndarray:
    """Return rows (N, C) cut into groups, float32 (N, G, 32); zeros fill up the last group."""
    filled = np.zeros((len(rows), -(-rows.shape[1] // GROUP) * GROUP), np.float32)
    filled[:, : rows.shape[1]] = rows
    return filled.reshape(len(rows), -1, GROUP)


def _rounded(groups: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return groups (N, G, 32) divided by their scales and rounded into a range; a scale of 0 gives 0."""
    wide = scales.astype(np.float32)
    factor = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    return np.clip(np.rint(groups * factor[:, :, None]), low, high)


def _int8_groups(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 numbers (N, G*32) and float16 scales (N, G) for groups (N, G, 32)."""
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (np.abs(groups).max(axis=-1) / 127).astype(np.float16)
        numbers = _rounded(groups, scales, -127, 127).astype(np.int8)
    return numbers.reshape(len(groups), -1), scales


def _int4_groups(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers 0 … 15 (8 stands for 0), two to a byte (N, G*16), and float16 scales (N, G)."""
    # 1. Give the largest weight the sign that reaches -8, the longer side, by the sign of the scale.
    place = np.abs(groups).argmax(axis=-1, keepdims=True)
    extreme = np.take_along_axis(groups, place, axis=-1)[:, :, 0]

    # 2. Begin with nothing found.
    least, scales = np.full(extreme.shape, np.inf, np.float32), np.zeros(extreme.shape, np.float16)
    numbers = np.zeros(groups.shape, np.float32)

    # 3. Try a few scales and keep, for each group, the one with the least squared error.
    with np.errstate(over="ignore", invalid="ignore"):
        for reach in INT4_EXTREMES:
            tried = (extreme / np.float32(-reach)).astype(np.float16)
            rounded = _rounded(groups, tried, -8, 7)

            # 4. Compare with what was best so far. What is no number is kept, to be noticed and refused.
            error = np.square(rounded * tried.astype(np.float32)[:, :, None] - groups).sum(axis=-1)
            better = ~(error >= least)
            least, scales = np.where(better, error, least), np.where(better, tried, scales)
            numbers = np.where(better[:, :, None], rounded, numbers)

    # 5. Put two numbers into one byte: of eight in a row, the first four into the lower halves of four bytes.
    fours = (np.nan_to_num(numbers).reshape(len(groups), -1, 2, 4) + 8).astype(np.uint8)
    return (fours[:, :, 0] | fours[:, :, 1] << 4).reshape(len(groups), -1), scales

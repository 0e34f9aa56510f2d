"""The matrix product, eight times: the same numbers, each time closer to what the processor can do.

    out[i, j] = sum over k of a[i, k] · b[k, j]          a (T, C), b (C, V), out (T, V)

Nearly all of a transformer's work is this line. A computer that is told it in the plainest way reaches a few
hundredths of a percent of its own speed; the functions here climb the rest, one idea at a time, and stay as they are so
that each step can be measured (`python benchmarks/bench_matmul.py`). `matmul` is the one the engine calls.

The indices of a product are always i for rows, j for columns and k for the sum.
"""

import functools
import math
import threading
from collections.abc import Callable

import numpy as np

from engine.machine import HAS_AVX2, compiled, threads

# Tiles of vector registers need a processor that has them.
if HAS_AVX2:
    from engine import micro_kernel

# A block of the blocked rung, 64 rows by 1024 numbers, takes 256 KB: a quarter of a core's own cache.
BLOCK_ROWS, BLOCK_DEPTH = 64, 1024

# One cache line of floats.
LINE = 16


def matmul_lists(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    """Return a × b for lists of rows: the definition, and the slowest way to compute it.

    Every number is an object somewhere in memory, and every step asks Python what to do with it.
    """
    # 1. Refuse what is no pair of matrices.
    depth = len(b)
    if any(len(row) != depth for row in a) or any(len(row) != len(b[0]) for row in b):
        raise ValueError(f"a needs {depth} numbers in each row, as many as b has rows, and b rows of one length")

    # 2. Go over rows, columns, and the sum.
    columns = len(b[0]) if b else 0
    return [[sum(row[k] * b[k][j] for k in range(depth)) for j in range(columns)] for row in a]


def matmul_ijk(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b by the same three loops, compiled.

    The numbers lie side by side in memory and Python is gone. But k runs down a column of b: each step lands in
    another cache line, of which 4 of 64 bytes are used, and each addition waits for the one before.
    """
    a, b, out = _operands(a, b)
    _ijk(a, np.ascontiguousarray(b), out)
    return out


@compiled()
def _ijk(a, b, out):
    """Fill out with one sum after the other."""
    # 1. Start each sum at zero.
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = np.float32(0)

            # 2. Go down a column of b.
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            out[i, j] = total


def matmul_ikj(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b with the two inner loops exchanged.

    Now j runs along a row of b and a row of out: every byte of a cache line is used, the next line is fetched
    ahead, and since the sums do not wait for each other, the compiler works on a whole register of them at once.
    What remains: each multiply-add also reads and writes a number of out.
    """
    a, b, out = _operands(a, b)
    _ikj(a, np.ascontiguousarray(b), out)
    return out


@compiled(fastmath={"contract"})
def _ikj(a, b, out):
    """Add the rows of b to the rows of out, each a[i, k] times."""
    for i in range(out.shape[0]):
        for k in range(a.shape[1]):
            factor = a[i, k]
            for j in range(out.shape[1]):
                out[i, j] += factor * b[k, j]


def matmul_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b as dot products of rows of a with rows of b turned on its side.

    Turning costs one pass over b. Then both operands are read along their rows, and the sum stays in a register.
    The compiler may add in any order (fastmath): it keeps 16 partial sums in a register and adds them up at the end.
    This is the shape of a layer's x × Wᵀ, whose weights are stored that way round.
    """
    a, b, out = _operands(a, b)
    _dot(a, np.ascontiguousarray(b.T), out)
    return out


@compiled(fastmath=True)
def _dot(a, turned, out):
    """Fill out with dot products of rows."""
    # 1. Start each sum at zero.
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = np.float32(0)

            # 2. Go along two rows.
            for k in range(a.shape[1]):
                total += a[i, k] * turned[j, k]
            out[i, j] = total


def matmul_registers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b with sixteen dot products at a time, four rows against four.

    A dot product reads two numbers for each multiply-add, and reading is the slower of the two. Four rows against
    four read eight numbers for sixteen: each number, once in a register, is used four times.
    """
    a, b, out = _operands(a, b)
    _add_product(a, np.ascontiguousarray(b.T), out, (0, 0), b.shape[::-1])
    return out


def matmul_blocked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b block by block, each small enough to stay in the core's own cache while it is used.

    The rows of b are needed again for every four rows of a. In large matrices they would be fetched from memory
    each time; a block of 64 of them waits in the cache.
    """
    a, b, out = _operands(a, b)
    _blocked(a, np.ascontiguousarray(b.T), out)
    return out


@compiled()
def _blocked(a, turned, out):
    """Copy block after block of b to one place, and add its product to out.

    The rows of that place are one cache line longer than the block. Rows exactly 4096 bytes apart would all compete
    for the same few places of the fastest cache.
    """
    # 1. Bring a block to its place.
    block = np.empty((BLOCK_ROWS, BLOCK_DEPTH + LINE), np.float32)
    for k in range(0, a.shape[1], BLOCK_DEPTH):
        for j in range(0, out.shape[1], BLOCK_ROWS):
            part = turned[j:j + BLOCK_ROWS, k:k + BLOCK_DEPTH]
            block[:part.shape[0], :part.shape[1]] = part

            # 2. Multiply with all rows of a.
            _add_product(a, block, out, (j, k), part.shape)


@compiled(fastmath=True)
def _add_product(a, turned, out, corner, size):
    """Add a × turnedᵀ to out, in tiles of 4 × 4.

    Only `size` (rows, depth) of `turned` counts. Its first number meets column k of a and column j of out, where
    (j, k) is the `corner`.
    """
    # 1. Sixteen sums are sixteen registers: none is written to memory before its end.
    (height, depth), (first, top), zero = size, corner, np.float32(0)
    rows, columns = out.shape[0] // 4 * 4, height // 4 * 4
    for i in range(0, rows, 4):
        for j in range(0, columns, 4):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero

            # 2. Cut out the rows. An index that counts from 0 becomes vectors; one that might be negative does not.
            a0, a1 = a[i, top:top + depth], a[i + 1, top:top + depth]
            a2, a3 = a[i + 2, top:top + depth], a[i + 3, top:top + depth]
            b0, b1, b2, b3 = turned[j], turned[j + 1], turned[j + 2], turned[j + 3]

            # 3. Read eight numbers, use each four times.
            for k in range(depth):
                x0, x1, x2, x3, y0, y1, y2, y3 = a0[k], a1[k], a2[k], a3[k], b0[k], b1[k], b2[k], b3[k]
                s00, s01, s02, s03 = s00 + x0 * y0, s01 + x0 * y1, s02 + x0 * y2, s03 + x0 * y3
                s10, s11, s12, s13 = s10 + x1 * y0, s11 + x1 * y1, s12 + x1 * y2, s13 + x1 * y3

                # 4. The other half.
                s20, s21, s22, s23 = s20 + x2 * y0, s21 + x2 * y1, s22 + x2 * y2, s23 + x2 * y3
                s30, s31, s32, s33 = s30 + x3 * y0, s31 + x3 * y1, s32 + x3 * y2, s33 + x3 * y3

            # 5. Write each sum once.
            for row, sums in enumerate(((s00, s01, s02, s03), (s10, s11, s12, s13),
                                        (s20, s21, s22, s23), (s30, s31, s32, s33))):
                for column in range(4):
                    out[i + row, first + j + column] += sums[column]

    # 6. Finish the edges number by number: the last rows, and the last columns of the others.
    for i in range(out.shape[0]):
        for j in range(columns if i < rows else 0, height):
            total = zero
            for k in range(depth):
                total += a[i, top + k] * turned[j, k]

            # 7. Add, as above: out may hold what the blocks before left.
            out[i, first + j] += total


def matmul_packed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b by tiles that fill the processor's vector registers, fed from panels in reading order.

    Each of sixteen sums above was a register of partial sums, to be added up at the end, and half of the registers
    stayed empty. `engine/micro_kernel.py` writes the innermost loop by hand: 24 registers of finished sums, no step
    waits for memory. Where the processor has no such registers, the blocked loops take over.
    """
    return _by_tiles(a, b, 1)


def matmul_threads(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b, the rows shared out among all cores.

    Each core packs its own rows of a and sends them against the same packed b. Nobody adds to another's sums, so
    the result is the same to the last bit whatever the number of cores.
    """
    return _by_tiles(a, b, threads())


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a × b by the fastest way here; leading axes are batches, broadcast as in NumPy.

    a (…, T, C) and b (…, C, V), both float32, give (…, T, V). Raises ValueError for other shapes and types.
    """
    # 1. Without compiled vectors NumPy's own product is the best there is.
    _check(a, b)
    if not HAS_AVX2:
        return np.matmul(a, b)

    # 2. One b for the whole batch: then the batch is nothing but more rows.
    if b.ndim == 2:
        rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        return matmul_threads(rows, b).reshape(*a.shape[:-1], b.shape[-1])

    # 3. Else pair the matrices up. Broadcasting repeats them without a copy.
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), np.float32)
    a, b = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))

    # 4. Multiply pair by pair.
    for index in np.ndindex(batch):
        out[index] = matmul_threads(a[index], b[index])
    return out


# The panels' room is kept from call to call, apart for each of Python's own threads.
_ROOM = threading.local()


def _by_tiles(a: np.ndarray, b: np.ndarray, workers: int) -> np.ndarray:
    """Return a × b by the micro kernel, or by blocks where it cannot run."""
    # 1. Nothing to add up leaves zeros.
    if not HAS_AVX2:
        return matmul_blocked(a, b)
    a, b, out = _operands(a, b, np.empty)
    if 0 in (*out.shape, a.shape[1]):
        return np.zeros_like(out)

    # 2. Reading b on its side costs little while it is packed. Only a b with gaps is copied.
    b = b if b.flags.c_contiguous or b.flags.f_contiguous else np.ascontiguousarray(b)
    multiply = micro_kernel.multiply_packed if workers == 1 else micro_kernel.multiply_threads
    multiply(_read_only(a), _read_only(b), out, *_room(workers))
    return out


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to, as weights in a file are: or Numba would compile for both kinds."""
    view = array.view()
    view.flags.writeable = False
    return view


def _room(workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's buffers for so many workers: fresh memory for each product would cost a part of its time."""
    if not hasattr(_ROOM, "of"):
        _ROOM.of = functools.cache(micro_kernel.buffers)
    return _ROOM.of(workers)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ValueError unless a × b exists for float32 arrays."""
    # 1. Look at each.
    for name, array in (("a", a), ("b", b)):
        if getattr(array, "dtype", None) != np.float32:
            raise ValueError(f"{name} holds {getattr(array, 'dtype', type(array).__name__)} and the product takes "
                             f"float32 arrays: use np.asarray({name}, np.float32)")
        if array.ndim < 2:
            raise ValueError(f"{name} has shape {array.shape} and a matrix has two axes: use {name}.reshape(1, -1) "
                             f"for a row, {name}.reshape(-1, 1) for a column")

    # 2. Look at the pair.
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"a {a.shape} has {a.shape[-1]} columns and b {b.shape} has {b.shape[-2]} rows: they must be "
                         "equal; is one of the two turned on its side?")
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"the batches of a {a.shape} and b {b.shape} differ: leading axes are equal or 1") from None


def _operands(a: np.ndarray, b: np.ndarray, new: Callable = np.zeros) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return two checked matrices, a in row order, and a `new` array in the shape of their product."""
    _check(a, b)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"a {a.shape} and b {b.shape}: a rung multiplies two matrices; use matmul for batches")
    return np.ascontiguousarray(a), b, new((a.shape[0], b.shape[1]), np.float32)

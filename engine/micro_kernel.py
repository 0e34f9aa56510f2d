"""The innermost loop of a matrix product, written for the processor's vector registers, and what feeds it.

    tile of out (12, 32) += panel of a (depth, 12), turned, × panel of b (depth, 32)

A register here holds 16 numbers. The tile lives in 24 of them, from the first step of the sum to the last. Each step
reads two registers of b and twelve single numbers of a, each spread over a register of its own, and multiplies and
adds 12 × 32 numbers in 24 instructions. Both panels were copied beforehand into the order in which they are read.

Python cannot name a register, and no compiler finds this tile in plain loops. So one function speaks to the compiler
in its own language: a Numba *intrinsic*, Python code that writes LLVM instructions. All else is ordinary loops. This
is the last part of the ladder in `engine/matmul.py`, which imports it only where the processor has such registers.

After Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.cgutils import ir
from numba.extending import intrinsic

from engine.machine import HAS_AVX512, aligned_empty, compiled, prange

# The numbers in a register, and the tile that just fits: AVX-512 has 32 registers, AVX2 has 16. Some must stay free.
VECTOR, TILE_ROWS, TILE_COLUMNS = (16, 12, 32) if HAS_AVX512 else (8, 6, 16)
REGISTER, INDEX = ir.VectorType(ir.FloatType(), VECTOR), ir.IntType(64)

# Blocks: the panels of a (under 400 KB) stay in the core's own cache while those of b (8 MB), in the shared one, pass.
DEPTH, BLOCK_ROWS, BLOCK_COLUMNS = 1024, 96, 2048


@intrinsic
def _tile(typingctx, a, b, out, add):
    """Have Numba compile `_tile(panel of a, panel of b, tile of out, add)` into what `_write_tile` writes."""
    return types.void(a, b, out, add), _write_tile


def _write_tile(context, builder, signature, values):
    """Write the instructions of one tile; from zero, or from what out holds if `add` is true.

    What is "allocated" here never sees memory: the compiler makes registers of it.
    """
    # 1. Take the arrays apart: where they start, how deep the panels are, how many bytes from row to row of out.
    kinds = zip(signature.args[:3], values[:3], strict=True)
    a, b, out = (context.make_array(kind)(context, builder, value) for kind, value in kinds)
    depth, stride = builder.extract_value(a.shape, 0), builder.extract_value(out.strides, 0)
    starts = [cgutils.pointer_add(builder, out.data, builder.mul(stride, INDEX(row))) for row in range(TILE_ROWS)]
    places = [_at(builder, start, column) for start in starts for column in range(0, TILE_COLUMNS, VECTOR)]

    # 2. Fill the registers of the tile.
    totals = [cgutils.alloca_once(builder, REGISTER) for _ in places]
    for place, total in zip(places, totals, strict=True):
        builder.store(builder.select(values[3], builder.load(place, align=4), REGISTER(None)), total)

    # 3. Step down the panels: read one row of b.
    with cgutils.for_range(builder, depth) as loop:
        b_row = cgutils.gep(builder, b.data, builder.mul(loop.index, INDEX(TILE_COLUMNS)))
        columns = [builder.load(_at(builder, b_row, column), align=4) for column in range(0, TILE_COLUMNS, VECTOR)]
        a_row = cgutils.gep(builder, a.data, builder.mul(loop.index, INDEX(TILE_ROWS)))

        # 4. Multiply it with each number of the row of a, and add to that row of the tile.
        for index, total in enumerate(totals):
            row, column = divmod(index, len(columns))
            factor = _spread(builder, builder.load(cgutils.gep(builder, a_row, row), align=4))
            builder.store(_multiply_add(builder, factor, columns[column], builder.load(total)), total)

    # 5. Put the tile back.
    for place, total in zip(places, totals, strict=True):
        builder.store(builder.load(total), place, align=4)


def _at(builder, start, index):
    """Write the address of the register's worth of numbers that begins `index` numbers after `start`."""
    return builder.bitcast(cgutils.gep(builder, start, index), REGISTER.as_pointer())


def _spread(builder, number):
    """Write a register that holds one number everywhere."""
    alone = builder.insert_element(REGISTER(ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(alone, alone, ir.VectorType(ir.IntType(32), VECTOR)(None))


def _multiply_add(builder, x, y, total):
    """Write x · y + total for each number of three registers: one instruction, rounded once."""
    kind, name = ir.FunctionType(REGISTER, [REGISTER] * 3), f"llvm.fma.v{VECTOR}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, total])


@compiled()
def _pack_rows(a, panel):
    """Copy up to TILE_ROWS rows of a into a panel that has the k-th number of each side by side; 0 for missing rows."""
    # 1. Copy a whole panel in the order in which it is written: twelve rows are read at once.
    rows, depth = a.shape
    if rows == TILE_ROWS:
        for k in range(depth):
            for row in range(TILE_ROWS):
                panel[k, row] = a[row, k]

    # 2. At the lower edge, leave zeros: they add nothing.
    else:
        panel[:depth] = 0
        for row in range(rows):
            for k in range(depth):
                panel[k, row] = a[row, k]


@compiled()
def _pack_columns(b, panel):
    """Copy up to TILE_COLUMNS columns of b into a panel without gaps; 0 for missing columns."""
    # 1. Copy a whole panel. The constant length makes each row two registers.
    depth, columns = b.shape
    if columns == TILE_COLUMNS:
        for k in range(depth):
            for column in range(TILE_COLUMNS):
                panel[k, column] = b[k, column]

    # 2. At the right edge, leave zeros.
    else:
        panel[:depth] = 0
        for k in range(depth):
            for column in range(columns):
                panel[k, column] = b[k, column]


@compiled()
def _multiply_rows(a, b_panels, out, add, a_panels):
    """Fill out, or add to it, with a × the packed block of b, tile by tile."""
    # 1. Pack these rows.
    (rows, columns), depth = out.shape, a.shape[1]
    for panel, row in enumerate(range(0, rows, TILE_ROWS)):
        _pack_rows(a[row:row + TILE_ROWS], a_panels[panel])
    edge = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)

    # 2. Take one panel of b after the other, and all panels of a against it.
    for b_panel, column in enumerate(range(0, columns, TILE_COLUMNS)):
        for a_panel, row in enumerate(range(0, rows, TILE_ROWS)):
            place = out[row:row + TILE_ROWS, column:column + TILE_COLUMNS]
            height, width = place.shape
            whole = height == TILE_ROWS and width == TILE_COLUMNS

            # 3. A tile that reaches over the edge is made elsewhere, and its part copied.
            if not whole:
                edge[:height, :width] = place
            _tile(a_panels[a_panel, :depth], b_panels[b_panel, :depth], place if whole else edge, add)
            if not whole:
                place[:, :] = edge[:height, :width]


@compiled()
def multiply_packed(a, b, out, a_panels, b_panels):
    """Fill out with a × b on one core, block by block; the panels are `buffers(1)`."""
    # 1. Pack a block of b, as deep as a tile's sum may be at once.
    for column in range(0, b.shape[1], BLOCK_COLUMNS):
        for k in range(0, b.shape[0], DEPTH):
            block = b[k:k + DEPTH, column:column + BLOCK_COLUMNS]
            for panel in range(-(-block.shape[1] // TILE_COLUMNS)):
                _pack_columns(block[:, panel * TILE_COLUMNS:(panel + 1) * TILE_COLUMNS], b_panels[panel])

            # 2. Send all rows of a against it. From the second depth on, add to what is there.
            for row in range(0, a.shape[0], BLOCK_ROWS):
                place = out[row:row + BLOCK_ROWS, column:column + BLOCK_COLUMNS]
                _multiply_rows(a[row:row + BLOCK_ROWS, k:k + DEPTH], b_panels, place, k > 0, a_panels[0])


@compiled(parallel=True)
def multiply_threads(a, b, out, a_panels, b_panels):
    """Fill out with a × b on as many cores as a_panels has parts; the panels are `buffers(threads)`.

    Every number of out is one chain of multiply-adds in the order of k, made by one core. So neither the number of
    cores nor the size of the blocks changes a bit of it.
    """
    # 1. Count the tiles one below the other: they are shared out.
    workers, tiles = len(a_panels), -(-a.shape[0] // TILE_ROWS)

    # 2. Pack a block of b together.
    for column in range(0, b.shape[1], BLOCK_COLUMNS):
        for k in range(0, b.shape[0], DEPTH):
            block = b[k:k + DEPTH, column:column + BLOCK_COLUMNS]
            for panel in prange(-(-block.shape[1] // TILE_COLUMNS)):
                _pack_columns(block[:, panel * TILE_COLUMNS:(panel + 1) * TILE_COLUMNS], b_panels[panel])

            # 3. Give each core as many tiles of rows as the others, its own panels, and all of the block.
            for worker in prange(workers):
                first, last = worker * tiles // workers * TILE_ROWS, (worker + 1) * tiles // workers * TILE_ROWS
                rows, places = a[first:last, k:k + DEPTH], out[first:last, column:column + BLOCK_COLUMNS]

                # 4. Go on as on one core.
                for row in range(0, rows.shape[0], BLOCK_ROWS):
                    place = places[row:row + BLOCK_ROWS]
                    _multiply_rows(rows[row:row + BLOCK_ROWS], b_panels, place, k > 0, a_panels[worker])


def buffers(workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return room for the panels of a, for each worker, and for those of b, which all share."""
    return (aligned_empty((workers, BLOCK_ROWS // TILE_ROWS, DEPTH, TILE_ROWS)),
            aligned_empty((BLOCK_COLUMNS // TILE_COLUMNS, DEPTH, TILE_COLUMNS)))


@intrinsic
def _chains(typingctx, rounds):
    """Have Numba compile `_chains(rounds)` into what `_write_chains` writes."""
    return types.float32(rounds), _write_chains


def _write_chains(context, builder, signature, values):
    """Write as many multiply-adds as a tile has, round by round, none waiting for another and none for memory."""
    # 1. The numbers do not matter. Each chain goes from x to x/2 + 1, and so stays near 2.
    totals = [cgutils.alloca_once_value(builder, REGISTER(None)) for _ in range(TILE_ROWS * TILE_COLUMNS // VECTOR)]
    half, one = (_spread(builder, ir.FloatType()(number)) for number in (0.5, 1.0))
    with cgutils.for_range(builder, values[0]):
        for total in totals:
            builder.store(_multiply_add(builder, builder.load(total), half, one), total)

    # 2. Use all of them, or the compiler would leave them out.
    result = builder.load(totals[0])
    for total in totals[1:]:
        result = builder.fadd(result, builder.load(total))
    return builder.extract_element(result, ir.IntType(32)(0))


@compiled()
def multiply_adds(rounds):
    """Do nothing but multiply and add: what takes no less time is as fast as this core can be.

    One round is as much arithmetic as one step of a tile: 2 · TILE_ROWS · TILE_COLUMNS operations.
    """
    return _chains(rounds)

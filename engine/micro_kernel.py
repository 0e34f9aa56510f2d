"""The innermost loop of a matrix product, written for the processor's vector registers, and what feeds it.

    out tile (12, 32) += a panel (12, depth) × b panel (depth, 32)

The tile lives in 24 registers of 16 numbers each. For every step in depth, two registers are loaded from b, twelve
single numbers of a are spread over a register each, and 24 instructions multiply and add: 768 operations for 44
numbers read. Both panels were copied beforehand into the order in which this loop reads them ("packed").

Python cannot name a register, and the compiler does not find this tile in plain loops. So one function here speaks
to the compiler in its own language (a Numba intrinsic that writes LLVM instructions). All else is ordinary loops.
The last rungs of the ladder in `engine/matmul.py` call this file.
"""

import threading

import numpy as np

from engine.machine import HAS_AVX2, HAS_AVX512, HAS_NUMBA, aligned_empty, compiled, prange, threads

if HAS_NUMBA:
    from numba import types
    from numba.core import cgutils
    from numba.core.cgutils import ir
    from numba.extending import intrinsic

# The numbers in one register, and the tile that just fits: AVX-512 has 32 registers, AVX2 16. Two hold numbers of b.
VECTOR, TILE_ROWS, TILE_COLUMNS = (16, 12, 32) if HAS_AVX512 else (8, 6, 16)
HAS_VECTORS = HAS_AVX2

# A packed block of a stays in the core's own cache (L2) while all of a block of b, in the shared one (L3), goes by.
DEPTH = 512
ROW_PANELS = 192 // TILE_ROWS
COLUMN_PANELS = 4096 // TILE_COLUMNS


if HAS_NUMBA:
    def _multiply_add(builder, x, y, total):
        """Write the instruction x * y + total for whole registers; it rounds once."""
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(total.type, [total.type] * 3), f"llvm.fma.v{total.type.count}f32")
        return builder.call(function, [x, y, total])

    @intrinsic
    def _tile(typingctx, a, b, out, add):
        """Write the loop over one tile: out = a × b, plus what is in out if `add`. See `multiply_panels`."""
        def generate(context, builder, signature, values):
            # 1. Take the arrays apart: where each begins, how deep the panels are, how far apart the rows of out.
            a_view, b_view, out_view = (
                context.make_array(kind)(context, builder, value) for kind, value in zip(signature.args, values[:3]))
            depth = cgutils.unpack_tuple(builder, a_view.shape)[0]
            stride = cgutils.unpack_tuple(builder, out_view.strides)[0]
            number, register = ir.FloatType(), ir.VectorType(ir.FloatType(), VECTOR)

            def at(start, index, kind=register):
                return builder.bitcast(builder.gep(start, [index]), kind.as_pointer())

            def integer(value):
                return ir.Constant(ir.IntType(64), value)

            # 2. Give every register of the tile its address in out, and its first value.
            rows = [builder.inttoptr(builder.add(builder.ptrtoint(out_view.data, ir.IntType(64)),
                                                 builder.mul(stride, integer(row))), out_view.data.type)
                    for row in range(TILE_ROWS)]
            places = [at(row, integer(column)) for row in rows for column in range(0, TILE_COLUMNS, VECTOR)]
            totals = [cgutils.alloca_once(builder, register) for _ in places]
            for place, total in zip(places, totals, strict=True):
                builder.store(builder.select(values[3], builder.load(place, align=4), ir.Constant(register, None)), total)

            # 3. Walk down the panels.
            with cgutils.for_range(builder, depth) as loop:
                b_row = builder.mul(loop.index, integer(TILE_COLUMNS))
                b_registers = [builder.load(at(b_view.data, builder.add(b_row, integer(column))), align=4)
                               for column in range(0, TILE_COLUMNS, VECTOR)]
                a_row = builder.mul(loop.index, integer(TILE_ROWS))
                for row in range(TILE_ROWS):
                    one = builder.load(builder.gep(a_view.data, [builder.add(a_row, integer(row))]), align=4)
                    spread = builder.insert_element(ir.Constant(register, ir.Undefined), one, integer(0))
                    spread = builder.shuffle_vector(spread, spread, ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None))
                    for column, b_register in enumerate(b_registers):
                        total = totals[row * len(b_registers) + column]
                        builder.store(_multiply_add(builder, spread, b_register, builder.load(total)), total)

            # 4. Put the tile back.
            for place, total in zip(places, totals, strict=True):
                builder.store(builder.load(total), place, align=4)

        return types.void(a, b, out, add), generate


@compiled()
def pack_rows(a, panels):
    rows, depth = a.shape
    for panel in range((rows + TILE_ROWS - 1) // TILE_ROWS):
        first = panel * TILE_ROWS
        full = first + TILE_ROWS <= rows
        if full:
            for k in range(depth):
                for row in range(TILE_ROWS):
                    panels[panel, k, row] = a[first + row, k]
        else:
            for k in range(depth):
                for row in range(TILE_ROWS):
                    panels[panel, k, row] = a[first + row, k] if first + row < rows else np.float32(0)


@compiled()
def pack_panel(b, panel):
    depth, columns = b.shape
    if columns == TILE_COLUMNS:
        for k in range(depth):
            for column in range(TILE_COLUMNS):
                panel[k, column] = b[k, column]
    else:
        for k in range(depth):
            for column in range(TILE_COLUMNS):
                panel[k, column] = b[k, column] if column < columns else np.float32(0)


@compiled()
def multiply_panels(a_panels, b_panels, depth, out, add):
    rows, columns = out.shape
    edge = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
    for q in range((columns + TILE_COLUMNS - 1) // TILE_COLUMNS):
        for p in range((rows + TILE_ROWS - 1) // TILE_ROWS):
            place = out[p * TILE_ROWS:(p + 1) * TILE_ROWS, q * TILE_COLUMNS:(q + 1) * TILE_COLUMNS]
            if place.shape[0] == TILE_ROWS and place.shape[1] == TILE_COLUMNS:
                _tile(a_panels[p, :depth], b_panels[q, :depth], place, add)
            else:
                if add:
                    edge[:place.shape[0], :place.shape[1]] = place
                _tile(a_panels[p, :depth], b_panels[q, :depth], edge, add)
                place[:, :] = edge[:place.shape[0], :place.shape[1]]


@compiled()
def multiply_packed(a, b, out, a_panels, b_panels):
    height, width = ROW_PANELS * TILE_ROWS, COLUMN_PANELS * TILE_COLUMNS
    for j in range(0, b.shape[1], width):
        for k in range(0, a.shape[1], DEPTH):
            b_block = b[k:k + DEPTH, j:j + width]
            depth = b_block.shape[0]
            for q in range((b_block.shape[1] + TILE_COLUMNS - 1) // TILE_COLUMNS):
                pack_panel(b_block[:, q * TILE_COLUMNS:(q + 1) * TILE_COLUMNS], b_panels[q])
            for i in range(0, a.shape[0], height):
                pack_rows(a[i:i + height, k:k + DEPTH], a_panels[0])
                multiply_panels(a_panels[0], b_panels, depth, out[i:i + height, j:j + width], k > 0)


@compiled(parallel=True)
def multiply_threads(a, b, out, a_panels, b_panels):
    height, width = ROW_PANELS * TILE_ROWS, COLUMN_PANELS * TILE_COLUMNS
    workers = len(a_panels)
    panels = (a.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    for j in range(0, b.shape[1], width):
        for k in range(0, a.shape[1], DEPTH):
            b_block = b[k:k + DEPTH, j:j + width]
            depth = b_block.shape[0]
            for q in prange((b_block.shape[1] + TILE_COLUMNS - 1) // TILE_COLUMNS):
                pack_panel(b_block[:, q * TILE_COLUMNS:(q + 1) * TILE_COLUMNS], b_panels[q])
            for worker in prange(workers):
                start = worker * panels // workers * TILE_ROWS
                stop = min((worker + 1) * panels // workers * TILE_ROWS, a.shape[0])
                for i in range(start, stop, height):
                    end = min(i + height, stop)
                    pack_rows(a[i:end, k:k + DEPTH], a_panels[worker])
                    multiply_panels(a_panels[worker], b_panels, depth, out[i:end, j:j + width], k > 0)


# Buffers are kept from call to call, one set for each thread of Python that multiplies.
_kept = threading.local()


def workers() -> int:
    return threads()


def buffers(workers: int):
    if str(workers) not in _kept.__dict__:
        setattr(_kept, str(workers), (
            aligned_empty((workers, ROW_PANELS, DEPTH, TILE_ROWS)), aligned_empty((COLUMN_PANELS, DEPTH, TILE_COLUMNS))))
    return getattr(_kept, str(workers))

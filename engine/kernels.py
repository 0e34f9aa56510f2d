"""The compiled loops of the fast path: what all threads do, from one token's vector to the scores of the next.

Everything turns around one kernel, `tile`: 32 rows of a matrix times the inputs of a few tokens. The rows are stored
as a **panel**: interleaved, so that one wide load fetches the same column of 16 rows. Each row has a sum of its own in
its own lane, so nothing is ever added across lanes, no row is left over, and memory is read as one long stream:

    columns of a panel    row 0 … row 15 | row 16 … row 31 | row 0 … row 15 | …        fp32: 4 bytes each
                          \\_________ column 0 __________/   \\__ column 1 …

What the kernels compute is said by `quantize.py` and `model.py`, in NumPy. Which tricks make them fast is said at
each: a barrier that spins (`wait`), panels and wide registers (`tile`), offsets folded into a start value
(`prepare`), one parallel region per token in which each thread owns its rows (`step`).
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.machine import compiled
from engine.quantize import DTYPES, GROUP

# Rows of a panel, and how many tokens share one reading of it when a prompt is read.
PANEL, TILE = 32, 4

# The formats as numbers, in the order of `quantize.DTYPES`.
FP32, BF16, INT8, INT4 = range(4)

# Bytes of a block: a panel's column of fp32 and bf16; its 32 half-precision scales and a group of 32 whole numbers.
BLOCK_BYTES = (4 * PANEL, 2 * PANEL, 2 * PANEL + GROUP * PANEL, 2 * PANEL + GROUP * PANEL // 2)

# Bytes of a token's input that go with a block: a float32; or 32 whole numbers, their scale and a start value.
INPUT_BYTES = (4, 4, GROUP + 8, GROUP + 8)

# Where the numbers of a step stand among its sizes.
(TOKENS, POSITION, SCORED, LAYERS, HEADS, KV_HEADS, HEAD_DIM, WINDOW, INTERLEAVED, CAPACITY) = range(10)

# The matrices of a layer, in the order of the plan; after the last layer comes the output head.
QKV, OUTPUT, GATE_UP, DOWN, MATRICES = range(5)

# Where the numbers of one matrix stand in a row of the plan: address, format, blocks in a panel, panels.
ADDRESS, FORMAT, BLOCKS, PANELS = range(4)

# Leave to add in another order, which wide registers need. No threads are involved: the order is always the same.
LOOSE = {"reassoc", "contract", "nsz", "nnan"}

# What the instructions work on: registers of 512 bits.
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS, HALVES = ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(ir.HalfType(), 16)


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, align: int = 4) -> ir.Value:
    """Emit a load from an address that is a number."""
    return builder.load(builder.inttoptr(address, ir.PointerType()), typ=kind, align=align)


def _everywhere(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Emit a register with one number in all 16 lanes."""
    kind = ir.VectorType(number.type, 16)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, [0] * 16))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Emit a call to one of LLVM's own functions, most of which are a single instruction."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
    """Emit total + a * b in all lanes: one instruction, rounded once."""
    return _call(builder, "llvm.fma.v16f32", FLOATS, a, b, total)


def _float_block(form: int, builder: ir.IRBuilder, weights: ir.Value, inputs: list, sums: list) -> None:
    """Emit one column of a panel: each row's weight times each token's number."""
    # 1. Load 32 weights. A bfloat16 is the upper half of a float32: row r and row r + 16 share a word.
    if form == FP32:
        pair = [_load(builder, builder.add(weights, I64(64 * half)), FLOATS, 64) for half in range(2)]
    else:
        word = _load(builder, weights, INTS, 64)
        upper = builder.and_(word, ir.Constant(INTS, [-65536] * 16))
        lower = builder.shl(word, ir.Constant(INTS, [16] * 16))
        pair = [builder.bitcast(half, FLOATS) for half in (lower, upper)]

    # 2. Multiply and add.
    for address, totals in zip(inputs, sums, strict=True):
        number = _everywhere(builder, _load(builder, address, F32))
        for weight, total in zip(pair, totals, strict=True):
            builder.store(_multiply_add(builder, weight, number, builder.load(total)), total)


def _integer_block(form: int, builder: ir.IRBuilder, weights: ir.Value, inputs: list, sums: list) -> None:
    """Emit one group of a panel: exact sums of whole numbers, then each times its two scales."""
    # 1. Start each sum with what takes the offset of the weights back (see `prepare`).
    start = [_everywhere(builder, _load(builder, builder.add(x, I64(GROUP + 4)), I32)) for x in inputs]
    dots = [[value, value] for value in start]

    # 2. Multiply 64 bytes by 64 bytes and add them up in fours, in one instruction: unsigned weights of 16 rows by
    # the same four signed inputs. Four bits are two such steps: the lower halves of the bytes, then the upper ones.
    per_load = 1 if form == INT8 else 2
    for four in range(GROUP // 4):
        for half in range(2):
            place = 2 * PANEL + 128 * (four // per_load) + 64 * half
            word = _load(builder, builder.add(weights, I64(place)), INTS, 64)
            if form == INT4:
                word = builder.lshr(word, ir.Constant(INTS, [4] * 16)) if four % 2 else word
                word = builder.and_(word, ir.Constant(INTS, [0x0F0F0F0F] * 16))

            # 3. Serve every token from one load of the weights.
            for address, dot in zip(inputs, dots, strict=True):
                number = _everywhere(builder, _load(builder, builder.add(address, I64(4 * four)), I32))
                dot[half] = _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, dot[half], word, number)

    # 4. Scale the sums: both scales belong to the whole group.
    halves = [_load(builder, builder.add(weights, I64(PANEL * half)), HALVES, 32) for half in range(2)]
    scales = [builder.fpext(half, FLOATS) for half in halves]
    for address, dot, totals in zip(inputs, dots, sums, strict=True):
        scale = _everywhere(builder, _load(builder, builder.add(address, I64(GROUP)), F32))
        for half, total in enumerate(totals):
            both = builder.fmul(scales[half], scale)
            number = builder.sitofp(dot[half], FLOATS)
            builder.store(_multiply_add(builder, number, both, builder.load(total)), total)


@intrinsic(prefer_literal=True)
def tile(typing, form, tokens, weights, inputs, stride, blocks, out, out_stride):
    """Multiply one panel of a format by the inputs of some tokens: tile(INT8, TILE, ...).

    All but the first two are addresses and distances in bytes, int64. Writes 32 float32 for each token.
    """
    form_number, count = form.literal_value, tokens.literal_value

    def generate(context, builder, signature, arguments):
        # 1. Keep two registers of sums for each token.
        weights, inputs, stride, blocks, out, out_stride = arguments[2:]
        zero = ir.Constant(FLOATS, [0.0] * 16)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(count)]
        for total in sum(sums, []):
            builder.store(zero, total)

        # 2. Go through the panel once, block by block.
        emit = _float_block if form_number in (FP32, BF16) else _integer_block
        with cgutils.for_range(builder, blocks, intp=I64) as loop:
            here = builder.add(weights, builder.mul(loop.index, I64(BLOCK_BYTES[form_number])))
            offset = builder.add(inputs, builder.mul(loop.index, I64(INPUT_BYTES[form_number])))
            each = [builder.add(offset, builder.mul(stride, I64(token))) for token in range(count)]
            emit(form_number, builder, here, each, sums)

        # 3. Write the sums.
        for token, totals in enumerate(sums):
            row = builder.add(out, builder.mul(out_stride, I64(token)))
            for half, total in enumerate(totals):
                place = builder.inttoptr(builder.add(row, I64(64 * half)), ir.PointerType())
                builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    numbers = (types.int64,) * 6
    return types.void(form, tokens, *numbers), generate


@intrinsic
def arrive(typing, address):
    """Add 1 to a counter that all threads see, and return what it was."""
    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], ir.PointerType())
        return builder.atomic_rmw("add", place, I64(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def look(typing, address):
    """Return a counter that other threads change, after a pause that leaves the core's power to others."""
    def generate(context, builder, signature, arguments):
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        place = builder.inttoptr(arguments[0], ir.PointerType())
        return builder.load_atomic(place, "acquire", 8, typ=I64)

    return types.int64(types.int64), generate


@intrinsic
def give_way(typing):
    """Let the system run another thread: the one we wait for may have no core."""
    def generate(context, builder, signature, arguments):
        _call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def float_of_bits(typing, bits):
    """Return the float32 with these 32 bits."""
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), generate


@compiled()
def wait(counter, threads, stage):
    """Return the number of the next stage, when all threads have come to the end of this one.

    A spin barrier: one atomic addition, then looking until all have added. A hundredth of what a new parallel region
    costs, and a layer has five of them. Who looks in vain for long lets others run.
    """
    if threads > 1:
        arrive(counter)
        looks = 0
        while look(counter) < threads * (stage + 1):
            looks += 1
            if looks % 4096 == 0:
                give_way()
    return stage + 1


@compiled(fastmath=LOOSE)
def exponential(x):
    """Return e**x for a float32, within a few units of the last digit; plain arithmetic, so that 16 go at once.

    With k whole and |r| < 0.35, e**x = 2**k * e**r: the first is an exponent's bits, the second a short series.
    """
    # 1. Split x. ln 2 is taken off in two parts, the first of which has few digits, so that nothing is lost.
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    k = np.rint(x * np.float32(1.4426950408889634))
    r = (x - k * np.float32(0.693359375)) + k * np.float32(2.12194440e-4)

    # 2. Add up the series from its small end, and multiply.
    s = np.float32(1 / 120) + r * np.float32(1 / 720)
    s = np.float32(1 / 6) + r * (np.float32(1 / 24) + r * s)
    s = np.float32(1) + r * (np.float32(1) + r * (np.float32(0.5) + r * s))
    return s * float_of_bits(np.int32((np.int32(k) + np.int32(127)) << np.int32(23)))


@compiled(fastmath=LOOSE)
def normalize(x, weight, eps, out):
    """Write x scaled to a root mean square of 1, times weight: RMSNorm."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(total / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = x[i] * factor * weight[i]


@compiled(fastmath={"nsz", "nnan", "reassoc"})
def prepare(form, x, floats, bytes_, words):
    """Write one token's input as the kernel of a format wants it: floats, or groups of whole numbers.

    The last three are one piece of memory, looked at in three ways. A group is 32 int8, its scale and a start value:
    weights are stored with 128 (or 8) added, because the instruction wants them unsigned; what that adds to a sum,
    128 times the sum of the inputs, is the same for all rows, so their sums start with it subtracted.
    """
    # 1. Copy floats.
    if form == FP32 or form == BF16:
        for i in range(len(x)):
            floats[i] = x[i]
        return
    offset = np.float32(-128) if form == INT8 else np.float32(-8)
    for group in range((len(x) + GROUP - 1) // GROUP):
        # 2. Find the largest number of the group.
        first, largest = group * GROUP, np.float32(0)
        size = min(GROUP, len(x) - first)
        for i in range(size):
            largest = max(largest, abs(x[first + i]))

        # 3. Round all numbers by it; what fills up the last group is 0.
        factor = np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0)
        place, total = group * (GROUP + 8), np.float32(0)
        for i in range(size, GROUP):
            bytes_[place + i] = 0

        # 4. Write them, with the scale and the start value behind.
        for i in range(size):
            number = np.rint(x[first + i] * factor)
            bytes_[place + i] = np.int8(number)
            total += number
        floats[(place + GROUP) // 4] = largest / np.float32(127)
        words[(place + GROUP) // 4 + 1] = np.int32(total * offset)


def _panel(form):
    """Return the loop that writes one panel's 32 sums for each of some tokens, for a format."""
    @compiled()
    def panel(tokens, weights, inputs, stride, blocks, out, out_stride):
        # Let four tokens share one reading of the weights, then serve the rest one by one.
        done = 0
        while done + TILE <= tokens:
            tile(form, TILE, weights, inputs + done * stride, stride, blocks, out + done * out_stride, out_stride)
            done += TILE
        while done < tokens:
            tile(form, 1, weights, inputs + done * stride, stride, blocks, out + done * out_stride, out_stride)
            done += 1

    return panel


# One loop for each format. They stand apart, so that a format is chosen once per panel.
panel_fp32, panel_bf16, panel_int8, panel_int4 = (_panel(form) for form in (FP32, BF16, INT8, INT4))


@compiled()
def share(total, thread, threads):
    """Return where the share of one thread begins and ends. Rows belong to threads for good: no sum is ever shared."""
    return total * thread // threads, total * (thread + 1) // threads


@compiled()
def product(matrix, thread, threads, tokens, inputs, stride, out):
    """Write this thread's panels of a matrix times all inputs to out (T, N); return its first and last row."""
    # 1. Find the thread's part.
    form, blocks = matrix[FORMAT], matrix[BLOCKS]
    first, last = share(matrix[PANELS], thread, threads)
    row_bytes = out.shape[1] * 4
    for number in range(first, last):
        weights = matrix[ADDRESS] + number * blocks * BLOCK_BYTES[form]
        place = out.ctypes.data + number * 4 * PANEL

        # 2. Choose the kernel.
        if form == FP32:
            panel_fp32(tokens, weights, inputs, stride, blocks, place, row_bytes)
        elif form == BF16:
            panel_bf16(tokens, weights, inputs, stride, blocks, place, row_bytes)
        elif form == INT8:
            panel_int8(tokens, weights, inputs, stride, blocks, place, row_bytes)
        else:
            panel_int4(tokens, weights, inputs, stride, blocks, place, row_bytes)
    return first * PANEL, last * PANEL


@compiled(fastmath=LOOSE)
def rotate(x, cos, sin, interleaved):
    """Turn the pairs of one head's vector by the angles of its position: RoPE, in place."""
    half = len(x) // 2
    step, other = (2, 1) if interleaved else (1, half)
    for i in range(half):
        a, b = x[step * i], x[step * i + other]
        x[step * i] = a * cos[i] - b * sin[i]
        x[step * i + other] = b * cos[i] + a * sin[i]


@compiled(fastmath=LOOSE)
def softmax(x, start, low, high, end):
    """Turn scores low … high into shares of 1, in place; those before (from start) and after (to end) become 0."""
    # 1. Hide what is out of sight.
    x[start:low] = np.float32(0)
    x[high:end] = np.float32(0)
    largest = x[low]
    for i in range(low, high):
        largest = max(largest, x[i])

    # 2. Take the largest off, so that nothing overflows, and divide by the sum.
    total = np.float32(0)
    for i in range(low, high):
        x[i] = exponential(x[i] - largest)
        total += x[i]
    for i in range(low, high):
        x[i] /= total


@compiled(fastmath=LOOSE)
def swiglu(gates, hidden, first, last):
    """Write silu(gate) * up for the panels of rows first … last: 16 gates, then the 16 ups that go with them."""
    for place in range(first, last, PANEL):
        for i in range(PANEL // 2):
            gate, up = gates[place + i], gates[place + PANEL // 2 + i]
            hidden[place // 2 + i] = up * gate / (np.float32(1) + exponential(-gate))


@compiled()
def remember(sizes, token, head, qkv, bias, norms, cos, sin, eps, scratch, keys, values):
    """Finish one token's queries, key and value of a key/value head, and put the latter two into the cache.

    Keys are kept as panels of 32 positions, values as panels of 32 numbers of the head: so `tile` multiplies by
    both of them as if they were weights.
    """
    # 1. Add biases, bring queries and key to length 1 where the model does so, and turn them by their position.
    size, heads, group = sizes[HEAD_DIM], sizes[HEADS], sizes[HEADS] // sizes[KV_HEADS]
    position = sizes[POSITION] + token
    for number in range(group + 2):
        which = head * group + number if number < group else heads + head + sizes[KV_HEADS] * (number - group)
        part = qkv[which * size : (which + 1) * size]

        # 2. Leave the value unturned.
        if len(bias):
            part += bias[which * size : (which + 1) * size]
        if number <= group:
            if len(norms):
                normalize(part, norms[number // group], eps, scratch)
                part[:] = scratch[:size]
            rotate(part, cos[position], sin[position], sizes[INTERLEAVED])

    # 3. Store key and value, each number in its panel's lane.
    for i in range(size):
        keys[head, position // PANEL, i, position % PANEL] = qkv[(heads + head) * size + i]
        values[head, i // PANEL, position, i % PANEL] = qkv[(heads + sizes[KV_HEADS] + head) * size + i]


@compiled()
def attend(sizes, head, qkv, keys, values, scratch, scores, out):
    """Write what the query heads of one key/value head find for all tokens: rows of out (T, H*D).

    Query heads that share a key are taken like tokens that share a matrix: four at a time.
    """
    # 1. Lay out the room: up to four queries, and what they find.
    size, group, row = sizes[HEAD_DIM], sizes[HEADS] // sizes[KV_HEADS], 4 * scores.shape[1]
    scale, width = np.float32(1 / np.sqrt(size)), values.shape[0] * PANEL
    queries, found = scratch[: TILE * size], scratch[TILE * size :]
    done = 0
    while done < sizes[TOKENS] * group:
        # 2. Take four queries or one, scaled.
        count = TILE if sizes[TOKENS] * group - done >= TILE else 1
        for i in range(count):
            token, which = (done + i) // group, head * group + (done + i) % group
            queries[i * size : (i + 1) * size] = qkv[token, which * size : (which + 1) * size] * scale

        # 3. Compare them with the keys in sight, 32 positions at a time.
        end = sizes[POSITION] + (done + count - 1) // group + 1
        start = max(0, sizes[POSITION] + done // group + 1 - sizes[WINDOW])
        for number in range(start // PANEL, (end + PANEL - 1) // PANEL):
            place, out_place = keys.ctypes.data + number * size * 4 * PANEL, scores.ctypes.data + number * 4 * PANEL
            panel_fp32(count, place, queries.ctypes.data, 4 * size, size, out_place, row)

        # 4. Turn the scores into shares. No query sees beyond its own position, or its window.
        for i in range(count):
            high = sizes[POSITION] + (done + i) // group + 1
            softmax(scores[i], start, max(0, high - sizes[WINDOW]), high, end)

        # 5. Mix the values by these shares.
        for number in range(values.shape[0]):
            place = values.ctypes.data + (number * values.shape[1] + start) * 4 * PANEL
            out_place = found.ctypes.data + number * 4 * PANEL
            panel_fp32(count, place, scores.ctypes.data + 4 * start, row, end - start, out_place, 4 * width)

        # 6. Hand them over.
        for i in range(count):
            token, which = (done + i) // group, head * group + (done + i) % group
            out[token, which * size : (which + 1) * size] = found[i * width : i * width + size]
        done += count


@compiled()
def read(form, source, norm, eps, thread, threads, tokens, inputs, scratch, counter, stage):
    """Prepare the rows of source (T, ·), normalised where norm has weights, as inputs; return the next stage.

    A single token is prepared by every thread for itself: that costs less than waiting for another. Many tokens are
    shared out.
    """
    # 1. Share out the tokens.
    floats, bytes_, words = inputs
    first, last = (0, 1) if tokens == 1 else share(tokens, thread, threads)
    for token in range(first, last):
        # 2. Prepare each.
        row = thread if tokens == 1 else token
        if len(norm):
            normalize(source[token], norm, eps, scratch)
            prepare(form, scratch[: source.shape[1]], floats[row], bytes_[row], words[row])
        else:
            prepare(form, source[token], floats[row], bytes_[row], words[row])
    return stage if tokens == 1 else wait(counter, threads, stage)


@compiled()
def work(thread, threads, sizes, eps, plan, norms, head_norms, biases, cos, sin, keys, values, x, inputs, buffers,
         scratch, scores, logits, counter):
    """Do one thread's part of a step: all tokens through all layers, five stages each, and the output head."""
    # 1. Find the thread's place.
    tokens, stage, (qkv, found, change, gates, hidden) = sizes[TOKENS], 0, buffers
    stride, none, counter = inputs[0].shape[1] * 4, norms[0, :0], counter.ctypes.data
    mine, place = scratch[thread], inputs[0].ctypes.data + (thread * stride if tokens == 1 else 0)
    first_head, last_head = share(sizes[KV_HEADS], thread, threads)

    for layer in range(sizes[LAYERS]):
        # 2. Read the stream, and make queries, keys and values.
        matrix = plan[layer * MATRICES]
        stage = read(matrix[FORMAT], x, norms[2 * layer], eps, thread, threads, tokens, inputs, mine, counter, stage)
        product(matrix, thread, threads, tokens, place, stride, qkv)
        stage = wait(counter, threads, stage)

        # 3. Remember and look back. A key/value head belongs to one thread, so nobody need wait in between.
        for head in range(first_head, last_head):
            for token in range(tokens):
                remember(sizes, token, head, qkv[token], biases[layer], head_norms[layer], cos, sin, eps, mine,
                         keys[layer], values[layer])
            attend(sizes, head, qkv, keys[layer, head], values[layer, head], mine, scores[thread], found)
        stage = wait(counter, threads, stage)

        # 4. Add what was found to the stream.
        matrix = plan[layer * MATRICES + OUTPUT]
        stage = read(matrix[FORMAT], found, none, eps, thread, threads, tokens, inputs, mine, counter, stage)
        first, last = product(matrix, thread, threads, tokens, place, stride, change)
        x[:, first:last] += change[:tokens, first : min(last, x.shape[1])]
        stage = wait(counter, threads, stage)

        # 5. Open the gates of the feed-forward network.
        matrix, norm = plan[layer * MATRICES + GATE_UP], norms[2 * layer + 1]
        stage = read(matrix[FORMAT], x, norm, eps, thread, threads, tokens, inputs, mine, counter, stage)
        first, last = product(matrix, thread, threads, tokens, place, stride, gates)
        for token in range(tokens):
            swiglu(gates[token], hidden[token], first, last)
        stage = wait(counter, threads, stage)

        # 6. Add what it says.
        matrix = plan[layer * MATRICES + DOWN]
        stage = read(matrix[FORMAT], hidden, none, eps, thread, threads, tokens, inputs, mine, counter, stage)
        first, last = product(matrix, thread, threads, tokens, place, stride, change)
        x[:, first:last] += change[:tokens, first : min(last, x.shape[1])]
        stage = wait(counter, threads, stage)

    # 7. Score the vocabulary after the tokens that are asked for.
    matrix, norm, scored = plan[-1], norms[-1], sizes[SCORED]
    x = x[tokens - scored :]
    place = inputs[0].ctypes.data + (thread * stride if scored == 1 else 0)
    stage = read(matrix[FORMAT], x, norm, eps, thread, threads, scored, inputs, mine, counter, stage)
    product(matrix, thread, threads, scored, place, stride, logits)


@compiled(parallel=True)
def step(threads, sizes, eps, plan, norms, head_norms, biases, cos, sin, keys, values, x, inputs, buffers, scratch,
         scores, logits, counter):
    """Let all threads work: one parallel region for a step, because to begin and end one costs as much as a layer."""
    counter[0] = 0
    for thread in numba.prange(threads):
        work(np.int64(thread), threads, sizes, eps, plan, norms, head_norms, biases, cos, sin, keys, values, x, inputs,
             buffers, scratch, scores, logits, counter)

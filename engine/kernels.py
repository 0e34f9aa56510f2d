"""The compiled loops of the fast path: what all threads do, from one token's vector to the scores of the next.

Everything turns around one kernel, `tile`: 32 rows of a matrix times the inputs of a few tokens. The rows are stored
as a **panel**: interleaved, so that one wide load fetches the same column of 16 rows. Each row has a sum of its own in
its own lane, so nothing is ever added across lanes, no row is left over, and memory is read as one long stream:

    row 0 … row 15, row 16 … row 31  |  row 0 … row 15, row 16 … row 31  |  …
                column 0                            column 1

What is computed is said in NumPy by `quantize.py` and `model.py`. The tricks that make it fast: panels and wide
registers (`tile`), an offset folded into a start value (`prepare`), a barrier that spins (`meet`), keys and values kept
as panels too (`remember`), one parallel region per step in which each thread owns its rows (`step`).
"""

import itertools

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.cgutils import ir
from numba.extending import intrinsic

from engine.machine import compiled
from engine.quantize import GROUP

# Rows of a panel; how many tokens share one reading of it when a prompt is read.
PANEL, TILE = 32, 4

# The formats in the order of `quantize.DTYPES`. Bytes of a block: a panel's column of floats, or its 32 scales of half
# precision and a group of 32 whole numbers. Bytes of a token's input to it: a float32, or a group, a scale and a start.
FP32, BF16, INT8, INT4 = range(4)
BLOCK_BYTES = (4 * PANEL, 2 * PANEL, 2 * PANEL + GROUP * PANEL, 2 * PANEL + GROUP * PANEL // 2)
INPUT_BYTES = (4, 4, GROUP + 8, GROUP + 8)

# Where the numbers of a step stand among its sizes, the matrices of a layer among its four rows of the plan (the output
# head comes last), and the numbers of one matrix in its row.
TOKENS, POSITION, SCORED, LAYERS, HEADS, KV_HEADS, HEAD_DIM, WINDOW, INTERLEAVED = range(9)
QKV, OUTPUT, GATE_UP, DOWN, MATRICES = range(5)
ADDRESS, FORMAT, BLOCKS, PANELS = range(4)

# Leave to add in another order, which wide registers need. No threads are involved: the order is always the same.
LOOSE = {"reassoc", "contract", "nsz", "nnan"}

# What the instructions work on: numbers, and registers of 512 bits.
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS, HALVES, SHORTS = (ir.VectorType(kind, 16) for kind in (F32, I32, ir.HalfType(), ir.IntType(16)))


def _at(builder: ir.IRBuilder, address: ir.Value, offset: int = 0) -> ir.Value:
    """Emit a pointer to some bytes behind an address that is a number."""
    return builder.inttoptr(builder.add(address, I64(offset)), ir.PointerType())


def _load(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    """Emit a load of a register, or of a number into all 16 lanes."""
    loaded = builder.load(_at(builder, address, offset), typ=kind, align=4 if kind in (F32, I32) else 32)
    if kind not in (F32, I32):
        return loaded
    empty = ir.Constant(ir.VectorType(kind, 16), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, loaded, I32(0)), empty, ir.Constant(INTS, [0] * 16))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Emit a call to one of LLVM's own functions, most of which are a single instruction."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _add_product(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> None:
    """Emit total += a * b in all lanes: one instruction, rounded once."""
    builder.store(_call(builder, "llvm.fma.v16f32", FLOATS, a, b, builder.load(total)), total)


def _float_block(form: int, builder: ir.IRBuilder, weights: ir.Value, inputs: list, sums: list) -> None:
    """Emit one column of a panel: each row's weight times each token's number."""
    # 1. Load 32 weights. A bfloat16 is the upper half of a float32.
    if form == FP32:
        pair = [_load(builder, weights, 64 * half, FLOATS) for half in range(2)]
    else:
        words = [builder.zext(_load(builder, weights, 32 * half, SHORTS), INTS) for half in range(2)]
        pair = [builder.bitcast(builder.shl(word, ir.Constant(INTS, [16] * 16)), FLOATS) for word in words]
    # 2. Multiply and add.
    for address, totals in zip(inputs, sums, strict=True):
        number = _load(builder, address, 0, F32)
        for weight, total in zip(pair, totals, strict=True):
            _add_product(builder, weight, number, total)


def _integer_block(form: int, builder: ir.IRBuilder, weights: ir.Value, inputs: list, sums: list) -> None:
    """Emit one group of a panel: exact sums of whole numbers, then each times its two scales."""
    # 1. Start each sum with what takes the offset of the weights back (see `prepare`).
    dots = [[_load(builder, x, GROUP + 4, I32)] * 2 for x in inputs]
    for four, half in itertools.product(range(GROUP // 4), range(2)):
        # 2. Load four weights of 16 rows; of four bits, eight come at once: lower halves of bytes, then upper ones.
        # The fence is no instruction, but keeps the compiler from shuffling loads: the processor foresees what comes
        # next where it comes in order.
        builder.fence("acquire", "singlethread")
        place = 2 * PANEL + 128 * (four if form == INT8 else four // 2) + 64 * half
        word = _load(builder, weights, place, INTS)
        if form == INT4:
            word = builder.and_(builder.lshr(word, INTS([4 * (four % 2)] * 16)), INTS([0x0F0F0F0F] * 16))
        # 3. Multiply 64 unsigned weights by four signed inputs, and add them up in fours: one instruction.
        for address, dot in zip(inputs, dots, strict=True):
            number = _load(builder, address, 4 * four, I32)
            dot[half] = _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, dot[half], word, number)
    # 4. Scale the sums: both scales belong to the whole group.
    scales = [builder.fpext(_load(builder, weights, PANEL * half, HALVES), FLOATS) for half in range(2)]
    for address, dot, totals in zip(inputs, dots, sums, strict=True):
        both = [builder.fmul(scale, _load(builder, address, GROUP, F32)) for scale in scales]
        for scale, number, total in zip(both, dot, totals, strict=True):
            _add_product(builder, builder.sitofp(number, FLOATS), scale, total)


def _panel(builder: ir.IRBuilder, form: int, count: int, arguments: list) -> None:
    """Emit the loop through one panel, for one format and one number of tokens."""
    # 1. Keep two registers of sums for each token.
    weights, inputs, stride, blocks, out, out_stride = arguments
    zeros = ir.Constant(FLOATS, [0.0] * 16)
    sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(count)]

    # 2. Go through the panel once, block by block.
    emit = _float_block if form in (FP32, BF16) else _integer_block
    with cgutils.for_range(builder, blocks, intp=I64) as loop:
        here, first = (builder.add(start, builder.mul(loop.index, I64(size[form])))
                       for start, size in ((weights, BLOCK_BYTES), (inputs, INPUT_BYTES)))
        each = [builder.add(first, builder.mul(stride, I64(token))) for token in range(count)]
        emit(form, builder, here, each, sums)
    # 3. Write the sums.
    for token, totals in enumerate(sums):
        row = builder.add(out, builder.mul(out_stride, I64(token)))
        for half, total in enumerate(totals):
            builder.store(builder.load(total), _at(builder, row, 64 * half), align=4)


@intrinsic
def tile(typing, form, count, weights, inputs, stride, blocks, out, out_stride):
    """Multiply one panel of a format by the inputs of 1 or TILE tokens; write 32 float32 for each token.

    All are int64: from `weights` on, addresses and distances in bytes. One loop is emitted for each case.
    """
    def generate(context, builder, signature, arguments):
        # 1. Keep the cases in one place: they are long to compile. Number them, and ask for one after the other.
        builder.function.attributes.add("noinline")
        case = builder.add(builder.mul(arguments[0], I64(TILE + 1)), arguments[1])
        for number, tokens in itertools.product(range(4), (1, TILE)):
            with builder.if_then(builder.icmp_signed("==", case, I64(number * (TILE + 1) + tokens))):
                _panel(builder, number, tokens, arguments[2:])
        # 2. Return nothing, which has a form of its own.
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 8), generate


@intrinsic
def meet(typing, counter, target):
    """Add 1 to a counter that all threads see, and return when it has reached a target: a barrier that spins.

    An atomic addition, then looking: no thread is put to sleep and woken again, five times in each layer.
    """
    def generate(context, builder, signature, arguments):
        # 1. Say that this thread is here.
        place, looks = builder.inttoptr(arguments[0], ir.PointerType()), cgutils.alloca_once_value(builder, I64(0))
        builder.atomic_rmw("add", place, I64(1), "acq_rel")
        again, done = builder.append_basic_block("again"), builder.append_basic_block("done")
        builder.branch(again)
        # 2. Pause, which leaves the core's power to others. After many looks in vain let the system run another
        # thread: the one waited for may have no core.
        builder.position_at_end(again)
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        builder.store(builder.add(builder.load(looks), I64(1)), looks)
        with builder.if_then(builder.icmp_signed("==", builder.and_(builder.load(looks), I64(4095)), I64(0))):
            _call(builder, "sched_yield", I32)
        # 3. Look.
        reached = builder.icmp_signed(">=", builder.load_atomic(place, "acquire", 8, typ=I64), arguments[1])
        builder.cbranch(reached, done, again)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


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
    return s * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(fastmath=LOOSE)
def normalize(x, weight, eps, out):
    """Write x scaled to a root mean square of 1, times weight: RMSNorm."""
    # 1. Measure.
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(total / np.float32(len(x)) + eps)
    # 2. Scale, number by number: a product of arrays would need an array in between.
    for i in range(len(x)):
        out[i] = x[i] * factor * weight[i]


@compiled(fastmath=LOOSE - {"contract"})
def prepare(form, x, floats, bytes_, words):
    """Write one token's input as the kernel of a format wants it: floats, or groups of whole numbers.

    The last three are one piece of memory, looked at in three ways. A group is 32 int8, its scale and a start value:
    weights are stored with 128 (or 8) added, because the instruction wants them unsigned; what that adds to a sum,
    128 times the sum of the inputs, is the same for all rows, so their sums start with it subtracted.
    """
    # 1. Copy floats.
    if form == FP32 or form == BF16:
        floats[: len(x)] = x
        return
    for group in range((len(x) + GROUP - 1) // GROUP):
        # 2. Find the largest number of the group. What fills up the last one is 0.
        part, place, largest = x[group * GROUP : (group + 1) * GROUP], group * (GROUP + 8), np.float32(0)
        for number in part:
            largest = max(largest, abs(number))
        bytes_[place + len(part) : place + GROUP] = 0
        # 3. Round all numbers by it.
        factor, total = np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0), np.float32(0)
        for i in range(len(part)):
            rounded = np.rint(part[i] * factor)
            bytes_[place + i], total = np.int8(rounded), total + rounded
        # 4. Write the scale and the start value behind them.
        floats[(place + GROUP) // 4] = largest / np.float32(127)
        words[(place + GROUP) // 4 + 1] = np.int32(total * np.float32(-128 if form == INT8 else -8))


@compiled()
def share(total, thread, threads):
    """Return where one thread's share begins and ends. Rows belong to threads for good: no sum is ever shared."""
    return total * thread // threads, total * (thread + 1) // threads


@compiled()
def panel(form, tokens, weights, inputs, stride, blocks, out, out_stride):
    """Write one panel's 32 sums for each of some tokens: as many as share one reading, then one by one."""
    done = 0
    while done < tokens:
        count = TILE if tokens - done >= TILE else 1
        tile(form, count, weights, inputs + done * stride, stride, blocks, out + done * out_stride, out_stride)
        done += count


@compiled()
def product(matrix, thread, threads, tokens, inputs, stride, out):
    """Write this thread's panels of a matrix times all inputs to out (T, N); return its first and last row."""
    # 1. Find the thread's panels.
    form, blocks, (first, last) = matrix[FORMAT], matrix[BLOCKS], share(matrix[PANELS], thread, threads)
    for number in range(first, last):
        weights, place = matrix[ADDRESS] + number * blocks * BLOCK_BYTES[form], out.ctypes.data + number * 4 * PANEL
        # 2. A single token's input is each thread's own (see `read`).
        source = inputs + (stride * thread if tokens == 1 else 0)
        panel(form, tokens, weights, source, stride, blocks, place, out.shape[1] * 4)
    return first * PANEL, last * PANEL


@compiled(fastmath=LOOSE)
def rotate(x, cos, sin, interleaved):
    """Turn the pairs of one head's vector by the angles of its position: RoPE, in place."""
    step, other = (2, 1) if interleaved else (1, len(x) // 2)
    for i in range(len(x) // 2):
        a, b = x[step * i], x[step * i + other]
        x[step * i], x[step * i + other] = a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]


@compiled(fastmath=LOOSE)
def softmax(x, low, high):
    """Turn scores low … high into shares of 1, and all others into 0, in place."""
    # 1. Find the largest in sight.
    largest, total = x[low], np.float32(0)
    for i in range(low, high):
        largest = max(largest, x[i])
    # 2. Take the largest off, so that nothing overflows, and divide by the sum.
    for i in range(low, high):
        x[i] = exponential(x[i] - largest)
        total += x[i]
    for i in range(len(x)):
        x[i] = x[i] / total if low <= i < high else np.float32(0)


@compiled(fastmath=LOOSE)
def swiglu(gates, hidden, first, last):
    """Write silu(gate) * up for the panels of rows first … last: 16 gates, then the 16 ups that go with them."""
    half = PANEL // 2
    for place in range(first, last, PANEL):
        gate, up, out = gates[place : place + half], gates[place + half : place + PANEL], hidden[place // 2 :][:half]
        for i in range(len(out)):
            out[i] = up[i] * gate[i] / (np.float32(1) + exponential(-gate[i]))


@compiled()
def keep(row, lane, number):
    """Write a float32 to a place in the cache: itself, or its upper half, rounded to the nearest, ties to even."""
    bits = np.int64(np.float32(number).view(np.uint32))
    row[lane] = number if row.itemsize == 4 else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@compiled()
def remember(sizes, token, head, qkv, bias, norms, cos, sin, eps, keys, values):
    """Finish one token's queries, key and value of a key/value head, and put the latter two into the cache.

    Keys are kept as panels of 32 positions, values as panels of 32 numbers of the head: so `tile` multiplies by
    both of them as if they were weights.
    """
    # 1. Find the vectors: the queries that share this head, its key, its value.
    size, heads, group = sizes[HEAD_DIM], sizes[HEADS], sizes[HEADS] // sizes[KV_HEADS]
    position, key, value = sizes[POSITION] + token, heads + head, heads + sizes[KV_HEADS] + head
    for number in range(group + 2):
        which = head * group + number if number < group else key if number == group else value
        # 2. Add biases, bring queries and key to length 1, where the model does so; turn them by their position.
        part = qkv[which * size : (which + 1) * size]
        for i in range(size if len(bias) else 0):
            part[i] += bias[which * size + i]
        if number <= group:
            # 3. The value alone is left as it is.
            if len(norms):
                normalize(part, norms[number // group], eps, part)
            rotate(part, cos[position], sin[position], sizes[INTERLEAVED])

    # 4. Store key and value, each number in its panel's lane.
    for i in range(size):
        keep(keys[head, position // PANEL, i], position % PANEL, qkv[key * size + i])
        keep(values[head, i // PANEL, position], i % PANEL, qkv[value * size + i])


@compiled()
def attend(sizes, head, qkv, keys, values, scratch, scores, out):
    """Write what the query heads of one key/value head find for all tokens: parts of out (T, H*D).

    Query heads that share a key are taken like tokens that share a matrix: several at a time.
    """
    # 1. Lay out the room: some queries, and what they find.
    size, group, row = sizes[HEAD_DIM], sizes[HEADS] // sizes[KV_HEADS], 4 * scores.shape[1]
    position, total, width = sizes[POSITION], sizes[TOKENS] * group, values.shape[0] * PANEL
    form, line = FP32 if keys.itemsize == 4 else BF16, keys.itemsize * PANEL
    queries, found, done, scale = scratch[: TILE * size], scratch[TILE * size :], 0, np.float32(1 / np.sqrt(size))
    while done < total:
        # 2. Take as many as share one reading, scaled.
        count = TILE if total - done >= TILE else 1
        for i in range(count):
            token, first = (done + i) // group, (head * group + (done + i) % group) * size
            for j in range(size):
                queries[i * size + j] = qkv[token, first + j] * scale
        # 3. Compare them with the keys in sight, a panel of positions at a time.
        end = position + (done + count - 1) // group + 1
        start = max(0, position + done // group + 1 - sizes[WINDOW]) // PANEL * PANEL
        for number in range(start // PANEL, (end + PANEL - 1) // PANEL):
            place, there = keys.ctypes.data + number * size * line, scores.ctypes.data + number * 4 * PANEL
            panel(form, count, place, queries.ctypes.data, 4 * size, size, there, row)
        # 4. Turn the scores into shares. No query sees beyond its own position, or its window.
        for i in range(count):
            high = position + (done + i) // group + 1
            softmax(scores[i, start:end], max(0, high - sizes[WINDOW]) - start, high - start)
        # 5. Mix the values by these shares.
        for number in range(values.shape[0]):
            place = values.ctypes.data + (number * values.shape[1] + start) * line
            there = found.ctypes.data + number * 4 * PANEL
            panel(form, count, place, scores.ctypes.data + 4 * start, row, end - start, there, 4 * width)
        # 6. Hand them over.
        for i in range(count):
            token, first = (done + i) // group, (head * group + (done + i) % group) * size
            for j in range(size):
                out[token, first + j] = found[i * width + j]
        done += count


@compiled()
def read(form, source, norm, eps, thread, threads, tokens, inputs, scratch, counter, stage):
    """Prepare the rows of source (T, ·) as inputs, normalised where norm has weights; return the next stage.

    A single token is prepared by every thread for itself: that costs less than waiting for another. Many tokens are
    shared out.
    """
    # 1. Share out the tokens.
    first, last = (0, 1) if tokens == 1 else share(tokens, thread, threads)
    for token in range(first, last):
        row, x = thread if tokens == 1 else token, source[token]
        # 2. Prepare each.
        if len(norm):
            normalize(x, norm, eps, scratch)
            x = scratch[: len(x)]
        prepare(form, x, inputs[row], inputs[row].view(np.int8), inputs[row].view(np.int32))
    # 3. Let all be ready before one of them is used.
    if tokens > 1:
        meet(counter, threads * (stage + 1))
    return stage + (tokens > 1)


@compiled()
def work(thread, threads, sizes, model, cache, inputs, buffers, counter, x, logits):
    """Do one thread's part of a step: all tokens through all layers, five stages each, and the output head."""
    # 1. Find the thread's place.
    (plan, norms, head_norms, biases, eps), (cos, sin, keys, values, scores) = model, cache
    (qkv, found, change, gates, hidden, scratch), none, counter = buffers, norms[0][:0], counter.ctypes.data
    tokens, stage, mine, stride = sizes[TOKENS], 0, scratch[thread], inputs.shape[1] * 4
    place, own_heads = inputs.ctypes.data, share(sizes[KV_HEADS], thread, threads)
    for layer, which in np.ndindex(sizes[LAYERS], MATRICES):
        # 2. Choose: every other matrix reads the stream, the others what the stage before has made.
        stream, matrix = which == QKV or which == GATE_UP, plan[layer * MATRICES + which]
        norm = norms[2 * layer + which // 2] if stream else none
        source = x if stream else found if which == OUTPUT else hidden
        # 3. Multiply. The stage ends when all have done so.
        stage = read(matrix[FORMAT], source, norm, eps, thread, threads, tokens, inputs, mine, counter, stage)
        out = qkv if which == QKV else gates if which == GATE_UP else change
        first, last = product(matrix, thread, threads, tokens, place, stride, out)
        # 4. Add to the stream what attention or the feed-forward network says; open the gates of the latter.
        for token in range(tokens):
            for i in range(first, 0 if stream else min(last, x.shape[1])):
                x[token, i] += change[token, i]
            if which == GATE_UP:
                swiglu(gates[token], hidden[token], first, last)
        # 5. Remember and look back. A key/value head belongs to one thread, so nobody need wait in between.
        stage += 1
        meet(counter, threads * stage)
        for head in range(own_heads[0], own_heads[1] if which == QKV else own_heads[0]):
            for token in range(tokens):
                remember(sizes, token, head, qkv[token], biases[layer], head_norms[layer], cos, sin, eps,
                         keys[layer], values[layer])
            # 6. All tokens are in the cache before the first one looks back.
            attend(sizes, head, qkv, keys[layer, head], values[layer, head], mine, scores[thread], found)
        if which == QKV:
            stage += 1
            meet(counter, threads * stage)
    # 7. Score the vocabulary after the tokens that are asked for.
    matrix, scored = plan[-1], sizes[SCORED]
    read(matrix[FORMAT], x[tokens - scored :], norms[-1], eps, thread, threads, scored, inputs, mine, counter, stage)
    product(matrix, thread, threads, scored, place, stride, logits)


@compiled(parallel=True)
def step(threads, sizes, model, cache, inputs, buffers, counter, x, logits):
    """Let all threads work: one parallel region for a step, because to begin one wakes threads and to end it waits."""
    counter[0] = 0
    for thread in numba.prange(threads):
        work(np.int64(thread), threads, sizes, model, cache, inputs, buffers, counter, x, logits)

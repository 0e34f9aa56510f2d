"""The fast model: weights packed once at load, then one compiled step for a token or for a whole prompt.

    FastModel(config, weights, "int8").forward(ids, cache)

It computes what `model.py` computes with the same dtype, to float rounding, and the same bits with any number of
threads. It covers the Llama family; `FastModel.supports` says whether this model and this processor are covered.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from engine import machine
from engine.config import ModelConfig
from engine.model import checked_ids
from engine.quantize import DTYPES, GROUP, Matrix, check_dtype, quantize
from engine.rope import rope_frequencies, rope_tables

# The kernels need the instructions that they are made of.
if machine.HAS_VNNI:
    import numba

    from engine import kernels
    from engine.kernels import PANEL

# Tokens of a prompt that go through the model together, and the window of a model that has none.
CHUNK, NO_WINDOW = 128, 1 << 40

# Rows that are rounded and packed at a time: whole panels, and some megabytes.
ROWS = 2048


class FastCache:
    """What every layer remembers of one text of up to `max_len` tokens; `length` tokens are in it."""

    def __init__(self, config: ModelConfig, max_len: int, dtype: str):
        # 1. Make room in panels, as the kernels read them; beside short weights for upper halves only.
        self.max_len, self.length, capacity = max_len, 0, -(-max_len // PANEL) * PANEL
        layers, heads, size = config.num_layers, config.num_kv_heads, config.head_dim
        kind = np.float32 if dtype == "fp32" else np.uint16
        keys = _zeros((layers, heads, capacity // PANEL, size, PANEL), kind)
        values = _zeros((layers, heads, -(-size // PANEL), capacity, PANEL), kind)

        # 2. Work out the angles of all positions once, make room for the scores of all threads that there can be, and
        # keep all in order.
        speeds = rope_frequencies(size, config.rope_theta, config.rope_scaling)
        scores = machine.aligned_empty((numba.config.NUMBA_NUM_THREADS, kernels.TILE, capacity))
        self.arrays = *rope_tables(np.arange(max_len), speeds), keys, values, scores


class FastModel:
    """A model of the Llama family in compiled loops: ids in, a score for each possible next token out.

    `weights` maps Hugging Face's names to float32 arrays; each is read once and kept in `dtype`: "fp32", "bf16",
    "int8" or "int4". `threads` defaults to all that there are. Raises ValueError for what is not supported.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str = "fp32",
                 threads: int | None = None):
        # 1. Refuse what the kernels cannot do.
        check_dtype(dtype)
        if not self.supports(config):
            raise ValueError("the compiled loops cover neither this model nor this processor: use engine.model.Model")
        self.config, self._dtype, self.threads = config, dtype, machine.threads() if threads is None else threads
        if not 1 <= self.threads <= numba.config.NUMBA_NUM_THREADS:
            raise ValueError(f"threads is {threads}: it must be 1 to {numba.config.NUMBA_NUM_THREADS} on this machine")

        # 2. Give each matrix its place in one piece of memory: one stream for a whole token, in large pages throughout.
        plan, size = _plan(config, DTYPES.index(dtype))
        self._packed = machine.aligned_empty(size, np.uint8)
        plan[:, kernels.ADDRESS] += self._packed.ctypes.data

        # 3. Pack them there one at a time: while a model is loaded, little more than the model is in memory. The
        # embedding is only looked up in. Beside rounded matrices bfloat16 is good enough for it.
        self._embedding = quantize(weights["model.embed_tokens.weight"], "fp32" if dtype == "fp32" else "bf16")
        for row, matrix in zip(np.roll(plan, 1, axis=0), _matrices(config, weights), strict=True):
            start, block = row[kernels.ADDRESS] - self._packed.ctypes.data, kernels.BLOCK_BYTES[row[kernels.FORMAT]]
            end = start + row[kernels.PANELS] * row[kernels.BLOCKS] * block
            pack_rows(matrix, dtype, self._packed[start:end].reshape(row[kernels.PANELS], -1))

        # 4. Take the small vectors as they are.
        attention = [f"model.layers.{number}.self_attn." for number in range(config.num_layers)]
        kinds = "input_layernorm", "post_attention_layernorm"
        names = [layer.replace("self_attn", kind) + "weight" for layer in attention for kind in kinds]
        norms = np.stack([weights[name] for name in [*names, "model.norm.weight"]])

        # 5. Do the same with those that not every model has. Empty ones say so.
        heads, biases = np.zeros((config.num_layers, 0, 0), np.float32), np.zeros((config.num_layers, 0), np.float32)
        if config.qk_norm:
            heads = np.array([[weights[f"{layer}{n}_norm.weight"] for n in "qk"] for layer in attention])
        if config.qkv_bias:
            biases = np.array([np.hstack([weights[f"{layer}{n}_proj.bias"] for n in "qkv"]) for layer in attention])

        # 6. Keep them in the order that a step asks for, and remember the rooms that it works in.
        self._arrays, self._rooms = (plan, norms, heads, biases, np.float32(config.norm_eps)), {}
        self._sizes = np.array([0, 0, 0, config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim,
                                config.sliding_window or NO_WINDOW, config.rope_interleaved])

    @staticmethod
    def supports(config: ModelConfig) -> bool:
        """Return whether this processor has the instructions, and the model is one that the kernels cover."""
        return machine.HAS_VNNI and config.family == "llama" and config.activation == "silu"

    @property
    def nbytes(self) -> int:
        """The bytes of all packed matrices: what is read from memory for one token."""
        return self._packed.nbytes

    def new_cache(self, max_len: int) -> FastCache:
        """Return an empty memory for one text of up to `max_len` tokens."""
        return FastCache(self.config, max_len, self._dtype)

    def forward(self, ids: Sequence[int], cache: FastCache | None = None, last_only: bool = False) -> np.ndarray:
        """Return the score of every token of the vocabulary after each of these ids, or after the last one only.

        With a `cache`, the ids continue the text that it remembers, and are remembered too.

        Shapes: ids (T,) -> (T, V), or (1, V).
        Raises ValueError for no ids, for ids that the model does not have, and for more than cache or context hold.
        """
        # 1. Refuse what cannot be read.
        ids = checked_ids(ids, self.config, cache)
        cache = self.new_cache(len(ids)) if cache is None else cache

        # 2. Go through a long prompt in pieces, which fit into the processor's own memory.
        pieces = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        scores = [self._step(piece, cache, last_only) for piece in pieces]
        return scores[-1] if last_only or len(scores) == 1 else np.concatenate(scores)

    def _step(self, ids: np.ndarray, cache: FastCache, last_only: bool) -> np.ndarray:
        """Return the scores after some ids that fit into one step, and put them into the cache."""
        # 1. Say how many there are, and make room for the result. What is done here once for a token is done without
        # the processor's memories: the weights have just pushed all else out of them. So there is little of it.
        scored = 1 if last_only else len(ids)
        self._sizes[: kernels.LAYERS] = len(ids), cache.length, scored
        logits = np.empty((scored, self._arrays[0][-1, kernels.PANELS] * PANEL), np.float32)

        # 2. Let all threads work; then count the tokens as read.
        numba.set_num_threads(self.threads)
        kernels.step(self.threads, self._sizes, self._arrays, cache.arrays, *self._room(1 if len(ids) == 1 else CHUNK),
                     self._embedding.rows(ids), logits)
        cache.length += len(ids)
        return logits[:, : self.config.vocab_size]

    def _room(self, tokens: int) -> tuple:
        """Return the arrays that a step of up to so many tokens works in; they are made once."""
        # 1. Look whether they are there.
        if tokens in self._rooms:
            return self._rooms[tokens]
        c, (plan, *_) = self.config, self._arrays

        # 2. Make room for the widest input, in whole blocks and lines.
        widest = max(blocks * kernels.INPUT_BYTES[form] for _, form, blocks, _ in plan.tolist())
        floats = _zeros((max(tokens, self.threads), -(-widest // 64) * 16))

        # 3. Make a row for each token, as wide as the panels that are written to it; and one for each thread.
        qkv, change, gates, _ = (plan[: kernels.MATRICES, kernels.PANELS] * PANEL).tolist()
        rows = [_zeros((tokens, width)) for width in (qkv, c.num_heads * c.head_dim, change, gates, gates // 2)]
        scratch = _zeros((self.threads, max(c.d_model, 2 * kernels.TILE * (c.head_dim + PANEL))))
        self._rooms[tokens] = floats, (*rows, scratch), np.zeros(1, np.int64)
        return self._rooms[tokens]


def _zeros(shape: tuple[int, ...], kind: type = np.float32) -> np.ndarray:
    """Return an aligned array of zeros. Not every number is written before a wide load reads it."""
    array = machine.aligned_empty(shape, kind)
    array.fill(0)
    return array


def _plan(config: ModelConfig, form: int) -> tuple[np.ndarray, int]:
    """Return a row for each matrix, int64: place, format, blocks of a panel, panels; and the bytes of all together.

    Matrices that read the same input are one. The output head comes last.
    """
    # 1. List the rows and columns. Gates come in half panels (see `_matrices`).
    width, inner, half = config.d_model, config.num_heads * config.head_dim, PANEL // 2
    hidden, pairs = -(-config.d_ff // half) * half, 2 * config.num_kv_heads * config.head_dim
    layer = [(inner + pairs, width), (width, inner), (2 * hidden, width), (width, hidden)]

    # 2. Put one behind the other.
    shapes = np.array([*layer * config.num_layers, (config.vocab_size, width)])
    panels, blocks = -(-shapes // (PANEL, 1 if form in (kernels.FP32, kernels.BF16) else GROUP)).T
    ends = np.cumsum(panels * blocks * kernels.BLOCK_BYTES[form])
    return np.stack([np.append(0, ends[:-1]), np.full_like(ends, form), blocks, panels], axis=1), int(ends[-1])


def _matrices(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the output head, which is the largest, then the matrices in the order of the plan, in float32."""
    # 1. Join queries, keys and values.
    yield weights["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    for number in range(config.num_layers):
        attention, mlp = (f"model.layers.{number}.{part}." for part in ("self_attn", "mlp"))
        yield np.concatenate([weights[f"{attention}{name}_proj.weight"] for name in "qkv"])
        yield weights[f"{attention}o_proj.weight"]

        # 2. Put 16 gates and the 16 ups that go with them into one panel. Rows of zeros fill up the last one, and on
        # the way back each has a column of zeros, which adds nothing.
        half, extra = PANEL // 2, -config.d_ff % (PANEL // 2)
        mixed = np.zeros(((config.d_ff + extra) // half, 2, half, config.d_model), np.float32)
        for side, name in enumerate(("gate", "up")):
            rows, whole = weights[f"{mlp}{name}_proj.weight"], config.d_ff // half
            mixed[:whole, side] = rows[: whole * half].reshape(whole, half, -1)

            # 3. Add the rows that fill half a panel only in part. Let go of what is packed.
            if extra:
                mixed[whole, side, : half - extra] = rows[whole * half :]
        yield mixed.reshape(-1, config.d_model)
        del mixed, rows
        yield np.pad(weights[f"{mlp}down_proj.weight"], ((0, 0), (0, extra)))


def pack_rows(matrix: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Write the panels of a float32 matrix (N, C) in a format to out, uint8 (panels, bytes), some rows at a time.

    Rounding takes several times the memory of the rows that it rounds.
    """
    for first in range(0, len(matrix), ROWS):
        packed = pack(quantize(matrix[first : first + ROWS], dtype))
        out[first // PANEL : first // PANEL + len(packed)] = packed


def pack(matrix: Matrix) -> np.ndarray:
    """Return a matrix as panels of 32 interleaved rows, uint8 (panels, bytes); zeros fill up the last panel.

    A block of a panel is a column of floats; or the scales of a group, half precision, and after them the group, four
    columns at a time. int8 is stored with 128 added.
    """
    # 1. See each row as blocks of bytes that stay together: one float, or four whole numbers, or one scale.
    panels, parts = -(-matrix.shape[0] // PANEL), [(matrix.values, matrix.values.itemsize)]
    if matrix.scales is not None:
        values = matrix.values.view(np.uint8) ^ np.uint8(128 if matrix.dtype == "int8" else 0)
        parts = [(matrix.scales, 2), (values, 4)]

    # 2. Interleave the rows of each panel.
    blocks, start, size = parts[0][0].shape[1], 0, kernels.BLOCK_BYTES[DTYPES.index(matrix.dtype)]
    packed = machine.aligned_empty((panels, blocks, size), np.uint8)
    for part, together in parts:
        filled = np.zeros((panels * PANEL, part.shape[1] * part.itemsize), np.uint8)

        # 3. Write them, scales first.
        filled[: len(part)] = np.ascontiguousarray(part).view(np.uint8)
        mixed = filled.reshape(panels, PANEL, blocks, -1, together).transpose(0, 2, 3, 1, 4)
        packed[:, :, start : start + mixed[0, 0].size] = mixed.reshape(panels, blocks, -1)
        start += mixed[0, 0].size
    return packed.reshape(panels, -1)

"""The fast model: weights repacked once at load, then one compiled step for a token or for a whole prompt.

    FastModel(config, weights, "int8").forward(ids, cache)

It computes what `model.py` computes with the same dtype, to float rounding, and the same bits with any number of
threads. It covers the Llama family; `FastModel.supports` says whether this model and this processor are covered.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from engine import machine
from engine.config import ModelConfig
from engine.machine import aligned_empty
from engine.quantize import DTYPES, Matrix, quantize
from engine.rope import rope_frequencies, rope_tables

# The kernels need the instructions that they are made of.
if machine.HAS_VNNI:
    import numba

    from engine import kernels
    from engine.kernels import PANEL

# Tokens of a prompt that go through the model together, and the window of a model that has none.
CHUNK, NO_WINDOW = 128, 1 << 40


class FastCache:
    """What every layer remembers of one text of up to `max_len` tokens; `length` tokens are in it."""

    def __init__(self, config: ModelConfig, max_len: int):
        # 1. Make room in panels, as the kernels read them. Zeros, because what is not yet written is read and hidden.
        self.max_len, self.length, self.capacity = max_len, 0, -(-max_len // PANEL) * PANEL
        layers, heads, size = config.num_layers, config.num_kv_heads, config.head_dim
        self.keys = _zeros((layers, heads, self.capacity // PANEL, size, PANEL))
        self.values = _zeros((layers, heads, -(-size // PANEL), self.capacity, PANEL))
        # 2. Work out the angles of all positions once.
        speeds = rope_frequencies(size, config.rope_theta, config.rope_scaling)
        self.cos, self.sin = rope_tables(np.arange(max_len), speeds)


class FastModel:
    """A model of the Llama family in compiled loops: ids in, a score for each possible next token out.

    `weights` maps Hugging Face's names to float32 arrays; each is read once and kept in `dtype`: "fp32", "bf16",
    "int8" or "int4". `threads` defaults to all that there are. Raises ValueError for what is not supported.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str = "fp32",
                 threads: int | None = None):
        # 1. Refuse what the kernels cannot do.
        if not self.supports(config):
            raise ValueError("the compiled loops cover neither this model nor this processor: use engine.model.Model")
        self.config, self.threads = config, threads or machine.threads()
        if not 1 <= self.threads <= numba.config.NUMBA_NUM_THREADS:
            raise ValueError(f"threads is {threads}: it must be 1 to {numba.config.NUMBA_NUM_THREADS} on this machine")

        # 2. Pack the matrices, one at a time: while a model is loaded, little more than the model is in memory.
        self._packed, plan = [], []
        for matrix in _matrices(config, weights):
            plan.append(self._add(matrix, dtype))
        self.plan = np.array(plan)
        self._embedding = weights["model.embed_tokens.weight"]

        # 3. Take the small vectors as they are.
        layers = [f"model.layers.{number}." for number in range(config.num_layers)]
        kinds = "input_layernorm", "post_attention_layernorm"
        names = [f"{layer}{kind}.weight" for layer in layers for kind in kinds] + ["model.norm.weight"]
        self.norms = np.stack([weights[name] for name in names])
        self.head_norms = _stack(layers, config.qk_norm and ["q_norm.weight", "k_norm.weight"], weights, np.stack)
        self.biases = _stack(layers, config.qkv_bias and [f"{n}_proj.bias" for n in "qkv"], weights, np.concatenate)
        self._rooms: dict[int, tuple] = {}

    @staticmethod
    def supports(config: ModelConfig) -> bool:
        """Return whether this processor has the instructions, and the model is one that the kernels cover."""
        return machine.HAS_VNNI and config.family == "llama" and config.activation == "silu"

    @property
    def nbytes(self) -> int:
        """The bytes of all packed matrices: what is read from memory for one token."""
        return sum(packed.nbytes for packed in self._packed)

    def _add(self, array: np.ndarray, dtype: str) -> list[int]:
        """Pack one matrix and return its row of the plan."""
        packed = pack(quantize(array, dtype))
        form = DTYPES.index(dtype)
        self._packed.append(packed)
        return [packed.ctypes.data, form, packed.shape[1] // kernels.BLOCK_BYTES[form], len(packed)]

    def new_cache(self, max_len: int) -> FastCache:
        """Return an empty memory for one text of up to `max_len` tokens."""
        return FastCache(self.config, max_len)

    def forward(self, ids: Sequence[int], cache: FastCache | None = None, last_only: bool = False) -> np.ndarray:
        """Return the score of every token of the vocabulary after each of these ids, or after the last one only.

        With a `cache`, the ids continue the text that it remembers, and are remembered too.

        Shapes: ids (T,) -> (T, V), or (1, V).
        Raises ValueError for no ids, for ids that the model does not have, and for more than cache or context hold.
        """
        # 1. Refuse what cannot be read.
        ids = np.asarray(ids, dtype=np.int64)
        cache = self.new_cache(max(len(ids), 1)) if cache is None else cache
        self._check(ids, cache)

        # 2. Go through a long prompt in pieces, which fit into the processor's own memory.
        pieces = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        scores = [self._step(piece, cache, last_only) for piece in pieces]
        return scores[-1] if last_only or len(scores) == 1 else np.concatenate(scores)

    def _check(self, ids: np.ndarray, cache: FastCache) -> None:
        """Raise ValueError for no ids, for ids outside of the vocabulary, and for more than there is room for."""
        size, room = self.config.vocab_size, min(self.config.max_seq_len, cache.max_len)
        if not len(ids):
            raise ValueError("there are no ids: give at least one")
        if ids.min() < 0 or ids.max() >= size:
            wrong = ids[(ids < 0) | (ids >= size)][0]
            raise ValueError(f"id {wrong} is no token of this model: ids go from 0 to {size - 1}")
        if cache.length + len(ids) > room:
            raise ValueError(f"{cache.length + len(ids)} tokens are more than the {room} that fit: shorten the text")

    def _step(self, ids: np.ndarray, cache: FastCache, last_only: bool) -> np.ndarray:
        """Return the scores after some ids that fit into one step, and put them into the cache."""
        # 1. Say how large everything is.
        c, tokens = self.config, len(ids)
        scored = 1 if last_only else tokens
        sizes = np.array([tokens, cache.length, scored, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim,
                          c.sliding_window or NO_WINDOW, c.rope_interleaved])

        # 2. Let all threads work.
        inputs, buffers, scratch, counter = self._room(1 if tokens == 1 else CHUNK)
        logits = np.empty((scored, int(self.plan[-1, kernels.PANELS]) * PANEL), np.float32)
        scores = aligned_empty((self.threads, kernels.TILE, cache.capacity))
        numba.set_num_threads(self.threads)
        kernels.step(self.threads, sizes, np.float32(c.norm_eps), self.plan, self.norms, self.head_norms, self.biases,
                     cache.cos, cache.sin, cache.keys, cache.values, self._embedding[ids], inputs, buffers, scratch,
                     scores, logits, counter)

        # 3. Count the tokens as read.
        cache.length += tokens
        return logits[:, : c.vocab_size]

    def _room(self, tokens: int) -> tuple:
        """Return the arrays that a step of up to so many tokens works in; they are made once."""
        if tokens not in self._rooms:
            # 1. Find the widest input, in whole blocks.
            c, plan = self.config, self.plan
            widths = [blocks * kernels.INPUT_BYTES[form] // 4 for _, form, blocks, _ in plan.tolist()]
            floats = _zeros((max(tokens, self.threads), -(-max(widths) // 16) * 16))
            inputs = floats, floats.view(np.int8), floats.view(np.int32)

            # 2. Make a row for each token, as wide as the panels that are written to it.
            qkv, change, gates, _ = plan[: kernels.MATRICES, kernels.PANELS] * PANEL
            widths = qkv, c.num_heads * c.head_dim, max(change, plan[kernels.DOWN, kernels.PANELS] * PANEL), gates
            buffers = tuple(_zeros((tokens, int(width))) for width in (*widths, gates // 2))
            size = max(c.d_model, kernels.TILE * (c.head_dim + -(-c.head_dim // PANEL) * PANEL))
            self._rooms[tokens] = inputs, buffers, _zeros((self.threads, size)), np.zeros(1, np.int64)
        return self._rooms[tokens]


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return an aligned float32 array of zeros."""
    array = aligned_empty(shape)
    array.fill(0)
    return array


def _stack(layers: list[str], names: list[str] | bool, weights: Mapping, join) -> np.ndarray:
    """Return vectors of all layers joined, one entry a layer; empty entries where the model has none."""
    if not names:
        return np.zeros((len(layers), 0, 0) if join is np.stack else (len(layers), 0), np.float32)
    return np.stack([join([weights[f"{layer}self_attn.{name}"] for name in names]) for layer in layers])


def _matrices(config: ModelConfig, weights: Mapping[str, np.ndarray]):
    """Yield the matrices in the order of the plan, those that read the same input as one."""
    # 1. Join queries, keys and values.
    for number in range(config.num_layers):
        attention, mlp = (f"model.layers.{number}.{part}." for part in ("self_attn", "mlp"))
        yield np.concatenate([weights[f"{attention}{name}_proj.weight"] for name in "qkv"])
        yield weights[f"{attention}o_proj.weight"]

        # 2. Put 16 gates and the 16 ups that go with them into one panel. Rows of zeros fill up the last.
        both = [weights[f"{mlp}{name}_proj.weight"] for name in ("gate", "up")]
        half, rows, columns = PANEL // 2, *both[0].shape
        mixed = np.zeros((-(-rows // half), 2, half, columns), np.float32)
        for side, part in enumerate(both):
            padded = np.zeros((len(mixed) * half, columns), np.float32)
            padded[:rows] = part
            mixed[:, side] = padded.reshape(-1, half, columns)
        yield mixed.reshape(-1, columns)

        # 3. Give the way back a column for each row of zeros, which adds nothing.
        down = weights[f"{mlp}down_proj.weight"]
        yield np.pad(down, ((0, 0), (0, len(mixed) * half - rows)))
    yield weights["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]


def pack(matrix: Matrix) -> np.ndarray:
    """Return the bytes of a matrix as panels of 32 interleaved rows, uint8 (panels, bytes); zeros fill up the last."""
    # 1. Make panels.
    panels = -(-matrix.shape[0] // PANEL)
    def rows(array):
        filled = np.zeros((panels * PANEL, *array.shape[1:]), array.dtype)
        filled[: len(array)] = array
        return filled.reshape(panels, PANEL, *array.shape[1:])
    if matrix.dtype == "fp32":
        parts = [rows(matrix.values).swapaxes(1, 2)]
    elif matrix.dtype == "bf16":
        parts = [rows(matrix.values).reshape(panels, 2, PANEL // 2, -1).transpose(0, 3, 2, 1)]
    else:
        scales = rows(matrix.scales).swapaxes(1, 2)
        groups = scales.shape[1]
        if matrix.dtype == "int8":
            numbers = (rows(matrix.values) ^ np.int8(-128)).view(np.uint8)
            numbers = numbers.reshape(panels, PANEL, groups, 8, 4).transpose(0, 2, 3, 1, 4)
        else:
            unsigned = (rows(matrix.integers(slice(None))) + np.int8(8)).view(np.uint8)
            unsigned = unsigned.reshape(panels, PANEL, groups, 4, 2, 4)
            numbers = (unsigned[..., 0, :] | unsigned[..., 1, :] << 4).transpose(0, 2, 3, 1, 4)
        parts = [scales, numbers]
    blocks = parts[0].shape[1]
    parts = [np.ascontiguousarray(part).view(np.uint8).reshape(panels, blocks, -1) for part in parts]
    packed = aligned_empty((panels, blocks * sum(part.shape[2] for part in parts)), np.uint8)
    np.concatenate(parts, axis=2, out=packed.reshape(panels, blocks, -1))
    return packed

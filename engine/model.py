"""The model: blocks on blocks, from token ids to a score for every token that may come next.

    ids → embedding → block 1 → … → block L → norm → head → scores

Two families of towers cover what has been published most:

                  norm        positions               feed-forward   biases
    GPT-2         LayerNorm   learnt, added once      GELU           everywhere
    Llama         RMSNorm     RoPE, in every block    SwiGLU         none (Qwen 2: queries, keys, values)

Mistral, Qwen and SmolLM2 are Llamas with one switch or another; `config.py` reads the switches from their files.
Both towers add to one stream of vectors and never overwrite it. This model is the plain one: NumPy alone, every step
to be read. `fast.py` computes the same in compiled code.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.attention import KVCache, LayerCache, attend
from engine.config import ModelConfig
from engine.layers import ACTIVATIONS, layer_norm, linear, mlp, rms_norm, swiglu
from engine.quantize import quantize
from engine.rope import apply_rope, rope_frequencies, rope_tables

# What the parts of a block are called here, and in the files of each family.
LLAMA_BLOCK = {
    "attention_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight",
    "query": "self_attn.q_proj.weight", "key": "self_attn.k_proj.weight", "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight", "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
QKV_BIASES = {
    "query_bias": "self_attn.q_proj.bias", "key_bias": "self_attn.k_proj.bias", "value_bias": "self_attn.v_proj.bias",
}
QK_NORMS = {"query_norm": "self_attn.q_norm.weight", "key_norm": "self_attn.k_norm.weight"}
GPT2_BLOCK = {
    "attention_norm": "ln_1.weight", "attention_norm_bias": "ln_1.bias", "mlp_norm": "ln_2.weight",
    "mlp_norm_bias": "ln_2.bias", "qkv": "attn.c_attn.weight", "qkv_bias": "attn.c_attn.bias",
    "output": "attn.c_proj.weight", "output_bias": "attn.c_proj.bias", "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias", "down": "mlp.c_proj.weight", "down_bias": "mlp.c_proj.bias",
}

# One text in a batch: where its new tokens stand among all new tokens, and what one layer remembers of it.
Memory = Sequence[tuple[slice, LayerCache]]


def checked_ids(ids: Sequence[int], config: ModelConfig, cache=None) -> np.ndarray:
    """Return the new ids of a text as an array, if a model can read them.

    `cache` is what remembers the text so far, with its `length` and `max_len`; None for a text that begins.

    Raises ValueError for no ids, for ids that the model does not have, and for more than cache or context hold.
    """
    # 1. Look at the ids. NumPy would take -1 for the last row, and say nothing.
    ids, size = np.asarray(ids, np.int64), config.vocab_size
    if not len(ids):
        raise ValueError("there are no ids: give each text at least one")
    if len(wrong := ids[(ids < 0) | (ids >= size)]):
        raise ValueError(f"id {wrong[0]} is no token of this model: ids go from 0 to {size - 1}")

    # 2. Look at the room for them.
    start, room = (0, config.max_seq_len) if cache is None else (cache.length, min(cache.max_len, config.max_seq_len))
    if start + len(ids) > room:
        raise ValueError(f"{start + len(ids)} tokens are more than the {room} that fit: shorten the text")
    return ids


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """Return a vector per head for each token, cut from the one vector that a matrix made for all heads.

    Shapes: x (T, H*D) -> (H, T, D).
    """
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def join_heads(x: np.ndarray) -> np.ndarray:
    """Return the heads' vectors of each token side by side, as one vector: `split_heads` undone.

    Shapes: x (H, T, D) -> (T, H*D).
    """
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)  # (T, H*D)


def attend_texts(q: np.ndarray, k: np.ndarray, v: np.ndarray, memory: Memory, window: int | None) -> np.ndarray:
    """Return what the new tokens of several texts take home, each from its own text alone.

    All other layers treat each token by itself, so they need not know where one text ends; only this one does.

    Shapes: q (H, T, D), k and v (K, T, D), T being the new tokens of all texts -> (H, T, D).
    """
    out = np.empty_like(q)  # (H, T, D)
    for text, cache in memory:
        keys, values = cache.append(k[:, text], v[:, text])
        out[:, text] = attend(q[:, text], keys, values, window)
    return out  # (H, T, D)


def llama_block(x: np.ndarray, w: Mapping, config: ModelConfig, cos: np.ndarray, sin: np.ndarray,
                memory: Memory) -> np.ndarray:
    """Return the stream after one block of the Llama family: attention adds to it, then the feed-forward network.

    `w` holds the block's weights under the names of `LLAMA_BLOCK`, `QKV_BIASES` and `QK_NORMS`.

    Shapes: x (T, C), cos and sin (T, D/2) -> (T, C).
    Source: Touvron et al. 2023 (arXiv 2302.13971), section 2.2; norms of queries and keys: Qwen 3.
    """
    # 1. Read the levelled stream in three ways.
    read = rms_norm(x, w["attention_norm"], config.norm_eps)  # (T, C)
    q = split_heads(linear(read, w["query"], w.get("query_bias")), config.num_heads)  # (H, T, D)
    k = split_heads(linear(read, w["key"], w.get("key_bias")), config.num_kv_heads)  # (K, T, D)
    v = split_heads(linear(read, w["value"], w.get("value_bias")), config.num_kv_heads)  # (K, T, D)

    # 2. Bring queries and keys to one length where the family does so, before they are turned by their positions.
    if config.qk_norm:
        q = rms_norm(q, w["query_norm"], config.norm_eps)  # (H, T, D)
        k = rms_norm(k, w["key_norm"], config.norm_eps)  # (K, T, D)
    q = apply_rope(q, cos, sin, config.rope_interleaved)  # (H, T, D)
    k = apply_rope(k, cos, sin, config.rope_interleaved)  # (K, T, D)

    # 3. Look back, and add what was found.
    found = join_heads(attend_texts(q, k, v, memory, config.sliding_window))  # (T, H*D)
    x = x + linear(found, w["output"])  # (T, C)

    # 4. Let each token think, and add that.
    read, activation = rms_norm(x, w["mlp_norm"], config.norm_eps), ACTIVATIONS[config.activation]
    return x + swiglu(read, w["gate"], w["up"], w["down"], activation)  # (T, C)


def gpt2_block(x: np.ndarray, w: Mapping, config: ModelConfig, memory: Memory) -> np.ndarray:
    """Return the stream after one block of GPT-2: the same plan, with biases, and one matrix for three readings.

    `w` holds the block's weights under the names of `GPT2_BLOCK`.

    Shapes: x (T, C) -> (T, C).
    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    # 1. Read the levelled stream; queries, keys and values come side by side.
    read = layer_norm(x, w["attention_norm"], w["attention_norm_bias"], config.norm_eps)  # (T, C)
    qkv = linear(read, w["qkv"], w["qkv_bias"])  # (T, 3*C)
    q, k, v = np.split(split_heads(qkv, 3 * config.num_heads), 3)  # (H, T, D), (H, T, D), (H, T, D)

    # 2. Look back, and add what was found.
    found = join_heads(attend_texts(q, k, v, memory, config.sliding_window))  # (T, C)
    x = x + linear(found, w["output"], w["output_bias"])  # (T, C)

    # 3. Let each token think, and add that.
    read = layer_norm(x, w["mlp_norm"], w["mlp_norm_bias"], config.norm_eps)  # (T, C)
    activation = ACTIVATIONS[config.activation]
    return x + mlp(read, w["up"], w["up_bias"], w["down"], w["down_bias"], activation)  # (T, C)


class Model:
    """A language model in plain NumPy: ids in, a score for each possible next token out.

    `weights` maps the names of the family's files to float32 arrays. `dtype` is what the matrices are kept in:
    "fp32" as they are, "bf16", "int8" or "int4" rounded to fewer bits, which computes the rounded model exactly.
    Raises ValueError for another dtype.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str = "fp32"):
        # 1. Read the blocks.
        self.config, self._dtype = config, dtype
        self._blocks = [self._read_block(weights, i) for i in range(config.num_layers)]
        gpt2 = config.family == "gpt2"

        # 2. Take what stands below the blocks and above them. The embedding table is only looked up in, a row at a
        # time: bfloat16 is short enough for it. As a tied head it is multiplied with, like any other matrix.
        table, norm = ("wte.weight", "ln_f.weight") if gpt2 else ("model.embed_tokens.weight", "model.norm.weight")
        self._embedding, self._norm = quantize(weights[table], "fp32" if dtype == "fp32" else "bf16"), weights[norm]
        self._head = quantize(weights[table if config.tie_embeddings else "lm_head.weight"], dtype)

        # 3. Know about positions what the family asks for: learnt vectors, or speeds of rotation.
        if gpt2:
            self._norm_bias, self._positions = weights["ln_f.bias"], weights["wpe.weight"]
        else:
            self._frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    def _read_block(self, weights: Mapping[str, np.ndarray], number: int) -> dict:
        """Return the weights of one block under the names used here."""
        # 1. List what this family's block has.
        config, gpt2 = self.config, self.config.family == "gpt2"
        names = GPT2_BLOCK if gpt2 else LLAMA_BLOCK | (QKV_BIASES if config.qkv_bias else {})
        names = names | (QK_NORMS if config.qk_norm else {})
        prefix = f"h.{number}." if gpt2 else f"model.layers.{number}."

        # 2. Read it, matrix after matrix. GPT-2's files have a column for each sum where all others have a row: turn
        # those round. Vectors, such as norms and biases, are small and stay as they are.
        block = {}
        for ours, theirs in names.items():
            array = weights[prefix + theirs].T if gpt2 else weights[prefix + theirs]
            block[ours] = quantize(array, self._dtype) if array.ndim == 2 else array
        return block

    def new_cache(self, max_len: int) -> KVCache:
        """Return an empty memory for one text of up to `max_len` tokens."""
        return KVCache(self.config, max_len, short=self._dtype != "fp32")

    def forward(self, ids: Sequence[int], cache: KVCache | None = None, last_only: bool = False) -> np.ndarray:
        """Return the score of every token of the vocabulary after each of these ids, or after the last one only.

        With a `cache`, the ids continue the text that it remembers, and are remembered too.

        Shapes: ids (T,) -> (T, V), or (1, V).
        Raises ValueError for no ids, for ids that the model does not have, and for more than cache or context hold.
        """
        return self.forward_batch([ids], [cache], last_only)  # (T, V)

    def forward_batch(self, texts: Sequence[Sequence[int]], caches: Sequence[KVCache | None],
                      last_only: bool = False) -> np.ndarray:
        """Return the scores after the ids of several texts, which may differ in length, one text below the other.

        The tokens of all texts go through every matrix together, so each matrix is read from memory once and not
        once per text. No text is filled up to the length of another.

        Shapes: B texts with T ids in all -> (T, V), or with `last_only` (B, V). Raises ValueError as `forward` does.
        """
        # 1. Put the new tokens of all texts in one row, if all of them can be read.
        if not len(texts):
            raise ValueError("there are no texts: give at least one")
        rows = [checked_ids(text, self.config, cache) for text, cache in zip(texts, caches, strict=True)]
        ids = np.concatenate(rows)  # (T,)

        # 2. Number each by its place in its own text. A text without a memory gets one for this call.
        caches = [cache or self.new_cache(len(text)) for text, cache in zip(texts, caches, strict=True)]
        starts = [cache.length for cache in caches]
        places = [np.arange(start, start + len(text)) for text, start in zip(texts, starts, strict=True)]
        positions = np.concatenate(places)  # (T,)

        # 3. Mark where each text lies in the row.
        ends = np.cumsum([len(text) for text in texts])  # (B,)
        spans = [slice(end - len(text), end) for text, end in zip(texts, ends, strict=True)]

        # 4. Climb the tower, each layer with what it remembers of each text.
        x, block = self._embed(ids, positions), self._block_at(positions)
        for i, weights in enumerate(self._blocks):
            memory = [(span, cache.layers[i]) for span, cache in zip(spans, caches, strict=True)]
            x = block(x, weights, memory)  # (T, C)

        # 5. Compare with the row of every token. For the next word of each text, its last token is enough.
        x = x[ends - 1] if last_only else x
        return linear(self._level(x), self._head)

    def _embed(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the vectors that stand for these ids, with GPT-2's vector of the position added.

        Shapes: ids and positions (T,) -> (T, C).
        """
        x = self._embedding.rows(ids)  # (T, C)
        return x + self._positions[positions] if self.config.family == "gpt2" else x  # (T, C)

    def _block_at(self, positions: np.ndarray) -> Callable[[np.ndarray, Mapping, Memory], np.ndarray]:
        """Return this family's block, ready for tokens at these positions: (x, weights, memory) -> x."""
        config = self.config
        if config.family == "gpt2":
            return lambda x, weights, memory: gpt2_block(x, weights, config, memory)
        cos, sin = rope_tables(positions, self._frequencies)  # (T, D/2), (T, D/2)
        return lambda x, weights, memory: llama_block(x, weights, config, cos, sin, memory)

    def _level(self, x: np.ndarray) -> np.ndarray:
        """Return the stream after the last norm, as the head reads it. Shapes: (T, C) -> (T, C)."""
        if self.config.family == "gpt2":
            return layer_norm(x, self._norm, self._norm_bias, self.config.norm_eps)
        return rms_norm(x, self._norm, self.config.norm_eps)

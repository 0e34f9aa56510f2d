"""llama2.c's model file: seven whole numbers, then every tensor of a small Llama, and nothing else.

    7 × int32    d_model  d_ff  num_layers  num_heads  num_kv_heads  vocab_size  max_seq_len
    float32 …    the tensors end to end, each kind for all layers at once

No names, no types, no version: only who knows the order can read it, and the length of the file is the one thing that
can be checked. So it is, to the byte. A vocabulary below zero says that the output head is a table of its own. Two
tables of cosines and sines lie before it, left over from an older program; they can be computed, and are passed over.

The file turns RoPE's neighbours (2i, 2i+1) where Hugging Face's turn halves; the config says so. Its norms add 1e-5
and its angles have the base 10 000, as in the program that trains these models.

Source: Karpathy's llama2.c, the functions `legacy_export` in export.py and `read_checkpoint` in run.c.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.config import ModelConfig, tensor_shapes
from engine.safetensors import REMEDY, StoredTensor, map_file

# How many numbers stand before the tensors.
HEADER_NUMBERS = 7

# The parts of a block in the order of the file, each for all layers, by the names that Hugging Face gave them. The
# embedding comes before them, the last norm after them.
BLOCK_ORDER = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
)

# The tokens that end a text: these models are trained on stories with a 1 before each, and 2 is the end.
STOP_IDS = (1, 2)


def open_llama2c(path: str | Path) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """Return the config and the tensors of a llama2.c file; only the seven numbers are read.

    Raises OSError where it cannot be opened, and ValueError in one line where its sizes make no sense or do not add
    up to the file's length.
    """
    # 1. Map it, as a safetensors file is.
    data = np.frombuffer(map_file(path), np.uint8)

    # 2. Believe the sizes once they describe a Llama, and add up to what is there.
    try:
        config = _read_sizes(data)
        length = 4 * (HEADER_NUMBERS + sum(count for _, _, count in _layout(config)))
        if length != len(data):
            raise ValueError(f"its sizes ask for {length} bytes, and it has {len(data)}")
    except ValueError as error:
        raise ValueError(f"{path} is no whole llama2.c model: {error}; {REMEDY}") from None
    return config, _place_tensors(config, data)


def _read_sizes(data: np.ndarray) -> ModelConfig:
    """Return the config that the first seven numbers describe."""
    # 1. Read them. Newer files of this kind begin with four letters, and keep the numbers elsewhere.
    if len(data) < 4 * HEADER_NUMBERS:
        raise ValueError(f"it has {len(data)} bytes, and its sizes alone take {4 * HEADER_NUMBERS}")
    if data[:4].tobytes() == b"24ka":
        raise ValueError("it is of a later version: export it again with --version 0")
    d_model, d_ff, layers, heads, kv_heads, vocab, length = data[: 4 * HEADER_NUMBERS].view("<i4").tolist()

    # 2. Let the config check them.
    return ModelConfig(
        family="llama", vocab_size=abs(vocab), d_model=d_model, num_layers=layers, num_heads=heads, d_ff=d_ff,
        max_seq_len=length, num_kv_heads=kv_heads, tie_embeddings=vocab > 0, rope_interleaved=True, eos_ids=STOP_IDS,
    )


def _layout(config: ModelConfig) -> Iterator[tuple[str | None, tuple[int, ...], int]]:
    """Yield the pieces of a file in order: a name, the shape of one layer's tensor, and how many numbers there are.

    A name with a star stands for all layers; None is a table that is passed over. Nothing here grows with the number
    of layers, so a file that claims a billion of them costs nothing.
    """
    # 1. Look up shapes under the names of the first block, and count each kind for all layers.
    shapes = dict(tensor_shapes(dataclasses.replace(config, num_layers=1)))
    table, size = (config.vocab_size, config.d_model), config.vocab_size * config.d_model

    # 2. Walk through the file: the embedding, then the parts of the blocks.
    yield "model.embed_tokens.weight", table, size
    for part in BLOCK_ORDER:
        shape = shapes[f"model.layers.0.{part}.weight"]
        yield f"model.layers.*.{part}.weight", shape, config.num_layers * math.prod(shape)

    # 3. Add what comes behind the blocks: the norm, two tables of angles, and the head if it is not tied.
    yield "model.norm.weight", (config.d_model,), config.d_model
    yield None, (), 2 * config.max_seq_len * (config.head_dim // 2)
    if not config.tie_embeddings:
        yield "lm_head.weight", table, size


def _place_tensors(config: ModelConfig, data: np.ndarray) -> dict[str, StoredTensor]:
    """Return the tensors of a file whose length was found right."""
    # 1. Walk through the pieces, and cut each into its layers.
    tensors, at = {}, 4 * HEADER_NUMBERS
    for name, shape, count in _layout(config):
        layers = config.num_layers if name and "*" in name else 1
        step = 4 * count // layers
        for i in range(layers if name else 0):
            # 2. Name them as Hugging Face does, so that one model serves both kinds of file.
            own = name.replace("*", str(i))
            tensors[own] = StoredTensor(own, "F32", shape, data[at + i * step : at + (i + 1) * step])
        at += 4 * count
    return tensors

"""llama2.c's file: every tensor is found where its program writes it, and the length is checked to the byte."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from engine.llama2c import open_llama2c
from engine.tokenizer import load_tokenizer
from engine.weights import load_weights

DATA = Path(os.environ.get("BOOK_TEST_DATA", "nowhere"), "stories260K")
real = pytest.mark.skipif(not DATA.is_dir(), reason="BOOK_TEST_DATA names no folder with stories260K in it")
SIZES = {"d_model": 12, "d_ff": 14, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "vocab_size": 11,
         "max_seq_len": 5}


def write(path: Path, tied: bool = True) -> dict[str, np.ndarray]:
    """Write a random model in the order of the program that trains them, and return its tensors."""
    d, hidden, layers, vocab, keys = 12, 14, 3, 11, 4
    random = np.random.default_rng(8)
    content, tensors = [struct.pack("<7i", *SIZES.values()) if tied else
                        struct.pack("<7i", *(SIZES | {"vocab_size": -vocab}).values())], {}

    def put(shape: tuple, name: str | None, times: int = 1) -> None:
        for i in range(times):
            numbers = random.standard_normal(shape).astype("<f4")
            content.append(numbers.tobytes())
            if name:
                tensors[name.format(i)] = numbers

    put((vocab, d), "model.embed_tokens.weight")
    put((d,), "model.layers.{}.input_layernorm.weight", layers)
    put((d, d), "model.layers.{}.self_attn.q_proj.weight", layers)
    put((keys, d), "model.layers.{}.self_attn.k_proj.weight", layers)
    put((keys, d), "model.layers.{}.self_attn.v_proj.weight", layers)
    put((d, d), "model.layers.{}.self_attn.o_proj.weight", layers)
    put((d,), "model.layers.{}.post_attention_layernorm.weight", layers)
    put((hidden, d), "model.layers.{}.mlp.gate_proj.weight", layers)
    put((d, hidden), "model.layers.{}.mlp.down_proj.weight", layers)
    put((hidden, d), "model.layers.{}.mlp.up_proj.weight", layers)
    put((d,), "model.norm.weight")
    put((SIZES["max_seq_len"], 1), None, 2)
    if not tied:
        put((vocab, d), "lm_head.weight")
    path.write_bytes(b"".join(content))
    return tensors


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_found_where_the_program_writes_it(tied, tmp_path):
    tensors = write(tmp_path / "model.bin", tied)
    config, weights = load_weights(tmp_path / "model.bin")
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert (config.tie_embeddings, config.rope_interleaved, config.head_dim) == (tied, True, 2)
    assert config.eos_ids == (1, 2)
    assert set(weights) == set(tensors)
    for name, numbers in tensors.items():
        np.testing.assert_array_equal(weights[name], numbers)
        assert not weights[name].flags.writeable


@pytest.mark.parametrize(("end", "more"), [(-1, 0), (-4, 0), (28, 0), (27, 0), (0, 0), (None, 1), (None, 4 * 11 * 12)])
def test_a_file_that_is_a_byte_too_short_or_too_long_is_refused(end, more, tmp_path):
    write(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:end] + bytes(more))
    with pytest.raises(ValueError, match=r"model\.bin is no whole llama2\.c model.*bytes") as caught:
        open_llama2c(tmp_path / "model.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 4, 27])
def test_a_file_too_short_for_its_sizes_is_refused_with_its_length(length, tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(length))
    with pytest.raises(ValueError, match=f"it has {length} bytes, and its sizes alone take 28"):
        open_llama2c(tmp_path / "model.bin")


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("value", [0, -1, -(1 << 31), (1 << 31) - 1, 7])
def test_a_size_that_is_another_is_refused_in_one_line(place, value, tmp_path):
    write(tmp_path / "model.bin")
    content = bytearray((tmp_path / "model.bin").read_bytes())
    content[4 * place : 4 * place + 4] = struct.pack("<i", value)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="no whole llama2.c model") as caught:
        open_llama2c(tmp_path / "model.bin")
    assert "\n" not in str(caught.value)


def test_a_file_of_a_later_version_is_named_as_such(tmp_path):
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 0x616B3432) + bytes(300))
    with pytest.raises(ValueError, match="later version: export it again with --version 0"):
        open_llama2c(tmp_path / "model.bin")


@real
def test_the_published_model_and_its_tokenizer_open():
    config, weights = load_weights(DATA / "stories260K.bin")
    assert (config.vocab_size, config.d_model, config.num_layers) == (512, 64, 5)
    assert (config.num_heads, config.num_kv_heads, config.tie_embeddings) == (8, 4, True)
    # Seven sizes, the numbers, and two tables of angles that nobody needs: that is the whole file.
    count = sum(weights[name].size for name in weights) + config.max_seq_len * config.head_dim
    assert 28 + 4 * count == (DATA / "stories260K.bin").stat().st_size
    assert load_tokenizer(DATA / "stories260K.bin").vocab_size == config.vocab_size

"""Whatever the engine reads from a disk may be damaged in any way: it is read, or refused in one line, and that is all.

Hypothesis draws the damage, the same each time. What is read in spite of it must be what the format's own library
reads, or at least make sense; nothing but ValueError and OSError may be raised.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from engine.config import read_config, tensor_shapes
from engine.safetensors import READABLE, open_folder, open_safetensors
from engine.tokenizer import load_tokenizer
from engine.weights import load_weights
from tests.chapters.test_ch02_published import train_family
from tests.engine.test_llama2c import write
from tests.engine.test_tokenizer import WORDS, write_scored
from tests.test_fuzz import ANY_JSON, changed, damaged, redrawn

many = settings(max_examples=50, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
LLAMA = {"model_type": "llama", "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 3, "max_position_embeddings": 9, "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "rms_norm_eps": 1e-5,
         "eos_token_id": [3]}


def tried(read: Callable[[], Any]) -> Any:
    """What was read, or None where it was refused in one line."""
    try:
        return read()
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, repr(error)
        return None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a small model and a tokenizer."""
    folder = train_family("llama3", tmp_path_factory.mktemp("fuzz"))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    random = np.random.default_rng(2)
    save_file({name: random.standard_normal(shape).astype(np.float16 if "mlp" in name else np.float32)
               for name, shape in tensor_shapes(read_config(folder))}, folder / "model.safetensors")
    return folder


def opened(folder: Path) -> None:
    """Open a model; one that opens has every tensor of its config, and each is finite or refused by name."""
    if (read := tried(lambda: load_weights(folder))) is not None:
        config, weights = read
        assert {name: weights.shape(name) for name in weights} == dict(tensor_shapes(config))
        for name in weights:
            numbers = tried(lambda name=name: weights[name])
            assert numbers is None or (np.isfinite(numbers).all() and numbers.dtype == np.float32)


def same_as_the_library(path: Path) -> None:
    """Read a safetensors file; what is read is what the format's library reads, byte for byte."""
    if (ours := tried(lambda: open_safetensors(path))) is not None:
        with safe_open(path, framework="np") as theirs:
            assert set(theirs.keys()) == ours.keys()
            for name in (name for name, tensor in ours.items() if tensor.dtype in READABLE and tensor.dtype != "BF16"):
                expected = theirs.get_tensor(name).astype(np.float32)
                assert ours[name].numbers().tobytes() == expected.tobytes()


@many
@given(data=st.data())
def test_damaged_numbers_are_refused_or_what_the_library_reads(data, model, tmp_path):
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(data.draw(damaged((model / "model.safetensors").read_bytes())))
    same_as_the_library(tmp_path / "model.safetensors")
    opened(tmp_path)


@many
@given(data=st.data())
def test_a_header_of_anything_is_refused_or_what_the_library_reads(data, model, tmp_path):
    content = (model / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(data.draw(changed(json.loads(content[8:size])))).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[size:])
    same_as_the_library(tmp_path / "model.safetensors")


@many
@given(content=st.binary(max_size=99) | st.binary(max_size=30).map(lambda text: len(text).to_bytes(8, "little") + text))
def test_any_bytes_are_refused_or_what_the_library_reads(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    same_as_the_library(tmp_path / "model.safetensors")


@many
@given(data=st.data())
def test_an_index_of_anything_is_refused_or_makes_sense(data, model, tmp_path):
    (tmp_path / "part.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    whole = {"metadata": {}, "weight_map": dict.fromkeys(open_folder(model), "part.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_bytes(redrawn(data, json.dumps(whole).encode()))
    read = tried(lambda: open_folder(tmp_path))
    assert read is None or read.keys() in (whole["weight_map"].keys(), set())


@many
@given(data=st.data(), ends=ANY_JSON)
def test_a_config_of_anything_is_refused_or_makes_sense(data, ends, model, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes(redrawn(data, (model / "config.json").read_bytes()))
    if data.draw(st.booleans()):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    opened(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)


@many
@given(data=st.data())
def test_a_llama2c_file_of_anything_is_refused_or_makes_sense(data, tmp_path):
    write(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(data.draw(damaged((tmp_path / "model.bin").read_bytes())))
    opened(tmp_path / "model.bin")
    # Seven numbers of any kind, before as many bytes as there were.
    numbers = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 15), min_size=7, max_size=7))
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", *numbers) + bytes(data.draw(st.integers(0, 999))))
    opened(tmp_path / "model.bin")


def speaks(path: Path) -> None:
    """Open a tokenizer; one that opens takes any text, and gives ids that it can read back."""
    if (tokenizer := tried(lambda: load_tokenizer(path))) is not None:
        for text in ("Once upon a time, 123 <|endoftext|>", "grün 🙂\n\n  x", ""):
            ids = tried(lambda text=text: tokenizer.encode(text))
            assert ids is None or tokenizer.decode(ids) == text
        assert all(type(number) is int for number in tokenizer.start_ids)


@many
@given(data=st.data())
def test_a_tokenizer_of_anything_is_refused_or_speaks(data, model, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(redrawn(data, (model / "tokenizer.json").read_bytes()))
    speaks(tmp_path)


@many
@given(data=st.data())
def test_a_file_of_pieces_of_anything_is_refused_or_speaks(data, tmp_path):
    write_scored(tmp_path / "tok.bin", WORDS)
    (tmp_path / "tok.bin").write_bytes(data.draw(damaged((tmp_path / "tok.bin").read_bytes())))
    speaks(tmp_path / "tok.bin")

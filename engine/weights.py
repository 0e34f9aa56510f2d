"""Weights: the numbers of a model by their names, whatever kind of file they lie in.

    config, weights = load_weights("models/storyteller")
    weights["model.layers.0.mlp.up_proj.weight"]      a float32 array, made when it is asked for
    weights.shape("model.norm.weight")                without reading a number

Before anything is handed out, the tensors that are stored are held against those that the config asks for: each of
them there, in that shape, and none besides. A model with one tensor missing would not fail by itself; it would speak
nonsense with confidence. And the shapes of a file whose length was checked are the bound to what a config may ask for.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from engine.config import ModelConfig, read_config, tensor_shapes
from engine.llama2c import open_llama2c
from engine.safetensors import READABLE, REMEDY, StoredTensor, open_folder

# Tensors that nobody misses: tables that every program can compute for itself, in files of some age.
LEFT_OVER = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Weights(Mapping[str, np.ndarray]):
    """The tensors of one model, read-only: a mapping from names to float32 arrays.

    An array that is stored as F32 is a view of the file and takes no memory of its own; F16 and BF16 are widened each
    time they are asked for. Asking raises ValueError where a number is infinite or none: it would spread through
    every layer.
    """

    def __init__(self, stored: dict[str, StoredTensor], source: str):
        self._stored, self._source = stored, source
        self._finite: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one tensor as float32. Raises KeyError for a name that the model does not have."""
        # 1. Look at the bytes as numbers.
        numbers = self._stored[name].numbers()

        # 2. Look for damage, once. The smallest and the largest are infinite, or none, if any number is.
        if name not in self._finite:
            if not np.isfinite([numbers.min(), numbers.max()]).all():
                raise ValueError(f"{self._source}: tensor {name!r} holds a number that is not finite; {REMEDY}")
        self._finite.add(name)
        return numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it. Raises KeyError for an unknown name."""
        return self._stored[name].shape


def load_weights(path: str | Path) -> tuple[ModelConfig, Weights]:
    """Return the config and the weights of a model: of a Hugging Face folder, or of a llama2.c file that ends in .bin.

    Raises FileNotFoundError where a file is missing, and ValueError in one line where one is broken, or a tensor is
    missing, unknown, of another shape, or of a format that is not read here.
    """
    # 1. Open it. The names of both kinds of Llama are the same from here on.
    path = Path(path)
    if path.suffix == ".bin":
        config, stored = open_llama2c(path)
        return config, Weights(stored, str(path))
    config, stored = read_config(path), open_folder(path)

    # 2. Leave out what is no weight, and what stands before GPT-2's names in files of the whole model.
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(LEFT_OVER)}
    if config.family == "gpt2":
        stored = _without_prefix(stored, path)

    # 3. Compare.
    config = _with_its_head(config, stored)
    _check_tensors(config, stored, path)
    return config, Weights(stored, str(path))


def _without_prefix(stored: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Return GPT-2's tensors without the word "transformer." that some files write before every name."""
    short = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    if len(short) < len(stored):
        raise ValueError(f"{path} holds a tensor under two names, with transformer. and without; {REMEDY}")
    return short


def _with_its_head(config: ModelConfig, stored: dict[str, StoredTensor]) -> ModelConfig:
    """Return the config, untied where a head is stored that differs from the embedding; an equal one is dropped.

    Some files store a tied head all the same. One that differs is a head of its own, whatever config.json says.
    """
    # 1. Find both.
    table = stored.get("wte.weight" if config.family == "gpt2" else "model.embed_tokens.weight")
    head = stored.get("lm_head.weight")
    if not config.tie_embeddings or head is None or table is None:
        return config

    # 2. Compare bytes, not numbers: no memory is taken for it. Keep one of two that are the same.
    if (head.dtype, head.shape) == (table.dtype, table.shape) and memoryview(head.data) == memoryview(table.data):
        del stored["lm_head.weight"]
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _check_tensors(config: ModelConfig, stored: dict[str, StoredTensor], path: Path) -> None:
    """Raise ValueError naming the first tensor that is missing, of another shape or format, or too many."""
    # 1. Compare one by one, and stop at the first difference: a config may ask for a billion layers.
    rest = set(stored)
    for name, want in tensor_shapes(config):
        if name not in rest:
            raise ValueError(f"{path}: tensor {name!r} is missing, but config.json asks for it; {REMEDY}")
        rest.remove(name)
        _check_tensor(stored[name], want, path)

    # 2. Name what is left over.
    if rest:
        raise ValueError(f"{path}: tensor {min(rest)!r} does not belong to what config.json describes; {REMEDY}")


def _check_tensor(tensor: StoredTensor, want: tuple[int, ...], path: Path) -> None:
    """Raise ValueError where a tensor is of another shape than this, or of a format that is not read here."""
    if tensor.shape != want:
        have = f"{tensor.name!r} has shape {tensor.shape}"
        raise ValueError(f"{path}: tensor {have}, not {want} as in config.json; {REMEDY}")
    if tensor.dtype not in READABLE:
        known = ", ".join(READABLE)
        raise ValueError(f"{path}: tensor {tensor.name!r} holds {tensor.dtype} numbers: only {known} are read here")

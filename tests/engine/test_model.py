"""Models: what Transformers saved gives the same scores here, at once or token by token, alone or among others."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engine.config import ModelConfig, tensor_shapes
from engine.model import Model
from engine.weights import load_weights
from tests.chapters.test_ch07_published import DTYPES, PUBLISHED, SIZES, publish, theirs_of

STORYTELLER = Path(__file__).parents[2] / "models" / "storyteller"
GPT2 = {
    "gpt2": {},
    "gpt2 with another hidden size": {"n_inner": 44},
    "gpt2 with the exact gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "gpt2 untied": {"tie_word_embeddings": False},
    "gpt2 for words": {"vocab_size": 1123},
}
ALL = [*PUBLISHED, *GPT2]
# One of each way to compute, for the tests that need not see every family.
KINDS = ["llama 3.1", "mistral", "qwen2", "qwen3", "gpt2"]


def publish_any(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Let Transformers save a random model of this shape, GPT-2's among them."""
    if name in PUBLISHED:
        return publish(name, folder, dtype)
    torch.manual_seed(3)
    sizes = {"vocab_size": SIZES["vocab_size"], "n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 97}
    model = GPT2LMHeadModel(GPT2Config(**sizes | {"bos_token_id": None, "eos_token_id": None} | GPT2[name]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.to(dtype).save_pretrained(folder)
    return folder


def open_model(folder: Path, dtype: str = "fp32") -> Model:
    return Model(*load_weights(folder), dtype)


def some_ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], length)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Assert that scores differ by no more than 1e-4 of the largest."""
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def theirs_say(folder: Path, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return theirs_of(folder)(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in ALL for dtype in DTYPES
                                             if dtype == "float32" or name in KINDS])
def test_published_models_score_every_token_as_transformers_does(name, dtype, tmp_path):
    publish_any(name, tmp_path, DTYPES[dtype])
    ids = some_ids(31)
    close(open_model(tmp_path).forward(ids), theirs_say(tmp_path, ids))


@pytest.mark.parametrize("steps", [[31], [1] * 31, [12, 1, 1, 9, 8]])
@pytest.mark.parametrize("name", KINDS)
def test_with_a_cache_the_scores_are_those_without(name, steps, tmp_path):
    model, ids = open_model(publish_any(name, tmp_path)), some_ids(31)
    cache, pieces = model.new_cache(31), np.split(ids, np.cumsum(steps)[:-1])
    close(np.concatenate([model.forward(piece, cache) for piece in pieces]), model.forward(ids))
    assert cache.length == 31
    with pytest.raises(ValueError, match="32 tokens are more than the 31 that fit"):
        model.forward([1], cache)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_score_alone_is_the_last_of_all(name, tmp_path):
    model, ids = open_model(publish_any(name, tmp_path)), some_ids(17)
    close(model.forward(ids, model.new_cache(20), last_only=True), model.forward(ids)[-1:])


@pytest.mark.parametrize("name", KINDS)
def test_texts_of_unequal_length_read_together_give_what_each_gives_alone(name, tmp_path):
    model, texts = open_model(publish_any(name, tmp_path)), [some_ids(length, length) for length in (11, 1, 29)]
    close(model.forward_batch(texts, [None] * 3), np.concatenate([model.forward(text) for text in texts]))
    caches = [model.new_cache(40) for _ in texts]
    close(model.forward_batch(texts, caches, last_only=True), np.stack([model.forward(text)[-1] for text in texts]))
    more = [np.array([3]), np.array([4, 5]), np.array([6])]
    longer = [np.concatenate(pair) for pair in zip(texts, more, strict=True)]
    close(model.forward_batch(more, caches, last_only=True), np.stack([model.forward(text)[-1] for text in longer]))


@pytest.mark.parametrize("name", KINDS)
def test_fewer_bits_give_nearly_the_same_scores(name, tmp_path):
    folder, ids = publish_any(name, tmp_path), some_ids(20)
    exact = open_model(folder).forward(ids)
    errors = [np.abs(open_model(folder, dtype).forward(ids) - exact).mean() for dtype in ("bf16", "int8", "int4")]
    assert 0 < errors[0] < errors[1] < errors[2] < np.abs(exact).mean()


def test_rows_of_the_interleaved_layout_give_the_scores_of_the_split_one(tmp_path):
    config, weights = load_weights(publish_any("llama", tmp_path))
    turned, order = {}, np.arange(config.head_dim).reshape(2, -1).T.ravel()
    for name in weights:
        turned[name] = weights[name]
        if "q_proj" in name or "k_proj" in name:
            heads = turned[name].reshape(-1, config.head_dim, config.d_model)
            turned[name] = heads[:, order].reshape(turned[name].shape)
    interleaved = Model(dataclasses.replace(config, rope_interleaved=True), turned)
    close(interleaved.forward(some_ids(19)), Model(config, weights).forward(some_ids(19)))


def test_what_cannot_be_read_is_refused(tmp_path):
    model = open_model(publish_any("gpt2", tmp_path))
    for ids, words in (([], "no ids"), ([3, 47], "id 47 is no token.*0 to 46"), ([-1], "id -1"),
                       ([1] * 98, "98 tokens are more than the 97")):
        with pytest.raises(ValueError, match=words):
            model.forward(ids)
    with pytest.raises(ValueError, match="no texts"):
        model.forward_batch([], [])
    with pytest.raises(ValueError, match="98 tokens are more than the 97 that fit"):
        model.forward([1] * 98, model.new_cache(1000))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_takes_every_tensor_that_its_config_names(family):
    sizes = {"vocab_size": 13, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_ff": 5, "max_seq_len": 9}
    switches = {"qkv_bias": True, "qk_norm": True} if family == "llama" else {"activation": "gelu_tanh"}
    config, asked = ModelConfig(family, **sizes, **switches, tie_embeddings=False), set()

    class Listening(dict):
        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    Model(config, Listening((name, np.ones(shape, np.float32)) for name, shape in tensor_shapes(config)))
    assert asked == {name for name, _ in tensor_shapes(config)}


def test_the_storyteller_scores_as_transformers_does():
    ids = some_ids(60)
    close(open_model(STORYTELLER).forward(ids), theirs_say(STORYTELLER, ids))


def test_the_weights_of_llama2c_have_a_little_to_say():
    data = os.environ.get("BOOK_TEST_DATA")
    if not data or not (path := Path(data) / "stories260K" / "stories260K.bin").exists():
        pytest.skip("needs stories260K.bin below the folder that BOOK_TEST_DATA names")
    scores = open_model(path).forward([1])
    assert scores.argmax() == 403

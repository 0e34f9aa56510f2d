"""RoPE: the angles of Transformers, both layouts of chapter 4, and only differences of positions count."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from chapters import ch04_positional_encoding as chapter
from engine.rope import apply_rope, rope_frequencies, rope_tables

H, T, D = 3, 11, 10
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 3.0}


def random(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(H, T, D)).astype(np.float32)


@pytest.mark.parametrize("theta", [300.0, 10000.0, 500000.0])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, LINEAR, LLAMA3])
def test_angles_are_those_of_transformers_and_of_chapter_4(scaling, theta):
    cos, sin = rope_tables(np.arange(97), rope_frequencies(D, theta, scaling))
    asked = (scaling or {"rope_type": "default"}) | {"rope_theta": theta}
    sizes = {"hidden_size": H * D, "num_attention_heads": H, "max_position_embeddings": 97}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=asked))(torch.zeros(1), torch.arange(97)[None])
    for ours, other, table in zip((cos, sin), theirs, chapter.rope_tables(D, 97, theta, scaling), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, other[0, :, : D // 2].numpy(), atol=2e-5)
        np.testing.assert_allclose(ours, table.numpy(), atol=2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_both_layouts_turn_as_chapter_4_does(interleaved):
    x, tables = random(), rope_tables(np.arange(5, 5 + T), rope_frequencies(D))
    theirs = chapter.apply_rope(torch.from_numpy(x), *map(torch.from_numpy, tables), interleaved=interleaved)
    np.testing.assert_allclose(apply_rope(x, *tables, interleaved), theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_alone_and_lengths_stay(interleaved):
    q, k, speed = random(1), random(2), rope_frequencies(D)
    scores = []
    for start in (0, 40):
        tables = rope_tables(np.arange(start, start + T), speed)
        turned = [apply_rope(x, *tables, interleaved) for x in (q, k)]
        scores.append(turned[0] @ turned[1].swapaxes(1, 2))
        np.testing.assert_allclose(np.linalg.norm(turned[0], axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(scores[0], scores[1], atol=2e-4)
    assert np.abs(scores[0] - q @ k.swapaxes(1, 2)).max() > 0.1


def test_the_layouts_differ_by_an_order_of_the_numbers():
    x, tables = random(), rope_tables(np.arange(T), rope_frequencies(D))
    order = np.arange(D).reshape(2, D // 2).T.ravel()
    np.testing.assert_allclose(apply_rope(x[..., order], *tables, True), apply_rope(x, *tables)[..., order], atol=1e-6)


def test_the_base_is_that_of_the_paper_unless_told():
    np.testing.assert_array_equal(rope_frequencies(D), rope_frequencies(D, 10000.0))


def test_what_cannot_be_turned_is_refused():
    with pytest.raises(ValueError, match="head_dim 9 is odd"):
        rope_frequencies(9)
    with pytest.raises(ValueError, match="rope_type 'yarn' is not known"):
        rope_frequencies(D, scaling={"rope_type": "yarn", "factor": 2.0})

"""Every shape note of the engine's model is reached by a scenario here, and true for sizes that cannot be mistaken."""

import numpy as np
import pytest

from engine.config import ModelConfig, tensor_shapes
from engine.rope import rope_frequencies, rope_tables
from engine.sampling import SamplingConfig
from tools.shape_notes import Traced, trace

B, T, S, C, H, K, D, F, V = 2, 7, 11, 23, 9, 3, 14, 31, 53


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def some_ids(length: int) -> np.ndarray:
    return np.arange(length) % V


def layers(traced: Traced) -> None:
    with traced.sizes(T=T, C=C, F=F):
        traced.module.mlp(random(T, C), random(F, C), random(F), random(C, F), random(C))
        traced.module.swiglu(random(T, C), random(F, C), random(F, C), random(C, F))


def rope(traced: Traced) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}
    with traced.sizes(T=T, H=H, D=D):
        for scaling in (None, llama3):
            speed = traced.module.rope_frequencies(D, scaling=scaling)
        traced.module.apply_rope(random(H, T, D), *traced.module.rope_tables(np.arange(T), speed))


def attention(traced: Traced) -> None:
    module, q, k, v = traced.module, random(H, T, D), random(K, S, D), random(K, S, D)
    with traced.sizes(T=T, S=S, H=H, K=K, D=D):
        module.many_heads(q, k, v, window=5)
        module.attend(q, k, v, window=5)

        # What is behind S - T tokens is seen with all of them: once in reserved memory, once where that is full.
        for capacity in (S, S - 1):
            cache = module.LayerCache(K, capacity, D, window=S - T + 1)
            cache.length = S - T
            cache.append(random(K, T, D), random(K, T, D))


def model_of(traced: Traced, family: str, heads: int, kv_heads: int, width: int, **switches):
    """Return a small model of a family, its weights random."""
    sizes = {"vocab_size": V, "d_model": width, "num_layers": 1, "num_heads": heads, "num_kv_heads": kv_heads,
             "head_dim": D, "d_ff": F, "max_seq_len": 19}
    config = ModelConfig(family, **sizes, **switches)
    return traced.module.Model(config, {name: random(*shape) for name, shape in tensor_shapes(config)})


def model(traced: Traced) -> None:
    texts = [some_ids(3), some_ids(4)]
    with traced.sizes(B=B, T=T, C=C, H=H, K=K, D=D, V=V):
        llama = model_of(traced, "llama", H, K, C, qk_norm=True)
        llama.forward_batch(texts, [None, None])
    with traced.sizes(B=1, T=T, C=C, H=H, K=K, D=D, V=V):
        llama.forward(some_ids(T))
    with traced.sizes(B=B, T=T, C=H * D, H=H, D=D, V=V):
        model_of(traced, "gpt2", H, H, H * D, activation="gelu_tanh").forward_batch(texts, [None, None])


def sampling(traced: Traced) -> None:
    scores, history = random(V), some_ids(S)
    with traced.sizes(V=V, S=S):
        for options in ({"temperature": 0.0}, {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}):
            traced.module.sample_next(scores, SamplingConfig(**options), history)


SCENARIOS = {"layers": layers, "rope": rope, "attention": attention, "model": model, "sampling": sampling}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_shape_note_is_reached_and_true(name):
    traced = trace(f"engine/{name}.py")
    SCENARIOS[name](traced)
    assert traced.notes and traced.unreached() == []


@pytest.mark.parametrize("name", ["__init__", "__main__", "generation"])
def test_no_module_with_notes_is_without_a_scenario(name):
    assert not trace(f"engine/{name}.py").notes


def test_a_rotation_of_the_wrong_width_would_be_seen():
    traced = trace("engine/rope.py")
    with traced.sizes(T=T, H=H, D=D + 2), pytest.raises(AssertionError, match="the note says"):
        traced.module.apply_rope(random(H, T, D), *rope_tables(np.arange(T), rope_frequencies(D)))

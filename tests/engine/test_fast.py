"""The fast path: the plain model's scores in compiled loops, the same bits however the work is cut."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine import machine
from engine.config import ModelConfig, tensor_shapes
from engine.fast import FastModel, pack
from engine.generation import load_model
from engine.model import Model
from engine.quantize import DTYPES, quantize

ROOT = Path(__file__).resolve().parents[2]
STORYTELLER = ROOT / "models" / "storyteller"

# Without Numba, or without the instructions, only the tests at the end apply: the plain model runs.
fast = pytest.mark.skipif(not machine.HAS_VNNI, reason="this processor has no AVX-512 with VNNI, or Numba is missing")

V, C, F, T = 71, 48, 83, 143
SMALL = ModelConfig("llama", vocab_size=V, d_model=C, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=F,
                    max_seq_len=300, rope_theta=1e4, norm_eps=1e-5, tie_embeddings=False)
FAMILIES = {
    "llama": {},
    "llama2.c": {"rope_interleaved": True, "tie_embeddings": True, "num_kv_heads": 4},
    "qwen2": {"qkv_bias": True, "head_dim": 64},
    "qwen3": {"qk_norm": True, "num_heads": 6, "num_kv_heads": 3, "head_dim": 24, "tie_embeddings": True},
    "mistral": {"sliding_window": 9, "num_kv_heads": 1, "head_dim": 128},
}
WHOLE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def family(name: str, **changes) -> ModelConfig:
    return dataclasses.replace(SMALL, **(FAMILIES[name] | changes))


def weights_of(config: ModelConfig) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    made = {name: dice.standard_normal(shape, dtype=np.float32) for name, shape in tensor_shapes(config)}
    return {name: 1 + 0.1 * a if name.endswith("norm.weight") else a * a.shape[-1] ** -0.5 for name, a in made.items()}


def ids(length: int = T) -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, length)


@fast
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scores_are_those_of_the_plain_model(name, dtype):
    # An input may lie so close to the middle between two whole numbers that float rounding decides: a step of 1/127,
    # which later tokens and layers carry on; so may a key between two bfloat16. Each product alone is held to float
    # rounding below.
    config, rounding = family(name), {"fp32": 1e-5, "bf16": 2e-4}.get(dtype, 0.03)
    weights = weights_of(config)
    expected, scores = Model(config, weights, dtype).forward(ids()), FastModel(config, weights, dtype).forward(ids())
    assert scores.shape == expected.shape == (T, V)
    assert np.abs(scores - expected).max() <= rounding * np.abs(expected).max()


@fast
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7])
def test_each_product_is_that_of_its_twin(dtype, tokens):
    # 1. Prepare the inputs of a matrix whose rows fill no panel and whose columns fill no group.
    from engine import kernels

    dice, form = np.random.default_rng(0), DTYPES.index(dtype)
    matrix = quantize(dice.standard_normal((70, 100), dtype=np.float32), dtype)
    x, packed = dice.standard_normal((tokens, 100), dtype=np.float32), pack(matrix)
    floats, out = np.zeros((tokens, 160), np.float32), np.zeros((tokens, 96), np.float32)
    for row in range(tokens):
        kernels.prepare(form, x[row], floats[row], floats.view(np.int8)[row], floats.view(np.int32)[row])

    # 2. Multiply.
    plan = np.array([packed.ctypes.data, form, packed.shape[1] // kernels.BLOCK_BYTES[form], len(packed)])
    assert kernels.product(plan, 0, 1, tokens, floats.ctypes.data, 4 * 160, out) == (0, 96)
    np.testing.assert_allclose(out[:, :70], matrix.product(x), atol=2e-5)


@fast
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_the_same_with_one_thread_and_with_two(name, dtype):
    if machine.threads() < 2:
        pytest.skip("this machine has one thread")
    config = family(name)
    weights = weights_of(config)
    one, two = (FastModel(config, weights, dtype, threads).forward(ids()) for threads in (1, 2))
    assert np.array_equal(one, two)


@fast
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_read_at_once_and_token_by_token_scores_the_same_bits(name, dtype):
    config = family(name)
    model = FastModel(config, weights_of(config), dtype)
    cache, prompt = model.new_cache(T), ids()
    parts = [prompt[:37], *(prompt[i : i + 1] for i in range(37, 60)), prompt[60:]]
    assert np.array_equal(np.concatenate([model.forward(part, cache) for part in parts]), model.forward(prompt))
    assert cache.length == T


@fast
def test_the_last_score_alone_is_the_last_of_all():
    model = FastModel(SMALL, weights_of(SMALL))
    assert np.array_equal(model.forward(ids(), last_only=True), model.forward(ids())[-1:])


@fast
def test_stretched_positions_are_those_of_the_plain_model():
    config = dataclasses.replace(SMALL, rope_scaling=WHOLE)
    weights = weights_of(config)
    expected, scores = Model(config, weights).forward(ids()), FastModel(config, weights).forward(ids())
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())


@fast
def test_a_cache_used_again_remembers_nothing_of_the_text_before():
    model = FastModel(SMALL, weights_of(SMALL))
    cache = model.new_cache(T)
    model.forward(ids()[::-1], cache)
    cache.length = 0
    assert np.array_equal(model.forward(ids(50), cache), model.forward(ids(50)))


@fast
def test_a_cache_serves_models_with_another_number_of_threads():
    weights = weights_of(SMALL)
    one, two = (FastModel(SMALL, weights, threads=threads) for threads in (1, 2))
    cache = one.new_cache(T)
    assert len(cache.arrays[-1]) >= 2
    one.forward(ids()[:40], cache)
    assert np.array_equal(two.forward(ids()[40:], cache), one.forward(ids())[40:])


@fast
def test_a_format_that_is_not_known_is_refused_in_one_line():
    with pytest.raises(ValueError, match="dtype is 'int3': it must be one of fp32, bf16, int8, int4"):
        FastModel(SMALL, weights_of(SMALL), "int3")


@fast
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_keeps_the_bytes_and_fills_the_last_panel(dtype):
    matrix = quantize(np.random.default_rng(0).standard_normal((70, 96), dtype=np.float32), dtype)
    packed = pack(matrix)
    assert packed.shape == (3, 32 * matrix.nbytes // 70) and packed.ctypes.data % 64 == 0


@fast
def test_the_storyteller_tells_the_same_story_fast_and_plain():
    options = {"temperature": 0, "max_new_tokens": 60}
    plain, quick = ("".join(load_model(STORYTELLER, fast=way).generate("Once", **options)) for way in (False, True))
    assert quick == plain and len(quick) > 100


@fast
@pytest.mark.parametrize("call", [[], [V], [-1]])
def test_impossible_ids_are_refused_in_one_line(call):
    with pytest.raises(ValueError, match="no ids" if not call else f"ids go from 0 to {V - 1}"):
        FastModel(SMALL, weights_of(SMALL)).forward(call)


@fast
def test_more_than_fits_is_refused_and_an_impossible_number_of_threads_too():
    model = FastModel(SMALL, weights_of(SMALL))
    with pytest.raises(ValueError, match="6 tokens are more than the 5 that fit"):
        model.forward(ids(6), model.new_cache(5))
    with pytest.raises(ValueError, match="300 that fit"):
        model.forward(ids(301))
    for threads in (0, 10_000):
        with pytest.raises(ValueError, match=f"threads is {threads}: it must be 1 to"):
            FastModel(SMALL, weights_of(SMALL), threads=threads)


def test_what_the_kernels_do_not_cover_is_left_to_the_plain_model():
    gpt2 = ModelConfig("gpt2", vocab_size=V, d_model=C, num_layers=1, num_heads=4, d_ff=F, max_seq_len=20)
    assert not FastModel.supports(gpt2) and not FastModel.supports(dataclasses.replace(SMALL, activation="gelu"))
    with pytest.raises(ValueError, match="use engine.model.Model"):
        FastModel(gpt2, {})


SWITCHED_OFF = f"""
from engine import load_model, machine
from engine.fast import FastModel
engine = load_model({str(STORYTELLER)!r}, dtype="int8")
assert not machine.HAS_NUMBA and not isinstance(engine.model, FastModel)
print("".join(engine.generate("Once", temperature=0, max_new_tokens=12)))
"""


def test_without_numba_the_quantized_engine_speaks_all_the_same():
    result = subprocess.run([sys.executable, "-c", SWITCHED_OFF], cwd=ROOT, env=os.environ | {"ENGINE_PLAIN": "1"},
                            capture_output=True, text=True)
    options = {"temperature": 0, "max_new_tokens": 12}
    expected = "".join(load_model(STORYTELLER, dtype="int8", fast=False).generate("Once", **options))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip("\n") == expected

"""Weights: every number of a published folder under its name, and none that the config does not ask for."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from engine.weights import load_weights
from tests.chapters.test_ch07_published import DTYPES, PUBLISHED, publish
from tests.engine.test_config import GPT2_SIZES

STORYTELLER = Path(__file__).parents[2] / "models/storyteller"


def publish_gpt2(folder: Path, model_class=GPT2LMHeadModel) -> Path:
    """Let Transformers save a random GPT-2, whose every number is far from its first value."""
    torch.manual_seed(3)
    model = model_class(GPT2Config(**GPT2_SIZES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    return folder


def change_tensors(folder: Path, change) -> None:
    """Rewrite the tensors of a folder, as a function of their dictionary wants it."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor as Transformers opens it, in float32; a tied head is left out."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items()
            if not (name == "lm_head.weight" and model.config.tie_word_embeddings)}


def assert_equal(folder: Path) -> None:
    """Assert that both sides see the same tensors."""
    (_, weights), state = load_weights(folder), state_of(folder)
    assert set(weights) == state.keys()
    for name, tensor in state.items():
        assert weights.shape(name) == tuple(tensor.shape) and weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], tensor.numpy())


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in PUBLISHED), ("qwen2 tied", "bfloat16"),
                                             ("llama 3.1", "float16")])
def test_a_published_folder_holds_the_numbers_that_transformers_sees(name, dtype, tmp_path):
    assert_equal(publish(name, tmp_path, DTYPES[dtype]))


@pytest.mark.parametrize("model_class", [GPT2LMHeadModel, GPT2Model])
def test_gpt2_is_found_under_its_names_with_a_prefix_or_without(model_class, tmp_path):
    publish_gpt2(tmp_path, model_class)
    assert_equal(tmp_path)


def test_the_masks_in_old_files_of_gpt2_are_passed_over(tmp_path):
    publish_gpt2(tmp_path)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 31, 31, dtype=torch.uint8),
             "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    change_tensors(tmp_path, lambda tensors: tensors | masks)
    assert_equal(tmp_path)


def test_the_angles_in_old_files_of_llama_are_passed_over(tmp_path):
    publish("llama", tmp_path)
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    change_tensors(tmp_path, lambda tensors: tensors | angles)
    assert not any("inv_freq" in name for name in load_weights(tmp_path)[1])


def test_a_model_in_several_files_holds_the_same_numbers(tmp_path):
    publish("qwen3", tmp_path, max_shard_size="9KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal(tmp_path)


def test_weights_are_a_mapping_that_nobody_can_write_to(tmp_path):
    _, weights = load_weights(publish("llama", tmp_path))
    assert isinstance(weights, Mapping) and len(weights) == len(list(weights)) and "lm_head.weight" in weights
    assert not hasattr(weights, "__setitem__")
    with pytest.raises(ValueError, match="read-only"):
        weights["model.norm.weight"][0] = 1
    with pytest.raises(KeyError, match="nothing"):
        weights["nothing"]


def test_the_storyteller_opens_with_the_numbers_of_its_file():
    config, weights = load_weights(STORYTELLER)
    state = load_file(STORYTELLER / "model.safetensors")
    assert set(weights) == state.keys() and config.qk_norm and config.eos_ids == (config.vocab_size - 1,)
    for name, tensor in state.items():
        np.testing.assert_array_equal(weights[name], tensor.float().numpy())


@pytest.mark.parametrize("kind", ["smollm2", "gpt2"])
def test_a_tied_head_that_is_stored_too_is_the_embedding_only_if_it_is_equal(kind, tmp_path):
    publish_gpt2(tmp_path) if kind == "gpt2" else publish(kind, tmp_path)
    table = "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"
    change_tensors(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[table]})
    config, weights = load_weights(tmp_path)
    assert config.tie_embeddings and "lm_head.weight" not in weights

    change_tensors(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[table] + 1})
    config, weights = load_weights(tmp_path)
    assert not config.tie_embeddings
    np.testing.assert_array_equal(weights["lm_head.weight"], weights[table.removeprefix("transformer.")] + 1)


def test_an_untied_head_is_kept_though_it_is_equal_to_the_embedding(tmp_path):
    publish("llama", tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    config, weights = load_weights(tmp_path)
    assert not config.tie_embeddings and "lm_head.weight" in weights


def test_a_tensor_is_searched_for_damage_once(tmp_path, monkeypatch):
    _, weights = load_weights(publish("llama", tmp_path))
    searched, real = [], np.isfinite
    monkeypatch.setattr("engine.weights.np.isfinite", lambda ends: searched.append(len(ends)) or real(ends))
    for name in (NORM, UP, NORM, UP, NORM):
        assert len(weights[name])
    assert searched == [2, 2]


# What does not fit


def refused(folder: Path, words: str) -> None:
    """Assert that a folder is refused in one line with its name and these words."""
    with pytest.raises(ValueError, match=words) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value) and folder.name in str(caught.value)


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda all: {name: all[name] for name in all if name != UP}, f"{UP}' is missing"),
        (lambda all: all | {"model.extra": torch.ones(2)}, "'model.extra' does not belong"),
        (lambda all: all | {"model.layers.2.mlp.up_proj.weight": all[UP]}, "layers.2.*does not belong"),
        (lambda all: all | {UP: all[UP].T.contiguous()}, r"up_proj.weight' has shape \(24, 35\), not \(35, 24\)"),
        (lambda all: all | {NORM: torch.ones(1, 24)}, r"shape \(1, 24\), not \(24,\)"),
        (lambda all: all | {UP: all[UP].double()}, "F64.*only F32, F16, BF16"),
        (lambda all: all | {UP: all[UP].to(torch.int8)}, "I8"),
        (lambda all: {}, "embed_tokens.weight' is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_before_any_is_read(change, words, tmp_path):
    publish("llama", tmp_path)
    change_tensors(tmp_path, change)
    refused(tmp_path, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: {"lm_head.weight": table}, "embed_tokens.weight' is missing"),
        (lambda table: {"model.embed_tokens.weight": table, "lm_head.weight": table.reshape(*table.T.shape)},
         r"lm_head.weight' has shape \(36, 47\), not \(47, 36\)"),
    ],
)
def test_a_tied_head_without_its_table_or_in_another_shape_is_refused(change, words, tmp_path):
    publish("smollm2", tmp_path)
    change_tensors(tmp_path, lambda all: {name: all[name] for name in all if "embed" not in name}
                   | change(all["model.embed_tokens.weight"]))
    refused(tmp_path, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**12}, "layers.2.*missing"),
        ({"hidden_size": 3 * 10**12}, "embed_tokens.*3000000000000"),
        ({"vocab_size": 10**15}, "embed_tokens.*10{15}"), ({"intermediate_size": 10**15}, "gate_proj.*10{15}"),
        ({"head_dim": 2 * 10**6}, "q_proj"), ({"max_position_embeddings": 10**12}, "max_seq_len is 10{12}.*GiB"),
    ],
)
def test_a_config_that_asks_for_terabytes_is_refused_by_what_the_file_holds(changes, words, tmp_path):
    publish("llama 3.1", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(tmp_path, words)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_number_that_is_none_is_refused_when_its_tensor_is_asked_for(number, dtype, tmp_path):
    publish("llama", tmp_path, dtype)

    def damage(tensors: dict) -> dict:
        tensors[UP][3, 5] = number
        return tensors

    change_tensors(tmp_path, damage)
    _, weights = load_weights(tmp_path)
    assert np.isfinite(weights[NORM]).all() and weights.shape(UP) == (35, 24)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{UP}' holds a number that is not finite"):
            weights[UP]


def test_a_gpt2_with_a_name_twice_is_refused(tmp_path):
    publish_gpt2(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors | {"ln_f.bias": tensors["transformer.ln_f.bias"]})
    refused(tmp_path, "under two names")


def test_a_folder_without_weights_is_named(tmp_path):
    publish("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.bin'$"):
        load_weights(tmp_path / "none.bin")

"""The config: each family's config.json means here what it means to Transformers, and nothing impossible is made."""

import dataclasses
import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from chapters.ch07_families import config_from_hf as chapters_config
from engine.config import ModelConfig, config_from_hf, read_config, tensor_shapes
from tests.chapters.test_ch07_published import LLAMA31, PUBLISHED, SIZES

GPT2_SIZES = {"vocab_size": 47, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 31, "bos_token_id": None,
              "eos_token_id": None}
CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SMALL = {"family": "llama", "vocab_size": 47, "d_model": 24, "num_layers": 2, "num_heads": 6, "d_ff": 35,
         "max_seq_len": 97}


def fields_of(name: str) -> dict:
    """What Transformers writes into the config.json of one of the published shapes."""
    _, config_class, extras = PUBLISHED[name]
    return json.loads(json.dumps(config_class(**SIZES | extras).to_dict()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_what_it_means_to_the_chapters(name):
    ours, theirs = config_from_hf(fields_of(name)), chapters_config(fields_of(name))
    shared = {field.name for field in dataclasses.fields(theirs)} - {"dropout", "rope_scaling"}
    assert {field: getattr(ours, field) for field in shared} == {field: getattr(theirs, field) for field in shared}
    assert ours.rope_scaling == theirs.rope_scaling
    assert (ours.family, ours.activation, ours.rope_interleaved) == ("llama", "silu", False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_a_config_are_those_of_transformers_model(name):
    model_class, config_class, extras = PUBLISHED[name]
    with torch.device("meta"):
        state = model_class(config_class(**SIZES | extras)).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if extras.get("tie_word_embeddings"):
        del shapes["lm_head.weight"]
    assert dict(tensor_shapes(config_from_hf(fields_of(name)))) == shapes


@pytest.mark.parametrize("inner", [None, 35])
@pytest.mark.parametrize("tied", [True, False])
def test_the_tensors_of_a_gpt2_are_those_of_transformers_model(inner, tied):
    theirs = GPT2Config(**GPT2_SIZES, n_inner=inner, tie_word_embeddings=tied)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(theirs).state_dict()
    shapes = {key.removeprefix("transformer."): tuple(tensor.shape) for key, tensor in state.items()}
    if tied:
        del shapes["lm_head.weight"]
    config = config_from_hf(theirs.to_dict())
    assert dict(tensor_shapes(config)) == shapes
    assert (config.family, config.activation, config.d_ff) == ("gpt2", "gelu_tanh", inner or 96)
    assert config_from_hf({"model_type": "gpt2", **GPT2_SIZES}).activation == "gelu_tanh"
    assert (config.head_dim, config.num_kv_heads, config.norm_eps) == (8, 3, theirs.layer_norm_epsilon)


@pytest.mark.parametrize("kind", ["rope_type", "type"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_older_spelling_of_the_rotation_means_the_same(name, kind):
    new = fields_of(name)
    rope = dict(new["rope_parameters"])
    theta, scaling = rope.pop("rope_theta"), {kind: rope.pop("rope_type"), **rope}
    old = {field: new[field] for field in new if field not in ("rope_parameters", "layer_types")}
    old |= {"rope_theta": theta, "rope_scaling": None if scaling[kind] == "default" else scaling}
    assert config_from_hf(old) == config_from_hf(new)


LEFT_OUT = ["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "sliding_window",
            "use_sliding_window", "max_window_layers", "rope_parameters", "hidden_act", "layer_types"]


@pytest.mark.parametrize(("family", "field"), list(itertools.product(CLASSES, LEFT_OUT)))
def test_a_field_left_out_means_what_transformers_takes_for_this_family(family, field):
    window = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 0}
    fields = SIZES | {"hidden_size": 64, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 6,
                      "rms_norm_eps": 1e-3, "tie_word_embeddings": True, "hidden_act": "silu"}
    fields |= window if family.startswith("qwen") else {"sliding_window": 11}
    given = {"model_type": family} | {name: value for name, value in fields.items() if name != field}
    theirs = CLASSES[family].from_dict(dict(given)).to_dict()
    assert config_from_hf(given) == config_from_hf(theirs)


@pytest.mark.parametrize(
    "said",
    [
        {"rope_theta": 77.0},
        {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_theta": 77.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0}},
        {"rope_parameters": LLAMA31, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        {"rope_scaling": LLAMA31 | {"type": "linear"}},
        {"rope_scaling": {n: v for n, v in LLAMA31.items() if n != "original_max_position_embeddings"}},
        {"rope_scaling": LLAMA31, "original_max_position_embeddings": 48},
        {"rope_scaling": {"rope_type": "default", "factor": 4.0}, "rope_theta": 5e5},
    ],
)
def test_each_way_to_speak_of_the_rotation_means_what_it_means_to_the_chapters(said):
    fields = {"model_type": "llama", **SIZES, "head_dim": 8, **said}
    ours, theirs = config_from_hf(fields), chapters_config(fields)
    assert (ours.rope_theta, ours.rope_scaling) == (theirs.rope_theta, theirs.rope_scaling)


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(("used", "first"), list(itertools.product([True, False], [0, 1, 3, 28])))
def test_a_qwens_window_holds_for_the_layers_that_transformers_gives_it(config_class, used, first):
    said = SIZES | {"num_hidden_layers": 3, "use_sliding_window": used, "sliding_window": 7, "max_window_layers": first}
    theirs = config_class(**said)
    kinds = set(theirs.layer_types)
    for given in ({"model_type": theirs.model_type, **said}, theirs.to_dict()):
        if len(kinds) == 2:
            with pytest.raises(ValueError, match="full for all, or sliding for all"):
                config_from_hf(given)
        else:
            assert config_from_hf(given).sliding_window == (7 if kinds == {"sliding_attention"} else None)


def test_a_llama_has_no_window_and_a_mistral_its_own_whatever_a_qwens_switches_say():
    said = {**SIZES, "sliding_window": 11, "max_window_layers": 0}
    assert config_from_hf({"model_type": "llama", **said, "use_sliding_window": True}).sliding_window is None
    assert config_from_hf({"model_type": "mistral", **said, "use_sliding_window": False}).sliding_window == 11


@pytest.mark.parametrize(("theirs", "ours"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("silu", "silu"),
                                              ("gelu_pytorch_tanh", "gelu_tanh"), ("swish", "silu")])
def test_the_bends_that_are_known_go_by_the_names_that_files_give_them(theirs, ours):
    assert config_from_hf({"model_type": "gpt2", **GPT2_SIZES, "activation_function": theirs}).activation == ours
    assert config_from_hf({"model_type": "llama", **SIZES, "hidden_act": theirs}).activation == ours


# The end of a text


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        (None, None, ()), (7, None, (7,)), ([7, 8], None, (7, 8)), (7, 9, (9,)), (7, [9, 8], (9, 8)), (0, None, (0,)),
    ],
)
def test_a_model_ends_where_its_folder_says(config, generation, ids, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, "eos_token_id": config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_config(tmp_path).eos_ids == ids


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "bert"}, "family is 'bert'"), ({"vocab_size": 0}, "vocab_size is 0"),
        ({"d_model": -3}, "d_model is -3"), ({"num_layers": True}, "num_layers is True"),
        ({"num_heads": 2.0}, "num_heads is 2.0"), ({"num_heads": 5}, "divisible by num_heads 5"),
        ({"num_kv_heads": 4}, "divisor of num_heads 6"), ({"head_dim": 5}, "even"),
        ({"max_seq_len": 10**12}, "max_seq_len is 1000000000000.*GiB"), ({"norm_eps": 0}, "norm_eps is 0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"), ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"qk_norm": 1}, "qk_norm is 1"), ({"sliding_window": 0}, "sliding_window is 0"),
        ({"activation": "relu"}, "activation is 'relu'"), ({"eos_ids": [2]}, "eos_ids"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "linear or llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling factor is None"),
        ({"rope_scaling": LLAMA31 | {"high_freq_factor": 1.0}}, "below high_freq_factor"),
        ({"rope_scaling": [2]}, "rope_scaling"),
        ({"family": "gpt2", "num_kv_heads": 3}, "as in GPT-2"),
        ({"vocab_size": 10**30}, "vocab_size"), ({"family": "gpt2", "head_dim": 6}, "as in GPT-2"),
        ({"head_dim": 4.0}, "head_dim is 4.0"), ({"num_kv_heads": 2.0}, "num_kv_heads is 2.0"),
        ({"norm_eps": float("inf")}, "norm_eps is inf"), ({"norm_eps": 10**400}, "norm_eps"),
        ({"norm_eps": True}, "norm_eps is True"), ({"rope_theta": 0}, "rope_theta is 0"),
        ({"qkv_bias": 1}, "qkv_bias is 1"), ({"eos_ids": (True,)}, "eos_ids"), ({"eos_ids": 2}, "eos_ids is 2"),
    ],
)
def test_an_impossible_model_is_refused_by_the_field_its_value_and_the_rule(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        ModelConfig(**SMALL | changes)
    assert "must be" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'.*llama, mistral, qwen2, qwen3, gpt2"),
        ({"model_type": ["llama"]}, "model_type"), ({"hidden_act": "relu"}, "'relu'"),
        ({"hidden_act": ["silu"]}, "activation"), ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"), ({"hidden_size": None}, "d_model is None"),
        ({"rope_parameters": {"full_attention": LLAMA31}}, "one table for all layers"),
        ({"rope_parameters": [1]}, "rotation"), ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_scaling"),
        ({"rope_parameters": LLAMA31 | {"factor": "8"}}, "factor is '8'"),
        ({"rms_norm_eps": "1e-5"}, "norm_eps is '1e-5'"), ({"tie_word_embeddings": "false"}, "tie_embeddings"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"), ({"eos_token_id": [-1]}, "eos_token_id is -1"),
        ({"model_type": "qwen2", "max_window_layers": "1"}, "max_window_layers"),
        ({"model_type": "qwen2", "layer_types": 3}, "kind of the layers"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]}, "chunked"),
        ({"model_type": "gpt2", **GPT2_SIZES, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        ({"model_type": "gpt2"}, "n_embd is 'missing'"),
        ({"model_type": "gpt2", **GPT2_SIZES, "n_embd": None}, "d_model is None"),
        ({"model_type": "gpt2", **GPT2_SIZES, "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "gpt2", **GPT2_SIZES, "add_cross_attention": True}, "add_cross_attention"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"model_type": "qwen2", "num_hidden_layers": "3", "use_sliding_window": True}, "num_hidden_layers is '3'"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "sliding for all with a sliding_window"),
    ],
)
def test_a_field_that_would_be_computed_otherwise_is_refused_by_name(changes, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES} | changes))
    with pytest.raises(ValueError, match=words) as caught:
        read_config(tmp_path)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_config_that_is_no_json_object_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.config.json does not exist"):
        read_config(tmp_path / "nowhere")


def test_only_heads_that_rope_turns_must_be_even():
    assert ModelConfig(**SMALL | {"family": "gpt2", "num_heads": 8}).head_dim == 3
    with pytest.raises(ValueError, match="head_dim is 3: it must be even"):
        ModelConfig(**SMALL | {"num_heads": 8})


def test_a_billion_layers_cost_nothing_until_somebody_takes_them():
    shapes = tensor_shapes(ModelConfig(**SMALL | {"num_layers": 10**9}))
    assert next(shapes) == ("model.embed_tokens.weight", (47, 24))

"""Chapter 7, published models: what Transformers saved opens here and gives the same, whatever the spelling."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from chapters.ch04_positional_encoding import rope_tables
from chapters.ch07_families import DEFAULTS, config_from_hf, tensor_shapes
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch07_pretrained import load_model
from chapters.ch09_inference import SamplingConfig, generate

LLAMA31 = {
    "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
SIZES = {
    "vocab_size": 47, "hidden_size": 24, "intermediate_size": 35, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 97, "bos_token_id": None, "eos_token_id": None,
}
TIED = {"tie_word_embeddings": True}
LLAMA, MISTRAL = (LlamaForCausalLM, LlamaConfig), (MistralForCausalLM, MistralConfig)
QWEN2, QWEN3 = (Qwen2ForCausalLM, Qwen2Config), (Qwen3ForCausalLM, Qwen3Config)
# The published shapes in miniature: SmolLM2 has 9 heads over 3, TinyLlama 8 query heads to each of the others.
PUBLISHED = {
    "llama": (*LLAMA, {"num_key_value_heads": 6}),
    "llama tied": (*LLAMA, TIED | {"head_dim": 10}),
    "llama 3.1": (*LLAMA, {"rope_parameters": LLAMA31}),
    "llama 3.2": (*LLAMA, TIED | {"rope_parameters": LLAMA31}),
    "llama linear": (*LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "tinyllama": (*LLAMA, {"hidden_size": 32, "num_attention_heads": 16, "rms_norm_eps": 1e-5}),
    "smollm2": (*LLAMA, TIED | {
        "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    }),
    "mistral": (*MISTRAL, {"sliding_window": 7, "head_dim": 6}),
    "mistral without a window": (*MISTRAL, {"sliding_window": None}),
    "qwen2": (*QWEN2, {}),
    "qwen2 tied": (*QWEN2, TIED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 with a window": (*QWEN2, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}),
    "qwen3": (*QWEN3, {"head_dim": 10}),
    "qwen3 tied": (*QWEN3, TIED | {"head_dim": 8, "rms_norm_eps": 1e-3}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def publish(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options) -> Path:
    """Let Transformers save a random model of this shape, whose every number is far from its first value."""
    model_class, config_class, extras = PUBLISHED[name]
    torch.manual_seed(3)
    model = model_class(config_class(**SIZES | extras))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def theirs_of(folder: Path):
    """Open a folder with Transformers, to compute in float32 whatever the file holds."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids_of(length: int = 29) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (2, length), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def assert_equal_logits(folder: Path) -> None:
    """Assert that both sides open the folder and score every token alike."""
    ids, ours, theirs = ids_of(), GPT.from_pretrained(folder), theirs_of(folder)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def edit(folder: Path, *without: str, **changes) -> None:
    """Change fields of config.json, and take some out."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in without}))


def refused(folder: Path, words: str) -> None:
    """Assert that the folder is refused in one line with these words, and no model is built for it."""

    class NeverBuilt:
        def __init__(self, config):
            raise AssertionError("the model was built")

    with pytest.raises(ValueError, match=words) as caught:
        load_model(NeverBuilt, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_gives_equal_logits_whatever_the_files_dtype(name, dtype, tmp_path):
    publish(name, tmp_path, DTYPES[dtype])
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[dtype]}
    assert ("lm_head.weight" in stored) == (PUBLISHED[name][2].get("tie_word_embeddings") is not True)
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_continues_a_text_with_the_same_64_tokens(name, tmp_path):
    publish(name, tmp_path, torch.bfloat16)
    prompt = ids_of(13)[:1]
    told = theirs_of(tmp_path).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0
    )
    greedy = SamplingConfig(temperature=0, max_new_tokens=64)
    ours = list(generate(GPT.from_pretrained(tmp_path), prompt[0].tolist(), greedy))
    assert len(ours) == 64 and told[0, 13:].tolist() == ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_in_several_files_is_opened_whole(name, tmp_path):
    publish(name, tmp_path, max_shard_size="9KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize("kind", ["rope_type", "type"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_older_spelling_of_a_published_config_means_the_same(name, kind, tmp_path):
    publish(name, tmp_path)
    meant = GPT.from_pretrained(tmp_path).config
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta, scaling = rope.pop("rope_theta"), {kind: rope.pop("rope_type"), **rope}
    old = {"rope_theta": theta, "rope_scaling": None if scaling[kind] == "default" else scaling}
    edit(tmp_path, "rope_parameters", "dtype", "layer_types", torch_dtype="float32", **old)
    assert GPT.from_pretrained(tmp_path).config == meant
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_was_opened_is_saved_so_that_transformers_gives_the_same(name, tmp_path):
    model = GPT.from_pretrained(publish(name, tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(theirs_of(tmp_path / "ours")(ids_of()).logits, model(ids_of()), rtol=0, atol=1e-4)


# Fields left out


WIDE = SIZES | {"hidden_size": 64, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 6}
CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


@pytest.mark.parametrize(("family", "field"), [(family, field) for family in CLASSES for field in DEFAULTS[family]])
def test_a_field_left_out_means_what_transformers_takes_for_this_family(family, field):
    window = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 0}
    window = window if family.startswith("qwen") else {"sliding_window": 11}
    fields = WIDE | {"rms_norm_eps": 1e-3, "attention_dropout": 0.25, "tie_word_embeddings": True} | window
    given = {"model_type": family} | {name: value for name, value in fields.items() if name != field}
    theirs = CLASSES[family].from_dict(dict(given)).to_dict()
    assert field in theirs or field in ("head_dim", "sliding_window")
    assert config_from_hf(given) == config_from_hf(theirs)


@pytest.mark.parametrize("family", CLASSES)
def test_a_config_that_says_almost_nothing_is_the_familys_default(family):
    theirs = CLASSES[family]().to_dict()
    assert config_from_hf({"model_type": family}) == config_from_hf(theirs)


@pytest.mark.parametrize(
    ("family", "field"),
    [(family, field) for family in CLASSES for field in ("num_key_value_heads", "head_dim", "sliding_window")
     if (family, field) not in (("mistral", "num_key_value_heads"), ("qwen3", "head_dim"))],
)
def test_null_is_not_the_same_as_left_out_and_means_what_transformers_takes_it_for(family, field):
    given = {"model_type": family, **WIDE, field: None}
    assert config_from_hf(given) == config_from_hf(CLASSES[family].from_dict(dict(given)).to_dict())


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"rope_theta": 77.0},
        {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_theta": 77.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 77.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0}},
        {"rope_parameters": LLAMA31, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        {"rope_parameters": LLAMA31, "rope_scaling": None},
        {"rope_scaling": LLAMA31 | {"type": "linear"}},
        {"rope_scaling": {n: v for n, v in LLAMA31.items() if n != "original_max_position_embeddings"}},
        {"rope_scaling": LLAMA31, "original_max_position_embeddings": 48},
        {"rope_scaling": {"rope_type": "default", "factor": 4.0}, "rope_theta": 5e5},
    ],
)
def test_each_way_to_speak_of_the_rotation_turns_as_in_transformers(said):
    fields = {"model_type": "llama", **SIZES, "head_dim": 8, **said}
    ours = config_from_hf(json.loads(json.dumps(fields)))
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(fields))))
    cos, sin = theirs(torch.zeros(1), torch.arange(97)[None])
    mine = rope_tables(8, 97, ours.rope_theta, ours.rope_scaling)
    torch.testing.assert_close((cos[0, :, :4], sin[0, :, :4]), mine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("first", [0, 1, 3, 28])
def test_a_qwens_window_holds_for_the_layers_that_transformers_gives_it(config_class, used, first):
    theirs = config_class(**SIZES | {"num_hidden_layers": 3}, use_sliding_window=used, sliding_window=7,
                          max_window_layers=first)
    said = {"model_type": theirs.model_type, **SIZES, "num_hidden_layers": 3, "use_sliding_window": used,
            "sliding_window": 7, "max_window_layers": first}
    kinds = set(theirs.layer_types)
    for given in (said, theirs.to_dict()):
        if len(kinds) == 2:
            with pytest.raises(ValueError, match="one kind for all"):
                config_from_hf(given)
        else:
            assert config_from_hf(given).sliding_window == (7 if kinds == {"sliding_attention"} else None)


def test_a_window_in_the_config_of_a_llama_is_none_as_in_transformers(tmp_path):
    publish("llama", tmp_path)
    edit(tmp_path, sliding_window=3)
    assert_equal_logits(tmp_path)


# What does not fit


def test_the_shapes_are_those_of_the_model_that_would_be_built(tmp_path):
    for name in PUBLISHED:
        config = GPT.from_pretrained(publish(name, tmp_path / name)).config
        state = GPT(config).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        if config.tie_embeddings:
            del shapes["lm_head.weight"]
        assert dict(tensor_shapes(config)) == shapes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**12}, "layers.2.*missing"),
        ({"hidden_size": 3 * 10**12}, "embed_tokens.*3000000000000"),
        ({"vocab_size": 10**15}, "embed_tokens.*10{15}"),
        ({"intermediate_size": 10**15}, "gate_proj.*10{15}"),
        ({"head_dim": 2 * 10**12}, "q_proj"),
        ({"num_attention_heads": 2 * 10**12}, "q_proj"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings 10{12}.*GiB"),
    ],
)
def test_a_config_that_asks_for_terabytes_is_refused_before_anything_is_built(changes, words, tmp_path):
    publish("llama 3.1", tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": LLAMA31}}, "one for all layers"),
        ({"rope_parameters": [1]}, "rotation"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_parameters": LLAMA31 | {"factor": 0}}, "factor is 0"),
        ({"rope_parameters": LLAMA31 | {"factor": "8"}}, "factor is '8'"),
        ({"rope_parameters": LLAMA31 | {"high_freq_factor": 1.0}}, "below high_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta is None"),
        ({"rms_norm_eps": "1e-5"}, "norm_eps is '1e-5'"),
        ({"rms_norm_eps": float("nan")}, "norm_eps is nan"),
        ({"tie_word_embeddings": "false"}, "tie_embeddings is 'false'"),
        ({"num_hidden_layers": True}, "num_layers is True"),
        ({"max_position_embeddings": 97.0}, "max_seq_len is 97.0"),
        ({"model_type": "gpt2"}, "'gpt2'.*llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
)
def test_a_field_that_would_be_computed_otherwise_is_refused_by_name(changes, words, tmp_path):
    publish("llama 3.1", tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, words)


@pytest.mark.parametrize("changes", [{"max_window_layers": "1"}, {"sliding_window": 2.5, "use_sliding_window": True},
                                     {"layer_types": 3}, {"layer_types": ["full_attention", "chunked_attention"]}])
def test_a_damaged_window_is_refused_in_one_line(changes, tmp_path):
    publish("qwen2 with a window", tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, "window|layer")


def change_tensors(folder: Path, change) -> None:
    """Rewrite the tensors of a folder, as a function of their dictionary wants it."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_tied_head_that_is_stored_too_is_the_embedding_only_if_it_is_equal(tmp_path):
    publish("smollm2", tmp_path)
    change_tensors(tmp_path, lambda all: all | {"lm_head.weight": all["model.embed_tokens.weight"].clone()})
    assert GPT.from_pretrained(tmp_path).config.tie_embeddings
    assert_equal_logits(tmp_path)
    change_tensors(tmp_path, lambda all: all | {"lm_head.weight": all["lm_head.weight"] + 1})
    assert not GPT.from_pretrained(tmp_path).config.tie_embeddings
    assert_equal_logits(tmp_path)


def test_tables_of_angles_in_the_oldest_files_are_left_aside(tmp_path):
    publish("llama", tmp_path)
    change_tensors(tmp_path, lambda all: all | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    assert_equal_logits(tmp_path)


def test_whole_numbers_are_no_weights(tmp_path):
    publish("llama", tmp_path)
    norm = "model.norm.weight"
    change_tensors(tmp_path, lambda all: all | {norm: all[norm].to(torch.int8)})
    refused(tmp_path, "model.norm.weight.*I8")


def test_a_bias_that_no_field_of_ours_asks_for_is_named(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)).save_pretrained(tmp_path)
    refused(tmp_path, r"\.bias' does not belong")


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder with a model in several files."""
    return publish("mistral", tmp_path / "shards", max_shard_size="9KB")


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {"a": ["b"]}}',
     b'{"weight_map": {"a": ""}}', b'{"weight_map": {"a": ".."}}', b'{"weight_map": {}}',
     b'{"weight_map": {"a": "config.json"}}', b"[" * 100_000],
)
def test_a_broken_index_is_refused_with_the_folders_name(shards, index):
    (shards / "model.safetensors.index.json").write_bytes(index)
    refused(shards, "shards")


def test_an_index_never_leads_out_of_its_folder(shards, tmp_path):
    publish("mistral", tmp_path / "elsewhere")
    for path in ("../elsewhere/model.safetensors", str(tmp_path / "elsewhere" / "model.safetensors")):
        (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path}}))
        refused(shards, "outside the folder")


def test_a_file_of_several_that_is_missing_or_broken_or_double_is_named(shards):
    files = sorted(shards.glob("model-*.safetensors"))
    content = files[1].read_bytes()
    for broken in (content[: len(content) // 2], b""):
        files[1].write_bytes(broken)
        refused(shards, "shards")
    files[1].unlink()
    refused(shards, files[1].name)
    save_file(load_file(files[0]), files[1])
    refused(shards, "in two of its files")


def test_an_opened_model_counts_in_float32_and_can_be_trained_on(tmp_path):
    publish("llama", tmp_path, torch.bfloat16)
    model = GPT.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training


def test_transformers_reads_the_window_of_our_qwens(tmp_path):
    config = GPTConfig(vocab_size=47, d_model=24, num_layers=2, num_heads=6, d_ff=35, max_seq_len=97, sliding_window=5)
    for switch in ("qkv_bias", "qk_norm"):
        GPT(dataclasses.replace(config, **{switch: True})).save_pretrained(tmp_path / switch)
        theirs = AutoConfig.from_pretrained(tmp_path / switch)
        assert (theirs.sliding_window, set(theirs.layer_types)) == (5, {"sliding_attention"})

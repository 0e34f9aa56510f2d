"""Chapter 7, model folders: Transformers opens ours and gives the same, and the other way round."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
)

from chapters.ch07_families import config_from_hf, config_to_hf, family_of
from chapters.ch07_gpt_model import GPT, GPTConfig

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# One model of each family, each with something of its own: grouped heads, a head size, scaling, no tying.
CONFIGS = {
    "llama": GPTConfig(
        vocab_size=53,
        d_model=24,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        d_ff=35,
        max_seq_len=37,
        rope_theta=500.0,
        rope_scaling=LLAMA3,
    ),
    "llama linear": GPTConfig(
        vocab_size=53,
        d_model=24,
        num_layers=1,
        num_heads=3,
        d_ff=17,
        max_seq_len=37,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        tie_embeddings=False,
    ),
    "mistral": GPTConfig(
        vocab_size=53,
        d_model=20,
        num_layers=3,
        num_heads=5,
        num_kv_heads=1,
        head_dim=6,
        d_ff=31,
        max_seq_len=37,
        sliding_window=5,
        tie_embeddings=False,
    ),
    "qwen2": GPTConfig(
        vocab_size=53,
        d_model=24,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        d_ff=35,
        max_seq_len=37,
        qkv_bias=True,
        norm_eps=1e-6,
        rope_theta=1e6,
    ),
    "qwen3": GPTConfig(
        vocab_size=53,
        d_model=22,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=35,
        max_seq_len=37,
        qk_norm=True,
        tie_embeddings=False,
    ),
}


def shaken(config: GPTConfig) -> GPT:
    """Return a model whose every number is far from its first value, so that none can go missing unseen."""
    torch.manual_seed(2)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def ids_below(vocab_size: int, length: int = 23) -> torch.Tensor:
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(4))


def greedy(model: GPT, ids: torch.Tensor, steps: int) -> list[int]:
    """Return the likeliest continuation, found the slow way."""
    for _ in range(steps):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0].tolist()


@pytest.fixture
def folder(tmp_path):
    """A written model folder of the smallest kind."""
    shaken(CONFIGS["llama"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes) -> None:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_transformers_opens_our_folder_with_equal_logits_and_equal_text(name, tmp_path):
    model = shaken(CONFIGS[name])
    model.save_pretrained(tmp_path)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), ids_below(53)
    assert type(theirs).__name__.lower().startswith(name.split()[0])
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    prompt = ids[:1, :9]
    text = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, max_length=None, do_sample=False
    )
    assert text[0].tolist() == greedy(model, prompt, 20)


@torch.no_grad()
def test_a_whole_folder_tells_the_same_story_here_and_in_transformers_and_ends_it_alike(tokenizer, tmp_path):
    model = shaken(dataclasses.replace(CONFIGS["llama"], vocab_size=tokenizer.vocab_size))
    model.save_pretrained(tmp_path, end_token=tokenizer.eot_id)
    tokenizer.save(tmp_path)
    theirs, reader = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompt = reader("<|endoftext|>the cat sat", return_tensors="pt")
    ids = [tokenizer.eot_id, *tokenizer.encode("the cat sat")]
    assert prompt["input_ids"].tolist() == [ids]
    text = greedy(model, torch.tensor([ids]), 20)
    assert tokenizer.eot_id not in text[1:]
    assert theirs.generate(**prompt, do_sample=False)[0, : len(text)].tolist() == text

    # Call a token that the text contains its end: Transformers must stop there.
    stop = text[len(ids) + 3]
    model.save_pretrained(tmp_path, end_token=stop)
    told = AutoModelForCausalLM.from_pretrained(tmp_path).generate(**prompt, do_sample=False)[0].tolist()
    assert told == text[: text.index(stop, len(ids)) + 1]
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == stop
    assert reader.decode(told) == tokenizer.decode(told)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_every_field_as_it_was_meant(name, tmp_path):
    GPT(CONFIGS[name]).save_pretrained(tmp_path)
    assert config_from_hf(AutoConfig.from_pretrained(tmp_path).to_dict()) == CONFIGS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_what_is_loaded(name, tmp_path):
    model = shaken(CONFIGS[name])
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(str(tmp_path))
    assert again.config == model.config
    for (key, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    tied = again.lm_head.weight.data_ptr() == again.token_embedding.weight.data_ptr()
    assert tied == model.config.tie_embeddings


def test_a_folder_in_bfloat16_halves_the_file_and_opens_in_float32(folder, tmp_path):
    model = GPT.from_pretrained(folder)
    model.save_pretrained(tmp_path / "half", torch.bfloat16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "half")]
    again = GPT.from_pretrained(tmp_path / "half")
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    for value, other in zip(model.parameters(), again.parameters(), strict=True):
        assert other.dtype == torch.float32 and torch.equal(value.bfloat16().float(), other)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


@settings(max_examples=60, deadline=None)
@given(
    switch=st.sampled_from([{}, {"qkv_bias": True}, {"qk_norm": True}, {"sliding_window": 3}]),
    tie=st.booleans(),
    kv_heads=st.integers(1, 4),
    groups=st.integers(1, 3),
    head_dim=st.sampled_from([2, 8, 64]),
    theta=st.floats(2, 1e7),
    scaling=st.sampled_from([None, LLAMA3, {"rope_type": "linear", "factor": 2.5}]),
    dropout=st.sampled_from([0.0, 0.25]),
)
def test_config_json_keeps_every_field(switch, tie, kv_heads, groups, head_dim, theta, scaling, dropout):
    config = GPTConfig(
        vocab_size=99,
        d_model=35,
        num_layers=3,
        num_heads=kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=71,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=1e-4,
        tie_embeddings=tie,
        dropout=dropout,
        **switch,
    )
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32")))) == config


@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_the_older_spelling_of_config_json_means_the_same(folder, spelling):
    edit(
        folder,
        rope_parameters=None,
        dtype=None,
        torch_dtype="float32",
        rope_theta=77.0,
        rope_scaling={spelling: "linear", "factor": 3.0},
    )
    ours, theirs = GPT.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert ours.config.rope_theta == 77.0
    torch.testing.assert_close(ours(ids_below(53)), theirs(ids_below(53)).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("field", ["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"])
def test_a_field_left_out_means_what_transformers_takes_it_to_mean(field, tmp_path):
    model = shaken(dataclasses.replace(CONFIGS["llama"], num_kv_heads=6, norm_eps=1e-6, tie_embeddings=False))
    with torch.no_grad():
        model.token_embedding.weight *= 1e-3  # a faint stream, in which eps can be heard
    model.save_pretrained(tmp_path)
    edit(tmp_path, **{field: None})
    ours, theirs = GPT.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(ids_below(53)), theirs(ids_below(53)).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lost", [{"rope_parameters": None}, {"rope_theta": None, "rope_scaling": None}])
@pytest.mark.parametrize("name", ["llama", "llama linear", "qwen2"])
def test_each_of_the_two_spellings_of_the_rotation_says_it_all(name, lost, tmp_path):
    GPT(CONFIGS[name]).save_pretrained(tmp_path)
    edit(tmp_path, **lost)
    assert GPT.from_pretrained(tmp_path).config == CONFIGS[name]
    assert config_from_hf(AutoConfig.from_pretrained(tmp_path).to_dict()) == CONFIGS[name]


def refused(folder, words: str) -> None:
    """Assert that the folder is refused in one line with these words."""
    with pytest.raises(ValueError, match=words) as caught:
        GPT.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "bert"}, "bert.*llama"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": None}, "embed_tokens.*4096"),
        ({"hidden_size": "24"}, "d_model is '24'"),
        ({"num_attention_heads": 5, "head_dim": None}, "num_heads 5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"intermediate_size": 36}, "mlp.*35.*36"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"tie_word_embeddings": False}, "lm_head"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, words):
    edit(folder, **changes)
    refused(folder, words)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_window_that_is_written_down_but_switched_off_is_none(name, tmp_path):
    GPT(CONFIGS[name]).save_pretrained(tmp_path)
    edit(tmp_path, sliding_window=5, use_sliding_window=False)
    assert GPT.from_pretrained(tmp_path).config.sliding_window is None


def test_another_architecture_is_refused_by_name(tmp_path):
    AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=11, n_embd=6, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    refused(tmp_path, "gpt2")


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(folder, tensor):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {tensor: tensors[tensor][:-1].contiguous()}, path)
    refused(folder, tensor)
    save_file({name: value for name, value in tensors.items() if name != tensor}, path)
    refused(folder, tensor)


def test_a_tensor_that_belongs_nowhere_is_named(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(24)}, path)
    refused(folder, "q_proj.bias")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_broken_file_is_refused_with_the_folders_name(folder, name):
    content = (folder / name).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"[]", b"\xff\xfe\x00"):
        (folder / name).write_bytes(broken)
        refused(folder, folder.name)
    (folder / name).unlink()
    refused(folder, name)


def test_a_combination_that_no_family_has_is_refused_and_nothing_is_written(tmp_path):
    model = GPT(dataclasses.replace(CONFIGS["llama"], qkv_bias=True, qk_norm=True))
    with pytest.raises(ValueError, match="no published family"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_families_are_told_apart_by_their_switches():
    assert {name: family_of(config) for name, config in CONFIGS.items()} == {
        name: name.split()[0] for name in CONFIGS
    }

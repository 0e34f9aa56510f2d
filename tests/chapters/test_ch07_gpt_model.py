"""Chapter 7: the sizes predict the model, the model knows only the past, and it begins without an opinion."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chapters.ch07_gpt_model import GPT, PRESETS, GPTConfig, count_parameters, flops_per_token, memory_bytes

SMALL = GPTConfig(
    vocab_size=53, d_model=30, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=47, max_seq_len=29
)


def model_of(**changes) -> GPT:
    """Return a small model with fresh weights from one seed, in evaluation mode."""
    torch.manual_seed(7)
    return GPT(dataclasses.replace(SMALL, **changes)).eval()


def some_ids(batch: int = 2, length: int = 13, vocab_size: int = 53) -> torch.Tensor:
    """Return the same random token ids each time."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@st.composite
def configs(draw) -> GPTConfig:
    """Draw any configuration that can exist, small enough to build."""
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = kv_heads * groups
    head_dim = draw(st.sampled_from([None, 2, 6]))
    width = heads * 2 * draw(st.integers(1, 3)) if head_dim is None else draw(st.integers(1, 25))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 40)),
        d_model=width,
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=draw(st.integers(1, 30)),
        max_seq_len=11,
        tie_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


def test_presets_have_the_parameters_the_book_promises():
    totals = {name: count_parameters(config)["total"] for name, config in PRESETS.items()}
    assert totals["base"] == 151_862_784
    big_vocabulary = dataclasses.replace(PRESETS["tiny"], vocab_size=50257)
    counts = count_parameters(big_vocabulary)
    assert counts["total"] == 17_062_400
    assert PRESETS["tiny"].d_ff == 1024 and round(100 * counts["embedding"] / counts["total"]) == 75
    assert 0.8e6 < totals["nano"] < 1.2e6
    assert totals["nano"] < totals["tiny"] < totals["small"] < totals["base"]
    assert [(PRESETS[n].d_model, PRESETS[n].num_layers) for n in PRESETS] == [
        (128, 4),
        (256, 4),
        (512, 8),
        (768, 12),
    ]


@pytest.mark.parametrize("name, percent", [("base", 20.3), ("tiny", 43.0)])
def test_tying_saves_the_share_the_book_says(name, percent):
    tied = dataclasses.replace(PRESETS[name], vocab_size=50257)
    untied = count_parameters(dataclasses.replace(tied, tie_embeddings=False))["total"]
    assert round(100 * (1 - count_parameters(tied)["total"] / untied), 1) == percent


@settings(max_examples=60, deadline=None)
@given(configs())
def test_counted_parameters_are_those_of_the_real_model(config):
    model, counts = GPT(config), count_parameters(config)
    real = {"embedding": 0, "attention": 0, "feed_forward": 0, "norms": 0, "output_head": 0}
    for name, parameter in model.named_parameters():
        part = (
            "attention"
            if ".attention." in name
            else "feed_forward"
            if ".feed_forward." in name
            else "norms"
            if "norm" in name
            else "output_head"
            if "lm_head" in name
            else "embedding"
        )
        real[part] += parameter.numel()
    assert counts == real | {"total": sum(p.numel() for p in model.parameters())}


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_counted_parameters_of_presets_are_real(name):
    assert count_parameters(PRESETS[name])["total"] == sum(p.numel() for p in GPT(PRESETS[name]).parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"num_kv_heads": 6}, {"qkv_bias": True}, {"qk_norm": True}]
)
def test_counted_work_is_what_torch_counts(changes):
    model, ids = model_of(**changes), some_ids(3, 17)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(ids)
    promised = flops_per_token(model.config, context=17)
    assert counter.get_total_flops() == 3 * 17 * promised["forward"]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 3 * 17 * (promised["training"] - promised["forward"])


def test_counted_memory_is_that_of_the_tensors():
    model, promised = model_of(), memory_bytes(SMALL, context=19)
    assert promised["training_fp32"] == sum(4 * p.nbytes for p in model.parameters())
    assert promised["weights_bf16"] == sum(p.nbytes for p in model.bfloat16().parameters())
    keys = torch.empty(SMALL.num_kv_heads, 19, SMALL.head_dim, dtype=torch.bfloat16)
    assert promised["kv_cache_bf16"] == SMALL.num_layers * 2 * keys.nbytes


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 4}, {"qk_norm": True, "num_kv_heads": 6}, {"qkv_bias": True}]
)
def test_future_tokens_cannot_change_the_past(changes):
    model, ids = model_of(**changes), some_ids()
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 1) % 53
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=1e-6)
    assert not torch.isclose(before[:, 8:], after[:, 8:]).all(dim=-1).any()


def test_a_window_reaches_back_one_window_per_layer_and_no_further():
    model, ids = model_of(sliding_window=4), some_ids(1, 29)
    reach = 3 * (4 - 1)  # three layers, each three tokens back
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # loud enough that the faintest influence shows
    for distance, heard in ((reach, True), (reach + 1, False)):
        other = ids.clone()
        other[0, 28 - distance] = (other[0, 28 - distance] + 1) % 53
        assert torch.equal(model(ids)[0, 28], model(other)[0, 28]) is not heard


def test_a_window_as_long_as_the_text_is_no_window():
    ids = some_ids(2, 13)
    torch.testing.assert_close(model_of(sliding_window=13)(ids), model_of()(ids))
    assert not torch.allclose(model_of(sliding_window=12)(ids), model_of()(ids))


def test_rows_of_a_batch_do_not_know_of_each_other():
    model, ids = model_of(), some_ids(3, 13)
    torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [53, 1024, 50257])
def test_an_untrained_model_is_surprised_as_by_a_fair_draw(vocab_size):
    model, ids = model_of(vocab_size=vocab_size), some_ids(4, 29, vocab_size)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(vocab_size)) < 0.1
    assert vocab_size != 50257 or round(math.log(vocab_size), 2) == 10.82


@pytest.mark.parametrize("layers", [2, 9])
def test_matrices_begin_as_noise_scaled_by_depth_biases_at_zero_and_norms_at_one(layers):
    torch.manual_seed(0)
    model = GPT(
        dataclasses.replace(
            PRESETS["nano"], num_layers=layers, qkv_bias=True, qk_norm=True, tie_embeddings=False
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            into_stream = name.endswith(("attention.output.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * layers) if into_stream else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_the_stream_is_no_louder_on_top_of_a_high_tower():
    def growth(layers: int) -> float:
        torch.manual_seed(0)
        heard, model = [], GPT(dataclasses.replace(PRESETS["nano"], num_layers=layers))
        model.final_norm.register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]))
        ids = some_ids(2, 31, 1024)
        model(ids)
        return (heard[0].square().mean() - model.token_embedding(ids).square().mean()).item()

    assert 0.5 < growth(12) / growth(2) < 2  # six times as many layers


def test_tied_embeddings_share_memory_and_untied_ones_do_not():
    tied, untied = model_of(), model_of(tie_embeddings=False)
    assert tied.lm_head.weight.data_ptr() == tied.token_embedding.weight.data_ptr()
    assert untied.lm_head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    tied(some_ids()).sum().backward()
    assert tied.lm_head.weight.grad is tied.token_embedding.weight.grad
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


def test_position_tables_travel_with_the_model_and_are_not_saved():
    model = model_of()
    assert {"rope_cos", "rope_sin"} <= dict(model.named_buffers()).keys()
    assert not [name for name in model.state_dict() if "rope" in name]
    assert model.to("meta").rope_cos.device.type == "meta"


def test_dropout_acts_in_training_only_and_in_attention_too():
    model, ids = model_of(dropout=0.3), some_ids()
    torch.testing.assert_close(model(ids), model_of()(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    for block in model.blocks:
        block.dropout.p = 0.0
    assert not torch.equal(model(ids), model(ids))


def test_a_text_longer_than_the_context_is_refused_with_both_numbers():
    model = model_of()
    assert model(some_ids(1, 29)).shape == (1, 29, 53)
    with pytest.raises(ValueError, match="30 tokens exceed max_seq_len 29"):
        model(some_ids(1, 30))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"d_ff": 2.5}, "d_ff is 2.5"),
        ({"max_seq_len": "64"}, "max_seq_len is '64'"),
        ({"d_model": True}, "d_model is True"),
        ({"d_model": 30, "num_heads": 4}, "d_model 30 is not divisible by num_heads 4"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"head_dim": -2}, "head_dim is -2"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"norm_eps": -1e-5}, "norm_eps"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ],
)
def test_an_impossible_model_is_refused_in_one_line_that_names_the_field(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        GPTConfig(**changes)
    assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed_behind_the_models_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.d_model = 4


@pytest.mark.parametrize("changes", [{"d_model": 384}, {"num_heads": 8}, {"num_heads": 2}])
def test_a_preset_with_one_size_changed_is_the_model_of_that_size(changes):
    base = {
        "vocab_size": 1536,
        "d_model": 256,
        "num_layers": 4,
        "num_heads": 4,
        "d_ff": 1024,
        "max_seq_len": 160,
    }
    assert PRESETS["tiny"].resized(**changes) == GPTConfig(**base | changes)

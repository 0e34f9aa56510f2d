"""Chapter 6: RMSNorm, SwiGLU and the block give what PyTorch's and Transformers' own give."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from chapters.ch04_positional_encoding import rope_tables
from chapters.ch05_attention import MultiHeadAttention, causal_mask
from chapters.ch06_transformer_block import RMSNorm, SwiGLU, TransformerBlock, rms_norm, silu

CONFIG = LlamaConfig(
    hidden_size=30,
    intermediate_size=47,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    rms_norm_eps=1e-5,
    attn_implementation="eager",
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(dropout: float = 0.0) -> TransformerBlock:
    """Return a block of width 30 with every weight drawn anew, norms too, in evaluation mode."""
    torch.manual_seed(6)
    made = TransformerBlock(MultiHeadAttention(30, 6, 2, 4), 30, 47, 1e-5, dropout)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def test_rms_norm_by_hand_and_fused_equal_torch():
    x, weight = noise(3, 7, 11) * 5, noise(11, seed=1)
    expected = F.rms_norm(x, (11,), weight, eps=1e-3)
    norm = RMSNorm(11, eps=1e-3)
    norm.weight.data.copy_(weight)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), expected)
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_computes_in_float32_and_answers_in_the_dtype_it_was_given():
    x, theirs, ours = (noise(2, 5, 300) * 100).bfloat16(), LlamaRMSNorm(300, eps=1e-5), RMSNorm(300)
    assert ours(x).dtype == torch.bfloat16
    torch.testing.assert_close(ours(x), theirs(x).bfloat16(), rtol=0, atol=0)
    loud = torch.full((1, 1, 300), 1e4).half()  # its square overflows in float16
    torch.testing.assert_close(ours(loud), torch.ones_like(loud))


def test_rms_norm_throws_volume_away_and_nothing_else():
    x, norm = noise(2, 5, 13), RMSNorm(13, eps=1e-12)
    torch.testing.assert_close(norm(100 * x), norm(x))
    torch.testing.assert_close(norm(x).square().mean(dim=-1), torch.ones(2, 5))
    torch.testing.assert_close(F.cosine_similarity(norm(x), x, dim=-1), torch.ones(2, 5))
    assert (norm(torch.zeros(1, 1, 13)) == 0).all()


def test_silu_equals_that_of_torch():
    x = torch.tensor([-1000.0, -20.0, -1.278, 0.0, 0.5, 30.0, 1000.0])
    torch.testing.assert_close(silu(x), F.silu(x))


def test_feed_forward_equals_that_of_transformers():
    ours, theirs, x = SwiGLU(30, 47), LlamaMLP(CONFIG), noise(2, 5, 30)
    theirs.load_state_dict(
        {f"{name}_proj.weight": getattr(ours, name).weight for name in ("gate", "up", "down")}
    )
    torch.testing.assert_close(ours(x), theirs(x))


def test_feed_forward_equals_the_papers_formula():
    layer, x = SwiGLU(8, 5), noise(1, 3, 8)
    expected = (silu(x @ layer.gate.weight.T) * (x @ layer.up.weight.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_block_equals_that_of_transformers():
    ours, theirs, x = block(), LlamaDecoderLayer(CONFIG, 0).eval(), noise(2, 9, 30)
    names = {
        "input_layernorm": ours.attention_norm,
        "post_attention_layernorm": ours.feed_forward_norm,
        "self_attn.q_proj": ours.attention.query,
        "self_attn.k_proj": ours.attention.key,
        "self_attn.v_proj": ours.attention.value,
        "self_attn.o_proj": ours.attention.output,
        "mlp.gate_proj": ours.feed_forward.gate,
        "mlp.up_proj": ours.feed_forward.up,
        "mlp.down_proj": ours.feed_forward.down,
    }
    theirs.load_state_dict({f"{name}.weight": module.weight for name, module in names.items()})
    cos, sin = rope_tables(4, 9)
    mask = torch.zeros(9, 9).masked_fill(~causal_mask(9, 9), -float("inf"))[None, None]
    full = tuple(torch.cat([t, t], dim=-1)[None] for t in (cos, sin))
    expected = theirs(x, attention_mask=mask, position_embeddings=full)
    torch.testing.assert_close(ours(x, cos, sin), expected, rtol=1e-4, atol=1e-5)


def test_a_block_whose_layers_say_nothing_hands_its_input_on():
    made, x = block(), noise(1, 7, 30)
    torch.nn.init.zeros_(made.attention.output.weight)
    torch.nn.init.zeros_(made.feed_forward.down.weight)
    assert torch.equal(made(x, *rope_tables(4, 7)), x)


def test_the_residual_road_carries_gradients_undamped():
    made, x = block(), noise(1, 5, 30).requires_grad_()
    torch.nn.init.zeros_(made.attention.output.weight)
    torch.nn.init.zeros_(made.feed_forward.down.weight)
    made(x, *rope_tables(4, 5)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_block_hears_the_volume_of_no_token():
    # Pre-norm: the layers see normalised copies, so what is added does not grow with x.
    made, x, tables = block(), noise(1, 7, 30), rope_tables(4, 7)
    with torch.no_grad():
        made.feed_forward.down.weight.zero_()
        quiet, loud = made(x, *tables) - x, made(1000 * x, *tables) - 1000 * x
    torch.testing.assert_close(quiet, loud, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("silent", ["attention.output", "feed_forward.down"])
@pytest.mark.parametrize("training", [False, True])
def test_dropout_acts_on_both_layers_and_in_training_only(training, silent):
    made, x, tables = block(dropout=0.5).train(training), noise(1, 7, 30), rope_tables(4, 7)
    torch.nn.init.zeros_(made.get_submodule(silent).weight)
    assert torch.equal(made(x, *tables), made(x, *tables)) is not training

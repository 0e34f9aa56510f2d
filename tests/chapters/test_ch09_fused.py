"""Chapter 9: the model laid out for one more token answers as the model does."""

import pytest
import torch

from chapters import ch09_fused
from chapters.ch09_fused import FusedGPT, Product
from chapters.ch09_inference import KVCache
from tests.chapters.small_gpt import model_of, some_ids

KINDS = [
    {},
    {"num_kv_heads": 6, "qk_norm": True},
    {"num_kv_heads": 1, "qkv_bias": True},
    {"sliding_window": 5, "tie_embeddings": False},
]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """Set the number of threads, by which the matrices are cut, and put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_one_more_token_gets_the_scores_of_the_model(kind, batch, threads):
    model, ids = model_of(**kind), some_ids(batch, 17)
    for name, bias in model.named_parameters():
        assert not name.endswith("bias") or bias.any()
    fused, ours, theirs = FusedGPT(model), KVCache(model, batch), KVCache(model, batch)
    for piece in ids.split([4, *[1] * 13], dim=1):
        torch.testing.assert_close(fused(piece, ours), model(piece, theirs), rtol=1e-4, atol=1e-4)
    assert fused.blocks and ours.length == theirs.length == 17


@torch.no_grad()
def test_several_layers_are_one_product_whatever_the_sizes(threads):
    layers = [torch.nn.Linear(5, rows) for rows in (3, 7, 1)]
    x = torch.randn(2, 5)
    torch.testing.assert_close(Product(*layers)(x), torch.cat([layer(x) for layer in layers], dim=1))


@pytest.mark.parametrize("reason", ["large", "bfloat16"])
@torch.no_grad()
def test_what_is_not_worth_it_goes_to_the_model(reason, monkeypatch):
    model = model_of().bfloat16() if reason == "bfloat16" else model_of()
    if reason == "large":
        monkeypatch.setattr(ch09_fused, "MOST_BYTES", 100)
    fused, cache = FusedGPT(model), KVCache(model)
    for piece in some_ids(1, 5).split([3, 1, 1], dim=1):
        fused(piece, cache)
    assert not fused.blocks and cache.length == 5


@torch.no_grad()
def test_a_text_that_fills_its_context_is_refused_as_the_model_refuses_it():
    model = model_of()
    fused, cache = FusedGPT(model), KVCache(model, max_seq_len=40)
    fused(some_ids(1, 28), cache)
    fused(some_ids(1, 1), cache)
    with pytest.raises(ValueError, match="30 tokens exceed max_seq_len 29"):
        fused(some_ids(1, 1), cache)

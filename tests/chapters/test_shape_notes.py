"""Every shape note of the chapters is reached by a scenario here, and true for sizes that cannot be mistaken.

A scenario gets the module under watch and runs it inside `sizes`. The sizes differ from each other, and are
primes where the shape allows: the head size is even, and the number of heads is a multiple of K.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch04_positional_encoding import rope_tables
from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_training import TrainConfig
from chapters.ch09_config import SamplingConfig
from chapters.ch09_inference import KVCache
from tools.shape_notes import ROOT, Traced, trace

B, T, S, C, H, K, D, F, V = 2, 7, 11, 23, 9, 3, 14, 31, 53
CONFIG = GPTConfig(
    vocab_size=V, d_model=C, num_layers=1, num_heads=H, num_kv_heads=K, head_dim=D, d_ff=F, max_seq_len=19
)


def ids(batch: int = B, length: int = T) -> torch.Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(0))


def embeddings(traced: Traced) -> None:
    with traced.sizes(B=B, T=T, C=C, V=V):
        table = traced.module.TokenEmbedding(V, C)
        traced.module.one_hot_lookup(ids(), table.weight)
        table(ids())
        traced.module.analogy(table.weight, 1, 2, 3)


def positions(traced: Traced) -> None:
    module, llama3 = (
        traced.module,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    with traced.sizes(B=B, H=H, T=T, C=22, D=D):
        module.sinusoidal_positions(T, 22)
        cos, sin = module.rope_tables(D, T, scaling=llama3)
        for interleaved in (False, True):
            module.apply_rope(torch.randn(B, H, T, D), cos, sin, interleaved)


class Memory:
    """A cache that already holds what S - T tokens left."""

    def append(self, k, v):
        return tuple(torch.cat([torch.randn(B, K, S - T, D), new], dim=2) for new in (k, v))


def attention(traced: Traced) -> None:
    module, x, tables = traced.module, torch.randn(B, T, C), rope_tables(D, T)
    with traced.sizes(B=B, T=T, S=S, C=C, H=H, K=K, D=D):
        mask = module.causal_mask(T, S, window=5)
        module.causal_mask(T, S)
        module.padded_mask(mask, torch.tensor([0, 5]), 19)
        q, k, v = (torch.randn(B, H, length, D) for length in (T, S, S))
        module.scaled_dot_product_attention(q, k, v, mask)
        layer = module.MultiHeadAttention(C, H, K, D, qkv_bias=True, qk_norm=True)
        layer(x, *tables, mask, Memory())
        layer(x, *tables, cache=Memory())


def block(traced: Traced) -> None:
    module = traced.module
    with traced.sizes(B=B, T=T, C=C, F=F):
        attend = module.MultiHeadAttention(C, H, K, D)
        made = module.TransformerBlock(attend, C, F)
        made(torch.randn(B, T, C), *rope_tables(D, T))
        module.rms_norm(torch.randn(B, T, C), torch.ones(C), 1e-5)


def model(traced: Traced) -> None:
    with traced.sizes(same=["TS"], B=B, T=T, S=T, C=C, D=D, V=V):
        traced.module.GPT(CONFIG)(ids())
        traced.module.GPT(dataclasses.replace(CONFIG, sliding_window=5))(ids(), pads=torch.tensor([0, 3]))


def training(traced: Traced, documents: list[str], tokenizer, folder: Path) -> None:
    module, rows = traced.module, traced.module.TokenRows(documents, tokenizer, T)
    config = TrainConfig(max_steps=1, batch_size=B, dtype="float32", compile="off")
    with traced.sizes(B=B, T=T, V=300):
        module.cross_entropy(torch.randn(B, T, 300), ids())
        small = GPTConfig(300, C, 1, H, K, D, F, T)
        module.Trainer(GPT(small), rows, rows, config, folder).train_step()


def data(traced: Traced) -> None:
    documents = ["a text of some length, and then some more", "b"]
    rows = traced.module.TokenRows(documents, BPETokenizer.train(documents, 260), T)
    with traced.sizes(B=B, T=T):
        traced.module.get_batch(rows, 1, B, seed=0)


def inference(traced: Traced) -> None:
    module = traced.module
    rolling = module.LayerCache(B, K, 7, D, "cpu", torch.float32, window=5)
    rolling.append(*torch.randn(2, B, K, 6, D))
    with traced.sizes(B=B, K=K, S=S, D=D):
        cache = module.LayerCache(B, K, 19, D, "cpu", torch.float32)
        cache.length = S - T
        cache.append(*torch.randn(2, B, K, T, D))
        rolling.append(*torch.randn(2, B, K, T, D))
        module.KVCache(GPT(CONFIG), B + 1, S).select(torch.tensor([2, 0]))
    everything = module.SamplingConfig(
        top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, max_new_tokens=1
    )
    with traced.sizes(same=["TS"], B=B, T=T, S=T, K=K, D=D, V=V):
        for config in (everything, module.SamplingConfig(temperature=0, max_new_tokens=1)):
            list(module.generate_batch(GPT(CONFIG), ids(), config))
        module.token_probabilities(torch.randn(B, V), module.SamplingConfig(temperature=0))
        module.sample_next(torch.randn(B, V), everything, ids(), torch.Generator())
    with traced.sizes(same=["TS"], B=1, T=T, S=T, K=K, D=D, V=V):
        next(module.generate(GPT(CONFIG), ids()[0].tolist(), everything))


def fused(traced: Traced) -> None:
    module, model = traced.module, GPT(dataclasses.replace(CONFIG, qk_norm=True))
    fused_model = module.FusedGPT(model)
    cache = KVCache(model, B)
    model(ids(B, S - 1), cache)
    with torch.no_grad(), traced.sizes(B=B, T=1, C=C, H=H, K=K, D=D, F=F, V=V, S=S):
        fused_model(ids(B, 1), cache)
    with torch.no_grad(), traced.sizes(B=B, T=T, V=V):
        fused_model(ids(B, T), KVCache(model, B))


def decoding(traced: Traced) -> None:
    module, text, greedy = traced.module, ids(1)[0].tolist(), SamplingConfig(temperature=0)
    torch.manual_seed(0)
    large, other = GPT(CONFIG), GPT(dataclasses.replace(CONFIG, tie_embeddings=False))
    with traced.sizes(B=1, T=T, V=V):
        module.score(large, [*text, 1])
        module.beam_search(large, text, beams=1, max_new_tokens=3)
        for draft in (large, other):
            next(module.speculative_generate(large, draft, text, greedy, draft_tokens=T - 1))


def experiments(traced: Traced) -> None:
    module, config = traced.module, dataclasses.replace(CONFIG, num_layers=1)
    with traced.sizes(same=["TS"], B=B, T=T, S=T, C=C, H=H, K=K, D=D):
        for kind in (module.ByHand, module.Leaking, module.PostNorm):
            kind(config)(ids())
    with traced.sizes(B=B, T=CONFIG.max_seq_len, C=C):
        module.LearnedPositions(config)(ids(B, CONFIG.max_seq_len))


def running_example(traced: Traced) -> None:
    with traced.sizes(T=3, C=4, D=2):
        traced.module.embed()
        traced.module.no_rotation(3)


SCENARIOS = {
    "ch03_embeddings": embeddings,
    "ch04_positional_encoding": positions,
    "ch05_attention": attention,
    "ch06_transformer_block": block,
    "ch07_gpt_model": model,
    "ch08_data": data,
    "ch09_decoding": decoding,
    "ch09_fused": fused,
    "ch09_inference": inference,
    "ch10_experiments": experiments,
    "running_example": running_example,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_shape_note_is_reached_and_true(name):
    traced = trace(f"chapters/{name}.py")
    SCENARIOS[name](traced)
    assert traced.notes and traced.unreached() == []


def test_every_shape_note_of_training_is_reached_and_true(documents, tokenizer, tmp_path):
    traced = trace("chapters/ch08_training.py")
    training(traced, documents, tokenizer, tmp_path)
    assert traced.notes and traced.unreached() == []


def test_no_module_with_notes_is_without_a_scenario():
    noted = {path.stem for path in ROOT.glob("chapters/*.py") if trace(f"chapters/{path.name}").notes}
    assert noted - {*SCENARIOS, "ch08_training"} == set()

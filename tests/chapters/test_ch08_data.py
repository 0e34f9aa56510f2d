"""Chapter 8, the data: each token is a target once, each row comes once a pass, surprise is per byte."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_scale import autocast
from chapters.ch08_training import TokenRows, bits_per_byte, get_batch

SMALL = GPTConfig(
    vocab_size=300,
    d_model=24,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    d_ff=35,
    max_seq_len=16,
    dropout=0.4,
)


def loud_model() -> GPT:
    """Return a model with strong opinions, in training mode, from one seed."""
    torch.manual_seed(9)
    model = GPT(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("context", [5, 16, 1000])
def test_every_token_and_every_end_is_a_target_of_its_document_once(documents, tokenizer, context):
    rows = TokenRows(documents, tokenizer, context)
    x, y = rows.rows(np.arange(len(rows)))
    counted = [y[row, :count].tolist() for row, count in enumerate(rows.counts)]
    expected = [token for text in documents for token in [*tokenizer.encode(text), tokenizer.eot_id]]
    assert [token for row in counted for token in row] == expected
    assert x.shape == y.shape == (len(rows), context) and x.dtype == torch.long


def test_behind_the_last_document_are_end_tokens_and_no_text(documents, tokenizer):
    rows = TokenRows(documents, tokenizer, 1000)
    x, y = rows.rows(np.arange(len(rows)))
    assert rows.counts[-1] < 1000 and set(y[-1, rows.counts[-1] :].tolist()) == {tokenizer.eot_id}


def test_targets_are_the_inputs_moved_by_one_place_and_not_by_two(rows):
    x, y = rows.rows(np.arange(len(rows)))
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x[:, 2:], y[:, :-2])


def test_a_document_begins_behind_an_end_token_and_in_a_row_of_its_own(documents, tokenizer, rows):
    x, _ = rows.rows(np.arange(len(rows)))
    starts = [row.tolist() for row in x if row[0] == tokenizer.eot_id]
    assert len(starts) == len(documents)
    for text, row in zip(documents, starts, strict=True):
        assert row[1:4] == [*tokenizer.encode(text), tokenizer.eot_id, *row][:3] or len(text) < 3
    assert rows.num_bytes == sum(len(text.encode()) for text in documents) > sum(map(len, documents))


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_each_row_comes_once_a_pass_also_where_a_batch_straddles_two(rows, batch_size):
    size, passes = len(rows), 3
    assert size % 4 and size % 7
    seen = [get_batch(rows, i, batch_size, seed=5)[0] for i in range(-(-passes * size // batch_size))]
    seen = [tuple(row.tolist()) for batch in seen for row in batch][: passes * size]
    every = sorted(tuple(row.tolist()) for row in rows.rows(np.arange(size))[0])
    orders = [seen[i * size : (i + 1) * size] for i in range(passes)]
    assert all(sorted(order) == every for order in orders)
    assert orders[0] != orders[1] != orders[2] != every


def test_a_batch_depends_on_its_number_and_the_seed_alone(rows):
    batch = get_batch(rows, 3, 4, seed=5)
    torch.manual_seed(99)
    get_batch(rows, 2, 4, seed=5)
    assert all(map(torch.equal, batch, get_batch(rows, 3, 4, seed=5)))
    assert not torch.equal(batch[0], get_batch(rows, 3, 4, seed=6)[0])


def surprise_by_hand(model: GPT, documents, tokenizer, context: int) -> float:
    """Return the bits per byte, document by document and token by token."""
    bits = 0.0
    for text in documents:
        ids = [tokenizer.eot_id, *tokenizer.encode(text), tokenizer.eot_id]
        for start in range(0, len(ids) - 1, context):
            part = torch.tensor([ids[start : start + context + 1]])
            log_probs = F.log_softmax(model(part[:, :-1])[0], dim=-1)
            bits -= sum(log_probs[i, token].item() for i, token in enumerate(part[0, 1:])) / math.log(2)
    return bits / sum(len(text.encode()) for text in documents)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_bits_per_byte_is_the_surprise_of_every_target_over_the_bytes_of_the_text(
    documents, tokenizer, rows, batch_size
):
    model = loud_model().eval()
    expected = surprise_by_hand(model, documents, tokenizer, 16)
    assert bits_per_byte(model, rows, batch_size) == pytest.approx(expected, rel=1e-5)


def test_a_model_without_opinion_pays_the_logarithm_of_the_vocabulary_for_each_token(
    documents, tokenizer, rows
):
    model = loud_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in documents)
    assert bits_per_byte(model, rows) == pytest.approx(tokens * math.log2(300) / rows.num_bytes, rel=1e-5)


def test_measuring_uses_no_dropout_and_leaves_model_and_chance_as_they_were(rows):
    model, state = loud_model(), torch.get_rng_state()
    first = bits_per_byte(model, rows)
    assert model.training and bits_per_byte(model, rows) == first
    assert all(p.grad is None for p in model.parameters()) and torch.equal(state, torch.get_rng_state())
    bits_per_byte(model.eval(), rows)
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_keeps_no_record_for_gradients(rows, dtype):
    model, recorded = loud_model(), []
    model.register_forward_hook(lambda module, inputs, logits: recorded.append(logits.requires_grad))
    bits_per_byte(model, rows, amp=autocast(torch.device("cpu"), dtype))
    assert recorded and not any(recorded)


def test_bits_per_byte_in_bfloat16_is_nearly_the_same(rows):
    model = loud_model()
    half = bits_per_byte(model, rows, batch_size=2, amp=autocast(torch.device("cpu"), torch.bfloat16))
    full = bits_per_byte(model, rows, batch_size=2)
    assert half != full and half == pytest.approx(full, rel=0.02)

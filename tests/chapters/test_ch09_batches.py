"""Chapter 9: a text in a batch is the text it would be alone, and a window keeps the memory small."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from chapters.ch07_gpt_model import GPT
from chapters.ch09_inference import KVCache, SamplingConfig, generate, generate_batch
from tests.chapters.small_gpt import model_of, some_ids

KINDS = [{}, {"num_kv_heads": 1, "qk_norm": True}, {"sliding_window": 5}, {"sliding_window": 1}]
GREEDY = SamplingConfig(temperature=0)
DRAWN = SamplingConfig(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=7)
# Prompts whose lengths differ as much as they can: the last leaves room for two tokens.
PROMPTS = [[5, 9, 2, 7], [11], list(range(20, 31)), [3, 8] * 13 + [6]]


def alone(model: GPT, config: SamplingConfig, prompts=PROMPTS, **settings) -> list[list[int]]:
    """Return what each prompt becomes by itself, under a seed of its own."""
    seeds = (dataclasses.replace(config, seed=config.seed + row) for row in range(len(prompts)))
    return [list(generate(model, prompt, seed, **settings)) for prompt, seed in zip(prompts, seeds, strict=True)]


# Rows of unequal length.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [GREEDY, DRAWN])
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_unequal_length_become_what_each_becomes_alone(kind, config, use_cache):
    model = model_of(**kind)
    columns = list(generate_batch(model, PROMPTS, config, use_cache))
    rows = [[token for token in row if token >= 0] for row in torch.stack(columns, dim=1).tolist()]
    assert rows == alone(model, config)
    assert [len(row) for row in rows] == [25, 28, 18, 2]  # each to the end of its own context


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_that_met_a_stop_id_stays_finished_and_the_loop_ends_with_the_last(use_cache):
    model, prompts = model_of(), PROMPTS[:3]
    texts = alone(model, DRAWN, prompts)
    stops = {texts[0][9], texts[1][5], texts[2][0]}
    expected = alone(model, DRAWN, prompts, stop_ids=stops)
    rows = torch.stack(list(generate_batch(model, prompts, DRAWN, use_cache, stops)), dim=1).tolist()
    for row, text in zip(rows, expected, strict=True):
        assert row[: len(text)] == text and row[len(text)] in stops
        assert set(row[len(text) + 1 :]) <= {-1}
    assert len(rows[0]) == max(len(text) for text in expected) + 1
    assert len({len(text) for text in expected}) == 3 and [] in expected


def test_what_a_row_says_does_not_depend_on_the_others():
    model = model_of()
    rows = torch.stack(list(generate_batch(model, PROMPTS, DRAWN)), dim=1)
    for others in ([[1]] * 3, [[4] * 20, [2, 2], [9, 8, 7]]):
        again = torch.stack(list(generate_batch(model, [PROMPTS[0], *others], DRAWN)), dim=1)
        assert again[0, :25].tolist() == rows[0, :25].tolist()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_is_not_seen_whatever_stands_there(kind):
    model, text = model_of(**kind), some_ids(1, 17)
    for seed in range(2):
        padding = torch.randint(53, (1, 9), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([torch.cat([padding, text], dim=1), some_ids(1, 26)])
        logits = model(ids, pads=torch.tensor([9, 0]))
        torch.testing.assert_close(logits[:1, 9:], model(text), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[1:], model(ids[1:]), rtol=1e-4, atol=1e-5)
        assert logits.isfinite().all()


@torch.no_grad()
def test_only_the_text_counts_against_the_context_and_not_its_padding():
    model = model_of()
    assert model(some_ids(2, 35), pads=torch.tensor([6, 20])).shape == (2, 35, 53)
    with pytest.raises(ValueError, match="30 tokens exceed max_seq_len 29"):
        model(some_ids(2, 35), pads=torch.tensor([5, 20]))


@pytest.mark.parametrize(
    ("prompts", "words"), [([], "0 tokens"), ([[1], []], "0 tokens"), ([[1], [2] * 29], "29 tokens")]
)
def test_one_prompt_that_cannot_be_continued_is_refused_for_all(prompts, words):
    with pytest.raises(ValueError, match=words):
        generate_batch(model_of(), prompts, GREEDY)


# A window.


@pytest.mark.parametrize("window", [1, 2, 5, 6, 28, 40])
@pytest.mark.parametrize("pieces", [[1] * 28, [28], [4] * 7, [13, 1, 1, 1, 1, 1, 1, 9], [1, 2, 25], [9, 1, 11, 7]])
@torch.no_grad()
def test_a_rolling_cache_equals_the_full_forward_at_each_position(window, pieces):
    model, ids = model_of(sliding_window=window), some_ids(2, 28)
    cache = KVCache(model, batch=2)
    parts = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-5)
    assert cache.length == 28


def test_text_far_beyond_the_window_is_that_of_transformers(tmp_path):
    model = model_of(sliding_window=5, max_seq_len=90)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.model_type == "mistral" and theirs.config.sliding_window == 5
    for prompt in ([7], list(range(12))):
        text = list(generate(model, prompt, GREEDY))
        again = theirs.generate(torch.tensor([prompt]), do_sample=False, max_length=90, min_length=90, pad_token_id=0)
        assert text == again[0, len(prompt) :].tolist() and len(text) == 90 - len(prompt)


@torch.no_grad()
def test_the_memory_of_a_window_does_not_grow_with_the_text():
    model = model_of(sliding_window=5, max_seq_len=400)
    cache, ids = KVCache(model, max_seq_len=400), some_ids(1, 400)
    places = [layer.keys.data_ptr() for layer in cache.layers]
    for piece in ids.split([37] + [1] * 363, dim=1):
        model(piece, cache)
    assert [layer.keys.shape for layer in cache.layers] == [(1, 2, 10, 4)] * 3
    assert [layer.keys.data_ptr() for layer in cache.layers] == places and cache.length == 400


@torch.no_grad()
def test_each_token_of_a_window_is_computed_from_the_window_alone(monkeypatch):
    model, seen = model_of(sliding_window=5), []
    cache = KVCache(model)
    append = type(cache.layers[0]).append

    def spy(layer, k, v):
        keys, values = append(layer, k, v)
        seen.append(keys.shape[2])
        return keys, values

    monkeypatch.setattr(type(cache.layers[0]), "append", spy)
    for piece in some_ids(1, 23).split(1, dim=1):
        model(piece, cache)
    assert seen[::3] == [1, 2, 3, 4] + [5] * 19


# Memory that is taken back, and memory that is passed on.


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_cache_cut_back_is_as_if_nothing_had_been_read(kind):
    model, ids = model_of(**kind), some_ids(2, 22)
    cache = KVCache(model, batch=2, rolling=False)
    model(ids[:, :11], cache)
    model(some_ids(4, 8)[2:], cache)
    cache.cut(11)
    torch.testing.assert_close(model(ids[:, 11:], cache), model(ids)[:, 11:], rtol=1e-4, atol=1e-5)
    cache.cut(99)
    assert cache.length == 22


@torch.no_grad()
def test_a_cut_that_would_need_what_was_dropped_is_refused():
    model, ids = model_of(sliding_window=5), some_ids(1, 28)
    cache = KVCache(model)
    for piece in ids[:, :12].split([10, 1, 1], dim=1):
        model(piece, cache)
    with pytest.raises(ValueError, match="rolling=False"):
        cache.cut(10)
    cache.cut(11)
    torch.testing.assert_close(model(ids[:, 11:15], cache), model(ids[:, :15])[:, 11:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_selected_rows_go_on_from_the_rows_they_were():
    model, ids = model_of(), some_ids(3, 9)
    cache = KVCache(model, batch=3)
    model(ids[:, :8], cache)
    cache.select(rows := torch.tensor([2, 0, 0, 2]))
    torch.testing.assert_close(model(ids[rows, 8:], cache), model(ids[rows])[:, 8:], rtol=1e-4, atol=1e-5)

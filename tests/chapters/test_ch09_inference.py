"""Chapter 9: the cache changes nothing, the filters are Transformers' filters, and no text is lost."""

import dataclasses
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chapters.ch09_inference import (
    KVCache,
    SamplingConfig,
    generate,
    generate_batch,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample_next,
    stream_text,
)
from tests.chapters.small_gpt import model_of, some_ids

KINDS = [
    {},
    {"num_kv_heads": 6, "qk_norm": True},
    {"num_kv_heads": 1, "qkv_bias": True},
    {"sliding_window": 5},
]
GREEDY = SamplingConfig(temperature=0)
# Every byte is a token, so that letters and stop strings can be cut anywhere.
BYTES = SimpleNamespace(vocab={i: bytes([i]) for i in range(256)})


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The cache.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[1] * 17, [17], [9, 1, 1, 6], [1, 16], [3, 7, 7]])
@torch.no_grad()
def test_the_cache_equals_the_full_forward_at_each_position(kind, pieces):
    model, ids = model_of(**kind), some_ids(2, 17)
    cache, parts, whole = KVCache(model, batch=2), [], model(ids)
    for piece in ids.split(pieces, dim=1):
        parts.append(model(piece, cache))
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config", [GREEDY, SamplingConfig(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2)]
)
def test_text_with_the_cache_equals_text_without(kind, config):
    model, prompt = model_of(**kind), some_ids(1, 4)[0].tolist()
    assert list(generate(model, prompt, config)) == list(generate(model, prompt, config, use_cache=False))


def test_with_the_cache_each_new_token_is_computed_alone():
    model, seen = model_of(), []
    model.token_embedding.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[1])
    )
    list(generate(model, [1, 2, 3, 4], dataclasses.replace(GREEDY, max_new_tokens=5)))
    assert seen == [4, 1, 1, 1, 1]


def test_a_cache_has_the_memory_that_was_promised():
    cache = KVCache(model_of(), batch=3, max_seq_len=19)
    assert [layer.keys.shape for layer in cache.layers] == [(3, 2, 19, 4)] * 3
    assert cache.length == 0


# The filters.


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "ours, theirs, values",
    [
        (keep_top_k, TopKLogitsWarper, [1, 2, 7, 40, 41, 999]),
        (keep_top_p, TopPLogitsWarper, [1e-9, 0.05, 0.3, 0.9, 0.999]),
        (keep_min_p, MinPLogitsWarper, [1e-9, 0.02, 0.3, 0.99]),
    ],
)
def test_filters_keep_what_those_of_transformers_keep(ours, theirs, values, seed):
    logits = 3 * noise(5, 41, seed=seed)
    for value in values:
        expected = theirs(value)(torch.zeros(5, 1, dtype=torch.long), logits.clone())
        assert torch.equal(ours(logits, value), expected), value
        assert (ours(logits, value) > -float("inf")).any(dim=-1).all()


@pytest.mark.parametrize("penalty", [1.0, 1.3, 5.0, 0.5])
def test_repetition_penalty_equals_that_of_transformers(penalty):
    logits, history = 3 * noise(3, 41), torch.tensor([[0, 7, 7], [40, 1, 2], [5, 5, 5]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
    assert torch.equal(penalize_repetition(logits, history, penalty), expected)


def test_a_penalty_makes_no_seen_token_likelier_whatever_the_sign_of_its_score():
    logits, history = torch.tensor([[4.0, -4.0, 0.0, 1.0]]), torch.tensor([[0, 1, 2]])
    assert penalize_repetition(logits, history, 2.0).tolist() == [[2.0, -8.0, 0.0, 1.0]]
    assert logits.tolist() == [[4.0, -4.0, 0.0, 1.0]]


def test_top_p_keeps_the_only_token_it_could_take():
    certain = torch.tensor([[-50.0, 90.0, -50.0]])
    for p in (1e-9, 0.5, 0.999):
        assert keep_top_p(certain, p).argmax() == 1 and keep_top_p(certain, p)[0, 1] == 90


def draws(logits: torch.Tensor, config: SamplingConfig, times: int = 30_000, history=None) -> torch.Tensor:
    """Return how often each token is drawn."""
    generator = torch.Generator().manual_seed(config.seed)
    many = logits.expand(times, -1)
    history = history.expand(times, -1) if history is not None else None
    return sample_next(many, config, history, generator).bincount(minlength=logits.shape[-1]) / times


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=1.0),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=2.0),
        SamplingConfig(temperature=1.0, top_k=4),
        SamplingConfig(temperature=1.5, top_p=0.7),
        SamplingConfig(temperature=1.5, min_p=0.2),
        SamplingConfig(temperature=1.0, repetition_penalty=3.0),
        SamplingConfig(temperature=2.0, top_k=8, top_p=0.8, min_p=0.15, repetition_penalty=1.5),
    ],
)
def test_draws_follow_the_distribution_of_transformers_chain(config):
    logits, history = 2 * noise(1, 11), torch.tensor([[0, 3, 3, 9]])
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
            TemperatureLogitsWarper(config.temperature),
        ]
    )
    chain += [TopKLogitsWarper(config.top_k)] if config.top_k else []
    chain += [TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    chain += [MinPLogitsWarper(config.min_p)] if config.min_p else []
    expected = chain(history, logits.clone()).softmax(dim=-1)[0]
    shares = draws(logits, config, history=history)
    assert (shares - expected).abs().max() < 0.012
    assert (shares[expected == 0] == 0).all()


def test_temperature_below_one_sharpens_and_above_one_flattens():
    top = [draws(noise(1, 7), SamplingConfig(temperature=t)).max().item() for t in (0.3, 1.0, 3.0)]
    assert top[0] > top[1] + 0.1 > top[2] + 0.2


def test_temperature_zero_and_top_k_one_take_the_likeliest():
    logits = noise(6, 11)
    for config in (
        GREEDY,
        SamplingConfig(temperature=1.0, top_k=1),
        SamplingConfig(temperature=1.0, top_p=1e-9),
        SamplingConfig(temperature=1e-6),
        dataclasses.replace(GREEDY, top_k=3, top_p=0.5, min_p=0.5),
    ):
        assert torch.equal(sample_next(logits, config), logits.argmax(dim=-1)), config


def test_sampling_leaves_the_scores_it_was_given_alone():
    logits = noise(2, 11)
    sample_next(
        logits,
        SamplingConfig(top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2.0),
        torch.tensor([[1], [2]]),
    )
    assert torch.equal(logits, noise(2, 11))


# The loop.


def test_greedy_text_is_the_likeliest_token_again_and_again():
    model, ids = model_of(), some_ids(1, 5)
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    config = dataclasses.replace(GREEDY, max_new_tokens=12)
    assert list(generate(model, some_ids(1, 5)[0].tolist(), config)) == ids[0, 5:].tolist()


def test_every_token_of_the_prompt_counts_and_none_is_repeated():
    model, prompt = model_of(), some_ids(1, 20)[0].tolist()
    text = list(generate(model, prompt, GREEDY))
    assert len(text) == 9  # 29 tokens of context, 20 of prompt
    others = [
        list(generate(model, [*prompt[:i], (prompt[i] + 1) % 53, *prompt[i + 1 :]], GREEDY))
        for i in range(20)
    ]
    assert sum(other != text for other in others) > 15


@pytest.mark.parametrize("length", [0, 29, 30])
def test_a_prompt_that_cannot_be_continued_is_refused_and_not_cut(length):
    with pytest.raises(ValueError, match=f"{length} tokens"):
        next(generate(model_of(), [1] * length, GREEDY))
    with pytest.raises(ValueError, match=f"{length} tokens"):
        generate_batch(model_of(), torch.ones(2, length, dtype=torch.long), GREEDY)


def test_text_ends_before_the_end_token_and_where_the_context_is_full():
    model, prompt = model_of(), [5, 6, 7]
    text = list(generate(model, prompt, GREEDY))
    assert len(text) == 26
    stop = text[4]
    assert list(generate(model, prompt, GREEDY, stop_ids=[stop, 9999])) == text[: text.index(stop)]
    assert list(generate(model, prompt, GREEDY, stop_ids=[text[0]])) == []
    assert list(generate(model, prompt, dataclasses.replace(GREEDY, max_new_tokens=2))) == text[:2]


def test_rows_of_a_batch_continue_as_they_would_alone():
    model, prompts = model_of(), some_ids(3, 6)
    together = torch.stack(list(generate_batch(model, prompts, GREEDY)), dim=1)
    alone = [list(generate(model, row.tolist(), GREEDY)) for row in prompts]
    assert together.tolist() == alone and together.shape == (3, 23)


def test_one_seed_gives_one_text_and_no_chance_of_others_is_used_up():
    model, state = model_of(), torch.get_rng_state()
    config = SamplingConfig(temperature=2.0, seed=3)
    texts = [list(generate(model, [1], dataclasses.replace(config, seed=seed))) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stop", ["at the end", "at a token", "given up", "by an error"])
def test_the_models_mode_is_left_as_it_was_found(training, stop):
    model = model_of(dropout=0.5).train(training)
    stream = generate(model, [1, 2], GREEDY, stop_ids=range(53) if stop == "at a token" else ())
    if stop == "given up":
        assert len(list(islice(stream, 3))) == 3
        stream.close()
    elif stop == "by an error":
        next(stream)
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
        del stream
    else:
        list(stream)
    assert model.training is training and all(part.training is training for part in model.modules())


def test_generation_uses_no_dropout_even_in_training_mode():
    model = model_of(dropout=0.5)
    text = list(generate(model, [1, 2], GREEDY))
    assert list(generate(model.train(), [1, 2], GREEDY)) == text


def test_tokens_arrive_one_by_one_and_gradients_work_in_between():
    model, calls = model_of(), []
    model.token_embedding.register_forward_hook(lambda *_: calls.append(1))
    stream = generate(model, [1, 2, 3], GREEDY)
    next(stream)
    assert len(calls) == 1 and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    next(stream)
    assert len(calls) == 2
    model(some_ids(1, 3)).sum().backward()


def test_a_model_in_bfloat16_speaks():
    assert len(list(generate(model_of().bfloat16(), [1, 2], SamplingConfig()))) == 27


# Ids become text.


def streamed(pieces: list[bytes], stops=()) -> list[str]:
    """Return what `stream_text` says when these pieces are the tokens."""
    tokens = SimpleNamespace(vocab=dict(enumerate(pieces)))
    return list(stream_text(tokens, range(len(pieces)), stops))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="aé✓🙂\n", max_size=30),
    st.lists(st.integers(0, 100), max_size=12),
    st.text(alphabet="aé✓🙂\n", max_size=4),
)
def test_streamed_text_is_the_text_up_to_the_stop_string_however_it_is_cut(text, places, stop):
    expected = text.split(stop)[0] if stop else text
    assert "".join(streamed(cut(text.encode(), places), [stop])) == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=12))
def test_any_bytes_are_shown_as_decoding_them_at_once_would(data, places):
    assert "".join(streamed(cut(data, places))) == data.decode("utf-8", errors="replace")


def test_a_letter_spread_over_tokens_is_said_once_it_is_whole():
    emoji = "🙂".encode()
    assert streamed([b"a", emoji[:1], emoji[1:3], emoji[3:] + b"b"]) == ["a", "🙂b"]


def test_text_is_said_as_soon_as_no_stop_string_can_contain_it():
    arrived = []

    def tokens():
        for byte in b"one two END three":
            arrived.append(byte)
            yield byte

    stream = stream_text(BYTES, tokens(), ["END"])
    assert next(stream) == "o" and bytes(arrived) == b"one"
    assert "o" + "".join(stream) == "one two "
    assert bytes(arrived) == b"one two END"  # nothing behind the stop string is even computed


@pytest.mark.parametrize(
    "stops, expected",
    [(["two", "one"], ""), (["wo", "two"], "one "), (["zzz"], "one two"), ([""], "one two")],
)
@pytest.mark.parametrize("pieces", [[b"one two"], [b"one t", b"wo"], [bytes([b]) for b in b"one two"]])
def test_of_several_stop_strings_the_earliest_in_the_text_counts(stops, expected, pieces):
    assert "".join(streamed(pieces, stops)) == expected


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_an_impossible_setting_is_refused_in_one_line_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        SamplingConfig(**changes)
    assert "\n" not in str(caught.value)

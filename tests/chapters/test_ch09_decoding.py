"""Chapter 9: a wide search finds the likeliest text, a draft changes the speed alone, and probabilities are told."""

import dataclasses
from itertools import islice, product

import pytest
import torch
from transformers import AutoModelForCausalLM

from chapters.ch07_gpt_model import GPT
from chapters.ch09_config import DecodingConfig
from chapters.ch09_decoding import (
    Acceptance,
    Beam,
    beam_search,
    generate_with_logprobs,
    score,
    speculative_generate,
)
from chapters.ch09_inference import KVCache, SamplingConfig, generate
from tests.chapters.small_gpt import model_of

GREEDY = SamplingConfig(temperature=0)
PLAIN = SamplingConfig(temperature=1.0)


def log_softmax_of_all(model: GPT, ids: list[int]) -> torch.Tensor:
    """Return the log-probability of each token of a text but the first, by PyTorch's own function."""
    with torch.no_grad():
        table = torch.nn.functional.log_softmax(model(torch.tensor([ids]))[0], dim=-1)
    return table[range(len(ids) - 1), ids[1:]]


# Probabilities.


@pytest.mark.parametrize("kind", [{}, {"sliding_window": 5}])
def test_a_text_is_scored_as_the_full_forward_scores_it(kind):
    model, ids = model_of(dropout=0.5, **kind), [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]
    torch.testing.assert_close(score(model.train(), ids), log_softmax_of_all(model.eval(), ids))
    assert score(model, ids).shape == (9,)


def test_a_text_too_short_or_too_long_to_be_scored_is_refused():
    assert score(model_of(), [1] * 30).shape == (29,)
    for length in (0, 1):
        with pytest.raises(ValueError, match=f"{length} tokens"):
            score(model_of(), [1] * length)
    with pytest.raises(ValueError, match="30 tokens exceed"):
        score(model_of(), [1] * 31)


@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(temperature=1.7, top_k=9, repetition_penalty=1.3, seed=5)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_each_token_comes_with_the_models_own_probability(config, use_cache):
    model, prompt = model_of(), [5, 6, 7]
    told = list(generate_with_logprobs(model, prompt, config, use_cache=use_cache))
    ids = [token for token, _ in told]
    assert ids == list(generate(model, prompt, config)) and len(ids) == 26
    expected = log_softmax_of_all(model, [*prompt, *ids])[2:]
    torch.testing.assert_close(torch.tensor([logprob for _, logprob in told]), expected, rtol=1e-4, atol=1e-4)


def test_tokens_with_probabilities_arrive_one_by_one_and_end_before_a_stop_id():
    model, calls = model_of(), []
    model.token_embedding.register_forward_hook(lambda *_: calls.append(1))
    stream = generate_with_logprobs(model, [1, 2, 3], PLAIN)
    assert len(list(islice(stream, 3))) == len(calls) == 3
    ids = list(generate(model, [1, 2, 3], PLAIN))
    stopped = [token for token, _ in generate_with_logprobs(model, [1, 2, 3], PLAIN, stop_ids=[ids[4]])]
    assert stopped == ids[: ids.index(ids[4])]


# Search.


def every_text(model: GPT, prompt: list[int], steps: int, stops: set[int], penalty: float) -> list[Beam]:
    """Return every continuation there is, best first: the plainest search that cannot miss anything."""
    found = []
    for length in range(1, steps + 1):
        texts = torch.tensor(list(product(range(model.config.vocab_size), repeat=length)))
        ids = torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], dim=1)
        with torch.no_grad():
            table = torch.nn.functional.log_softmax(model(ids)[:, len(prompt) - 1 : -1], dim=-1)
        totals = table.gather(2, texts[..., None]).sum(dim=(1, 2)).tolist()
        for text, total in zip(texts.tolist(), totals, strict=True):
            ended = text[-1] in stops
            if not stops & set(text[:-1]) and (ended or length == steps):
                found.append(Beam(text[: length - ended], total, total / length**penalty))
    return sorted(found, key=lambda beam: -beam.score)


def assert_same_beams(ours: list[Beam], expected: list[Beam]) -> None:
    assert [beam.ids for beam in ours] == [beam.ids for beam in expected]
    for field in ("log_probability", "score"):
        torch.testing.assert_close(
            torch.tensor([getattr(beam, field) for beam in ours]),
            torch.tensor([getattr(beam, field) for beam in expected]),
            rtol=1e-4, atol=1e-5,
        )


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("stops", [set(), {2}, {0, 4}])
def test_a_search_as_wide_as_all_texts_finds_what_trying_all_finds(penalty, stops):
    model, prompt = model_of(vocab_size=5, num_layers=1), [3, 1, 1]
    expected = every_text(model, prompt, 4, stops, penalty)
    found = beam_search(model, prompt, 5**4, 4, stops, penalty)
    assert_same_beams(found, expected)
    assert len(found) == 625 if not stops else len(found) > 100


@pytest.mark.parametrize("beams", [2, 3, 7])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_narrow_search_is_that_of_transformers(beams, penalty, seed, tmp_path):
    model, prompt = model_of(seed, std=0.25), [5, 9, 2]
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    stops = [7, 30, 41, 12, 0]
    again = theirs.generate(
        torch.tensor([prompt]), num_beams=beams, num_return_sequences=beams, do_sample=False, max_new_tokens=12,
        length_penalty=penalty, early_stopping="never", eos_token_id=stops, pad_token_id=52,
        return_dict_in_generate=True, output_scores=True,
    )
    found = beam_search(model, prompt, beams, 12, stops, penalty)
    for beam, row, rated in zip(found, again.sequences, again.sequences_scores, strict=True):
        text = row[3:].tolist()
        ends = [at for at, token in enumerate(text) if token in stops]
        assert beam.ids == (text[: ends[0]] if ends else text)
        assert beam.score == pytest.approx(rated.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_ranked_by_probability_is_the_greedy_text(seed):
    model, prompt = model_of(seed), [4, 4, 1]
    greedy = list(generate(model, prompt, GREEDY))
    assert [beam.ids for beam in beam_search(model, prompt, 1, length_penalty=0)] == [greedy]
    stops = {greedy[6]}
    expected = list(generate(model, prompt, GREEDY, stops))
    assert [beam.ids for beam in beam_search(model, prompt, 1, 250, stops, length_penalty=0)] == [expected]


@pytest.mark.parametrize("prompt", [[7], [7] * 3, list(range(20))])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.7])
def test_the_length_penalty_counts_new_tokens_alone_and_scores_are_log_probabilities(prompt, penalty):
    model, stop = model_of(std=0.25), 7
    found = beam_search(model, prompt, 4, 6, [stop], penalty)
    for beam in found:
        ended = len(beam.ids) < 6
        ids = [*prompt, *beam.ids, *[stop] * ended]
        total = log_softmax_of_all(model, ids)[len(prompt) - 1 :].sum().item()
        assert beam.log_probability == pytest.approx(total, abs=1e-4)
        assert beam.score == pytest.approx(total / (len(beam.ids) + ended) ** penalty, abs=1e-4)
        assert stop not in beam.ids
    assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)


def test_a_search_goes_on_while_a_longer_text_could_still_be_better(monkeypatch):
    model = model_of(vocab_size=2, max_seq_len=40)
    first, later = torch.tensor([-0.145, -2.0]), torch.tensor([-50.0, 0.0])
    monkeypatch.setattr(model, "forward", lambda ids, _: (first if ids.shape[1] == 3 else later).expand(1, 1, 2))
    monkeypatch.setattr(KVCache, "select", lambda *_: None)
    assert beam_search(model, [1, 1, 1], 1, 10, [0])[0].ids == []
    assert beam_search(model, [1, 1, 1], 1, 30, [0])[0].ids == [1] * 30


def test_a_search_ends_where_the_context_ends_and_leaves_the_model_as_it_was():
    model = model_of(dropout=0.5).train()
    found = beam_search(model, [1] * 20, 3)
    assert [len(beam.ids) for beam in found] == [9] * 3 and model.training
    assert found == beam_search(model, [1] * 20, 3)


def test_a_search_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="beams is 0"):
        beam_search(model_of(), [1], 0)
    for length in (0, 29):
        with pytest.raises(ValueError, match=f"{length} tokens"):
            beam_search(model_of(), [1] * length, 2)


# Guessing ahead.


def nearly(model: GPT, noise: float) -> GPT:
    """Return a copy of a model whose numbers are a little off: it guesses well, and not always right."""
    torch.manual_seed(5)
    copy = GPT(model.config).eval()
    copy.load_state_dict(model.state_dict())
    for parameter in copy.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return copy


@pytest.mark.parametrize("kind", [{}, {"sliding_window": 5}])
@pytest.mark.parametrize("draft_tokens", [1, 3, 40])
@pytest.mark.parametrize("noise", [0.0, 0.03, 3.0])
def test_greedy_text_with_a_draft_is_that_of_the_model_alone(kind, draft_tokens, noise):
    model = model_of(**kind)
    draft = nearly(model, noise)
    for prompt, penalty in (([5], 1.4), ([5, 9, 2, 7, 11, 3, 3], 1.0)):
        config = SamplingConfig(temperature=0, repetition_penalty=penalty)
        text = list(generate(model, prompt, config))
        assert list(speculative_generate(model, draft, prompt, config, (), draft_tokens)) == text
        stops = {text[8]}
        expected = list(generate(model, prompt, config, stops))
        assert list(speculative_generate(model, draft, prompt, config, stops, draft_tokens)) == expected


def test_where_the_context_of_the_draft_ends_the_model_goes_on_alone():
    model = model_of()
    for context in (3, 12):
        draft = model_of(seed=3, max_seq_len=context, num_layers=1)
        for prompt in ([5], [5] * 12):
            text = list(speculative_generate(model, draft, prompt, GREEDY))
            assert text == list(generate(model, prompt, GREEDY))


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how often counts at least so far from the expected ones come about by chance (Pearson's chi-square).

    Cells with fewer than five expected are taken together, as the test wants it.
    """
    order = expected.sort(descending=True).indices
    counts, expected = counts[order].double(), expected[order].double()
    many = int((expected >= 5).sum())
    if many < len(expected):
        counts = torch.cat([counts[:many], counts[many:].sum()[None]])
        expected = torch.cat([expected[:many], expected[many:].sum()[None].clamp(min=1e-9)])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), chi_square / 2).item()


def exact_probabilities(model: GPT, prompt: list[int], config: SamplingConfig, steps: int) -> torch.Tensor:
    """Return the probability of each text of `steps` tokens, worked out token by token without any drawing."""
    from transformers.generation import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper

    texts, probs = torch.tensor([prompt]), torch.ones(1)
    for _ in range(steps):
        with torch.no_grad():
            logits = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)(texts, model(texts)[:, -1])
        logits = logits / config.temperature
        logits = TopKLogitsWarper(config.top_k)(texts, logits) if config.top_k else logits
        probs = (probs[:, None] * logits.softmax(dim=-1)).flatten()
        new = torch.arange(model.config.vocab_size).repeat(len(texts))[:, None]
        texts = torch.cat([texts.repeat_interleave(model.config.vocab_size, dim=0), new], dim=1)
    return probs


@pytest.mark.parametrize(
    ("config", "draft_tokens"),
    [(PLAIN, 2), (SamplingConfig(temperature=1.4, top_k=4, repetition_penalty=1.5), 1)],
)
def test_text_drawn_with_a_draft_follows_the_models_probabilities(config, draft_tokens):
    size = dict(vocab_size=5, d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=8)
    model, draft, draws = model_of(1, 0.7, **size), model_of(2, 0.7, **size), 1200
    expected = exact_probabilities(model, [1, 2], config, 3)
    texts, acceptance = [], Acceptance()
    for seed in range(draws):
        settings = dataclasses.replace(config, seed=seed, max_new_tokens=3)
        texts.append(list(speculative_generate(model, draft, [1, 2], settings, (), draft_tokens, acceptance)))
    places = (torch.tensor(texts) * torch.tensor([25, 5, 1])).sum(dim=1)
    assert p_value(places.bincount(minlength=125), expected * draws) > 1e-3
    assert p_value(places.bincount(minlength=125), exact_probabilities(draft, [1, 2], config, 3) * draws) < 1e-9
    assert 0.2 < acceptance.rate < 0.9


@torch.no_grad()
def test_guesses_are_accepted_as_often_as_the_two_distributions_overlap():
    model, draft, prompt = model_of(1, 0.25), model_of(2, 0.25), [5, 9]
    p, q = (each(torch.tensor([prompt]))[0, -1].softmax(dim=-1) for each in (model, draft))
    acceptance, draws = Acceptance(), 800
    for seed in range(draws):
        stream = speculative_generate(model, draft, prompt, dataclasses.replace(PLAIN, seed=seed), (), 1, acceptance)
        next(stream)
    assert acceptance.guessed == acceptance.passes == draws
    assert acceptance.rate == pytest.approx(torch.minimum(p, q).sum().item(), abs=0.06)


def test_a_draft_that_is_the_model_itself_is_always_right_and_saves_most_passes():
    model = model_of()
    for config in (GREEDY, PLAIN):
        text = list(speculative_generate(model, model, [1, 2, 3, 4], config, (), 4, acceptance := Acceptance()))
        assert len(text) == 25 and acceptance == Acceptance(guessed=20, accepted=20, passes=5)


def test_the_model_reads_each_text_once_and_rejected_guesses_are_taken_back():
    model, caches, read = model_of(), [], []
    draft, acceptance = nearly(model, 0.05), Acceptance()
    model.token_embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    made = KVCache.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "__init__", lambda self, *a, **k: (made(self, *a, **k), caches.append(self))[0])
        stream, text = speculative_generate(model, draft, [5, 9], GREEDY, (), 3, acceptance), []
        for token in stream:
            text.append(token)
            assert [cache.length < 2 + len(text) + 4 for cache in caches] == [True, True]
    assert read[0] == 2 + 3 and max(read[1:]) == 4 and len(read) == acceptance.passes
    assert sum(read) == 1 + acceptance.guessed + acceptance.passes
    assert 0 < acceptance.accepted < acceptance.guessed
    assert caches[0].length == 28 and caches[1].length <= 28 and len(text) == 27


def test_one_seed_gives_one_text_with_a_draft_and_the_models_are_left_as_they_were():
    model, draft = model_of(dropout=0.5).train(), model_of(seed=3, dropout=0.5)
    state, texts = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        texts.append(list(speculative_generate(model, draft, [1], dataclasses.replace(PLAIN, seed=seed))))
    assert texts[0] == texts[1] != texts[2] and torch.equal(state, torch.get_rng_state())
    stream = speculative_generate(model, draft, [1], PLAIN)
    next(stream)
    stream.close()
    assert model.training and not draft.training


def test_a_draft_that_cannot_guess_is_refused():
    with pytest.raises(ValueError, match="54 tokens, the model 53"):
        speculative_generate(model_of(), model_of(vocab_size=54), [1], GREEDY)
    with pytest.raises(ValueError, match="draft_tokens is 0"):
        speculative_generate(model_of(), model_of(), [1], GREEDY, draft_tokens=0)
    for length in (0, 29):
        with pytest.raises(ValueError, match=f"{length} tokens"):
            speculative_generate(model_of(), model_of(), [1] * length, GREEDY)


# Settings.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beams": -1}, "beams is -1"),
        ({"beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"draft": "x", "draft_tokens": 0}, "draft_tokens is 0"),
        ({"beams": 2, "draft": "x"}, "--beams and --draft"),
        ({"draft": "x", "logprobs": True}, "--draft and --logprobs"),
        ({"length_penalty": 0.5}, "--length-penalty is a setting of --beams"),
        ({"beams": 2, "draft_tokens": 3}, "--draft-tokens is a setting of --draft"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        DecodingConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("way", "given", "words"),
    [
        ({"beams": 3}, ["max_new_tokens", "temperature"], "--temperature has no meaning beside --beams"),
        ({"beams": 3}, ["min_p", "seed"], "--min-p"),
        ({"beams": 3}, ["stop"], "--stop"),
        ({"beams": 3}, ["count"], "--count"),
        ({"logprobs": True}, ["stop"], "--stop has no meaning beside --logprobs"),
    ],
)
def test_what_a_way_of_decoding_would_not_heed_is_refused(way, given, words):
    with pytest.raises(ValueError, match=words):
        DecodingConfig(**way).check_beside(given)
    DecodingConfig().check_beside(given)
    DecodingConfig(draft="x").check_beside(given)

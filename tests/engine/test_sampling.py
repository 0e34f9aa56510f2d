"""Sampling: the settings and the probabilities of chapter 9, and draws that follow them."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chapters import ch09_config, ch09_inference
from engine.sampling import (
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample_next,
    token_probabilities,
)

V = 53


def scores_of(seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, V).astype(np.float32)


def test_settings_are_those_of_chapter_9_with_the_same_defaults():
    def fields(config):
        return [(field.name, field.type, field.default) for field in dataclasses.fields(config)]

    assert fields(SamplingConfig) == fields(ch09_config.SamplingConfig)


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_k", 1.5),
    ("top_p", 0.0), ("top_p", 1.01), ("min_p", 1.0), ("min_p", -0.1), ("repetition_penalty", 0.0),
    ("max_new_tokens", 0), ("seed", -1), ("seed", 1 << 63), ("top_p", "1"), ("seed", True), ("temperature", None),
])  # fmt: skip
def test_what_cannot_be_set_is_refused_with_its_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*: it must be") as caught:
        SamplingConfig(**{name: value})
    assert "\n" not in str(caught.value)


OPTIONS = [
    {}, {"temperature": 0.0}, {"temperature": 1.7}, {"top_k": 1}, {"top_k": 7}, {"top_k": 500}, {"top_p": 0.3},
    {"top_p": 1e-9}, {"top_p": 0.95}, {"min_p": 0.05}, {"min_p": 0.99}, {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7}, {"repetition_penalty": 1.3, "temperature": 0.0},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
def test_each_token_has_the_probability_that_chapter_9_gives_it(options, seed):
    scores, history = scores_of(seed), np.random.default_rng(seed).integers(0, V, 9)
    ours = token_probabilities(scores, SamplingConfig(**options), history)
    theirs = ch09_inference.token_probabilities(
        torch.from_numpy(scores)[None], ch09_config.SamplingConfig(**options), torch.from_numpy(history)[None]
    )[0].numpy()
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert ours.sum() == pytest.approx(1)


def test_among_equal_scores_a_rank_and_a_share_leave_all_and_a_mass_the_first():
    kept = {name: np.flatnonzero(token_probabilities(np.zeros(4, np.float32), SamplingConfig(**{name: value}))).tolist()
            for name, value in (("top_k", 2), ("top_p", 0.5), ("min_p", 0.9))}
    assert kept == {"top_k": [0, 1, 2, 3], "top_p": [0, 1], "min_p": [0, 1, 2, 3]}
    np.testing.assert_array_equal(np.isfinite(keep_min_p(np.log([0.49, 1, 0.5]), 0.5)), [False, True, True])


def test_the_highest_point_falls_on_a_token_though_rounding_leaves_the_sum_below_1():
    config, highest = SamplingConfig(temperature=1.0, top_k=9), SimpleNamespace(random=lambda: 1 - 2**-53)
    for seed in range(40):
        probs = token_probabilities(scores_of(seed), config)
        assert probs[sample_next(scores_of(seed), config, dice=highest)] > 0


def test_draws_follow_the_probabilities_and_never_take_what_was_cut():
    scores, config, dice = scores_of(1), SamplingConfig(temperature=1.3, top_k=5), np.random.default_rng(0)
    probs, draws = token_probabilities(scores, config), 20_000
    counts = np.bincount([sample_next(scores, config, dice=dice) for _ in range(draws)], minlength=V)
    assert (counts[probs == 0] == 0).all() and np.abs(counts / draws - probs).max() < 0.015


def test_one_seed_draws_the_same_again():
    scores = scores_of(2)
    drawn = [[sample_next(scores, SamplingConfig(), dice=dice) for _ in range(20)]
             for dice in (np.random.default_rng(seed) for seed in (4, 4, 5))]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_any_temperature_above_0_leaves_probabilities(temperature):
    with np.errstate(over="raise"):
        probs = token_probabilities(scores_of(3), SamplingConfig(temperature=temperature))
    assert probs.sum() == pytest.approx(1) and probs[scores_of(3).argmax()] == probs.max()


def test_scores_that_were_forbidden_are_never_drawn_and_broken_ones_are_refused():
    scores = np.full(V, -np.inf, np.float32)
    scores[7] = -1e30
    assert sample_next(scores, SamplingConfig()) == 7
    lowest = SimpleNamespace(random=lambda: 0.0)
    assert sample_next(scores, SamplingConfig(), dice=lowest) == 7
    for broken in (np.nan, np.inf):
        scores[3] = broken
        with pytest.raises(ValueError, match="not finite"):
            sample_next(scores, SamplingConfig(temperature=0.0))


def test_the_scores_themselves_are_left_alone():
    scores, history = scores_of(4), np.arange(9)
    for change in (lambda x: sample_next(x, SamplingConfig(**OPTIONS[-1]), history), lambda x: keep_top_k(x, 3),
                   lambda x: keep_top_p(x, 0.5), lambda x: penalize_repetition(x, history, 1.3)):
        change(before := scores.copy())
        np.testing.assert_array_equal(scores, before)


def test_what_is_switched_off_cuts_nothing_and_no_history_no_score():
    assert (token_probabilities(np.array([0, -60, -90]), SamplingConfig(temperature=1.0)) > 0).all()
    plain, penalty = (token_probabilities(scores_of(5), SamplingConfig(repetition_penalty=x)) for x in (1.0, 1.5))
    np.testing.assert_array_equal(plain, penalty)

"""Chapter 8, float16: small slopes live, an overflow costs a step and nothing else, and only what it cannot explain
ends a run.

All of it runs on a processor: PyTorch's float16 and its scaler are the same there, only slow.
"""

import json
import math

import pytest
import torch

from chapters.ch08_checkpoint import read_checkpoint
from chapters.ch08_scale import autocast, choose_dtype, loss_scaler
from chapters.ch08_training import Trainer

CPU = torch.device("cpu")
KINDS = [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"optimizer": "muon", "grad_accum_steps": 3, "batch_size": 2}]

# With this scale every gradient of the small model overflows.
TOO_LARGE = 2.0**40


def set_scale(trainer: Trainer, scale: float, **changes) -> Trainer:
    """Give a trainer's scaler another scale."""
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": scale} | changes)
    return trainer


def kept(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return copies of all that a step moves: the weights, and what the optimizers remember."""
    state = {f"weight {name}": p for name, p in trainer.model.named_parameters()}
    for i, optimizer in enumerate(trainer.optimizers):
        for number, values in optimizer.state_dict()["state"].items():
            state |= {f"optimizer {i}.{number}.{name}": value for name, value in values.items()}
    return {name: value.detach().clone() for name, value in state.items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_scaler_works_for_float16_alone():
    assert loss_scaler(CPU, torch.float16).is_enabled() and choose_dtype("float16", CPU) == torch.float16
    assert not any(loss_scaler(CPU, dtype).is_enabled() for dtype in (torch.float32, torch.bfloat16))
    assert choose_dtype("auto", CPU) != torch.float16
    with autocast(CPU, torch.float16):
        assert (torch.ones(3, 5) @ torch.ones(5, 2)).dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_float16_learns_what_float32_learns(trainer, kind):
    half, single = (trainer(dtype=dtype, max_steps=30, **kind) for dtype in ("float16", "float32"))
    for _ in range(30):
        ours, theirs = half.train_step(), single.train_step()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)
        # A length of scaled gradients would be 65536 times as large.
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=0.2)
    assert half.evaluate() == pytest.approx(single.evaluate(), rel=5e-3)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32} and half.scaler.get_scale() == 2**16


def test_what_is_clipped_is_the_gradient_and_not_its_scaled_copy(trainer):
    moved = []
    for dtype in ("float16", "float32"):
        ours = trainer(dtype=dtype, optimizer="muon", grad_clip=0.5)
        for optimizer in ours.optimizers:
            optimizer.register_step_pre_hook(lambda optimizer, *_: moved.append(
                [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]))
        ours.train_step()
    for half, single in zip(moved[:2], moved[2:], strict=True):
        torch.testing.assert_close(half, single, rtol=3e-2, atol=1e-4)
    lengths = [math.sqrt(sum(g.square().sum().item() for part in moved[i : i + 2] for g in part)) for i in (0, 2)]
    assert lengths == pytest.approx([0.5, 0.5], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_passes_the_batch_over_and_halves_the_scale(trainer, kind):
    ours = set_scale(trainer(dtype="float16", **kind), TOO_LARGE)
    before = kept(ours)
    told = ours.train_step()
    assert told["gradient_norm"] is None and math.isfinite(told["loss"])
    assert same(kept(ours), before) and ours.scaler.get_scale() == TOO_LARGE / 2
    assert ours.step == told["step"] == 1 and all(p.grad is None for p in ours.model.parameters())

    # The next step is one of the schedule, as if nothing had been.
    set_scale(ours, 2.0**10)
    other = trainer("other", dtype="float32", **kind)
    other.step = 1
    told, expected = ours.train_step(), other.train_step()
    assert told["step"] == 2 and told["learning_rate"] == expected["learning_rate"]
    assert told["loss"] == pytest.approx(expected["loss"], rel=1e-3) and not same(kept(ours), before)


@pytest.mark.parametrize("number", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["blocks.1.attention.query.weight", "final_norm.weight"])
def test_no_optimizer_moves_where_the_numbers_of_the_other_overflowed(trainer, name, number):
    ours = trainer(dtype="float16", optimizer="muon")
    ours.train_step()
    before = kept(ours)
    bad = ours.model.get_parameter(name).register_hook(lambda gradient: gradient * number)
    assert ours.train_step()["gradient_norm"] is None
    assert same(kept(ours), before) and ours.scaler.get_scale() == 2**15
    bad.remove()
    assert ours.train_step()["gradient_norm"] and not same(kept(ours), before)


def test_the_scale_finds_its_way_down_and_up_again(trainer):
    ours = set_scale(trainer(dtype="float16", max_steps=40), TOO_LARGE, growth_interval=4)
    scales = []
    for _ in range(40):
        ours.train_step()
        scales.append(ours.scaler.get_scale())
    assert scales[:3] == [TOO_LARGE / 2, TOO_LARGE / 4, TOO_LARGE / 8]
    ratios = {b / a for a, b in zip(scales, scales[1:], strict=False)}
    assert ratios == {0.5, 1.0, 2.0} and 2**10 < scales[-1] < 2**25


def test_a_passed_over_step_leaves_a_log_that_every_reader_of_json_can_read(trainer, tmp_path):
    ours = set_scale(trainer(dtype="float16", max_steps=2, eval_every=1), TOO_LARGE)
    assert ours.train()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [line.get("gradient_norm", "none yet") for line in lines] == ["none yet", None, None]


# What the scale cannot explain.


@pytest.mark.parametrize("scale, number, words", [
    (2.0**16, math.nan, "the output of blocks.0.attention.query"),
    (1.0, None, "the gradient of lm_head.weight"),
])
def test_numbers_that_are_none_whatever_the_scale_end_the_run_in_one_line(trainer, scale, number, words):
    ours = set_scale(trainer(dtype="float16", tied=False), scale)
    before = kept(ours)
    if number is None:
        ours.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    else:
        ours.model.blocks[0].attention.query.register_forward_hook(lambda layer, given, out: out * number)
    with pytest.raises(ValueError, match="exploded at step 1") as caught:
        ours.train_step()
    line = str(caught.value)
    assert words in line and "--dtype float32" in line and "\n" not in line and same(kept(ours), before)


def test_a_gradient_that_never_becomes_a_number_ends_the_run_once_the_scale_is_down_to_one(trainer):
    ours = set_scale(trainer(dtype="float16", max_steps=99), 8.0)
    ours.model.final_norm.weight.register_hook(lambda gradient: gradient * math.nan)
    for scale in (4, 2, 1):
        assert ours.train_step()["gradient_norm"] is None and ours.scaler.get_scale() == scale
    with pytest.raises(ValueError, match="exploded at step 4"):
        ours.train_step()


# Stopped and resumed.


@pytest.mark.parametrize("stop", [2, 5, 20])
def test_a_resumed_run_has_the_scale_and_the_weights_of_an_undisturbed_one(trainer, stop):
    def begun(name: str) -> Trainer:
        ours = trainer(name, dtype="float16", optimizer="muon", max_steps=30, dropout=0.2)
        torch.manual_seed(4)
        return set_scale(ours, 2.0**24, growth_interval=4)

    def steps(ours: Trainer, count: int) -> list[dict]:
        return [ours.train_step() for _ in range(count)]

    whole, broken = begun("whole"), begun("broken")
    told = steps(whole, 30)
    torch.manual_seed(4)
    steps(broken, stop)
    broken.save()
    resumed = trainer("broken", dtype="float16", optimizer="muon", max_steps=30, dropout=0.2)
    resumed.resume()
    assert resumed.step == stop and resumed.scaler.state_dict() == broken.scaler.state_dict()
    assert steps(resumed, 30 - stop) == told[stop:]
    assert same(kept(resumed), kept(whole)) and resumed.scaler.state_dict() == whole.scaler.state_dict()
    # There was something to remember: overflows on both sides, and a count of steps without one.
    passed = [step["gradient_norm"] is None for step in told]
    assert any(passed[:stop]) and any(passed[stop:]) and whole.scaler.state_dict()["_growth_tracker"] > 0


def test_a_checkpoint_without_a_scale_is_one_of_another_format_and_is_read(trainer):
    ours = trainer(dtype="float32")
    ours.train_step()
    ours.save()
    assert read_checkpoint(ours.checkpoint)[1]["scaler"] == {}
    half = trainer(dtype="float16")
    half.resume()
    assert half.step == 1 and half.scaler.get_scale() == 2**16 and math.isfinite(half.train_step()["gradient_norm"])

"""Chapter 8: each piece by hand equals PyTorch's, and the loop takes the textbook's step, no more."""

import dataclasses
import json
import math
import os
import signal
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from chapters.ch07_gpt_model import GPT
from chapters.ch08_run import read_metrics
from chapters.ch08_training import (
    AdamW,
    TrainConfig,
    Trainer,
    clip_gradients,
    cosine_warmup_lr,
    cross_entropy,
    get_batch,
    make_optimizers,
    parameter_groups,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_with_gradients(scale: float) -> nn.Module:
    """Return a small module with known gradients, one parameter without any."""
    module = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=i))
        parameter.grad = scale * noise(*parameter.shape, seed=100 + i)
    module[2].bias.grad = None
    return module


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


# Loss, clipping, AdamW, schedule: equal to PyTorch's.


def test_cross_entropy_equals_that_of_torch_with_its_gradient():
    logits, targets = (
        300 * noise(3, 5, 11),
        torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1)),
    )
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets)
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_fair_draw_costs_the_logarithm_of_the_vocabulary():
    assert cross_entropy(torch.zeros(1, 2, 50257), torch.tensor([[7, 50256]])).item() == pytest.approx(
        10.82, abs=0.005
    )


@pytest.mark.parametrize("scale, max_norm", [(10.0, 1.0), (10.0, 0.3), (1e-3, 1.0), (0.0, 1.0)])
def test_clipping_equals_that_of_torch(scale, max_norm):
    ours, theirs = layer_with_gradients(scale), layer_with_gradients(scale)
    norm = clip_gradients(ours.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_million_small_gradients_are_one_long_one():
    parameter = nn.Parameter(torch.zeros(1_000_000))
    parameter.grad = torch.full_like(parameter, 0.01)
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(10, rel=1e-4)
    assert parameter.grad.double().norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_equals_that_of_torch(fused):
    models = [layer_with_gradients(1.0) for _ in range(2)]
    groups = [
        [
            {"params": list(m[0].parameters()), "weight_decay": 0.3},
            {"params": [*m[1].parameters(), *m[2].parameters()]},
        ]
        for m in models
    ]
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0}
    optimizers = AdamW(groups[0], **settings), torch.optim.AdamW(groups[1], **settings, fused=fused)
    for step in range(12):
        for model, optimizer in zip(models, optimizers, strict=True):
            for i, parameter in enumerate(p for p in model.parameters() if p.grad is not None):
                parameter.grad = noise(*parameter.shape, seed=10 * step + i) * 10.0 ** (i - 2)
            optimizer.param_groups[0]["lr"] = 0.05 / (step + 1)
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(models[0][2].bias, layer_with_gradients(1.0)[2].bias)


def test_the_schedule_rises_in_a_line_from_above_zero_to_the_full_rate():
    rates = [cosine_warmup_lr(step, 0.4, 8, 100) for step in range(9)]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.4])


def test_the_schedule_falls_like_torchs_cosine_to_a_floor_that_holds():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=91, eta_min=0.04)
    for step in range(8, 100):
        assert cosine_warmup_lr(step, 0.4, 8, 100, 0.1) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()
    assert (
        cosine_warmup_lr(99, 0.4, 8, 100, 0.1)
        == cosine_warmup_lr(5000, 0.4, 8, 100, 0.1)
        == pytest.approx(0.04)
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 150), st.integers(1, 300), st.floats(0.001, 1))
def test_every_step_has_a_rate_above_zero_and_at_most_the_full_one(step, warmup, steps, floor):
    rate = cosine_warmup_lr(step, 0.01, warmup, steps, floor)
    assert 0 < rate <= 0.01 * (1 + 1e-12)


# What is moved, and by whom.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_decay_vectors_do_not_and_each_number_is_moved_by_one_optimizer(trainer, tied, optimizer):
    model = trainer(tied=tied).model
    config = TrainConfig(optimizer=optimizer, weight_decay=0.7)
    groups = [(o, g) for o in make_optimizers(model, config, torch.float32) for g in o.param_groups]
    moved = [id(p) for _, group in groups for p in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in model.parameters())
    for maker, group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.7 if parameter.dim() == 2 else 0)
            if type(maker).__name__ == "Muon":
                assert parameter.dim() == 2 and parameter.shape[0] != 300
    assert len(groups) == (3 if optimizer == "muon" else 2)
    assert [g["weight_decay"] for g in parameter_groups(model, config)] == [0.7, 0]


# The loop.


def textbook(trainer: Trainer, steps: int, batch_size: int) -> tuple[dict, list[float]]:
    """Return the weights and losses of the loop that every tutorial shows, written with PyTorch alone."""
    model, losses = GPT(trainer.model.config), []
    model.load_state_dict(trainer.model.state_dict())
    matrices, vectors = (
        [p for p in model.parameters() if (p.dim() == 2) is wanted] for wanted in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(steps):
        x, y = get_batch(trainer.train_rows, step, batch_size, trainer.config.seed)
        for group in optimizer.param_groups:
            group["lr"] = cosine_warmup_lr(step, 1e-2, 3, 9, 0.05)
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
        losses[-1].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return dict(model.state_dict()), [loss.item() for loss in losses]


@pytest.mark.parametrize("batch_size, parts", [(12, 1), (4, 3), (1, 12)])
def test_steps_are_the_textbooks_and_accumulated_batches_are_one_large_batch(trainer, batch_size, parts):
    ours = trainer(batch_size=batch_size, grad_accum_steps=parts, grad_clip=0.5)
    expected, losses = textbook(ours, 6, 12)
    told = [ours.train_step() for _ in range(6)]
    assert [t["loss"] for t in told] == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(weights(ours), expected, rtol=1e-3, atol=1e-4)
    assert [t["step"] for t in told] == [1, 2, 3, 4, 5, 6] and told[0]["gradient_norm"] > 0.5
    assert [t["learning_rate"] for t in told[:4]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])


def test_no_gradient_is_left_for_the_next_step(trainer):
    ours = trainer()
    ours.train_step()
    assert all(p.grad is None for p in ours.model.parameters())


def test_a_model_learns_its_text(trainer):
    ours = trainer(max_steps=60)
    losses = [ours.train_step()["loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(300), abs=0.2) and losses[-1] < losses[0] / 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_seed_gives_one_result(trainer, optimizer):
    runs = [trainer(name, dropout=0.2, optimizer=optimizer) for name in ("one", "two")]
    for run in runs:
        torch.manual_seed(3)
        run.train()
    assert all(map(torch.equal, weights(runs[0]).values(), weights(runs[1]).values()))
    other = trainer("three", dropout=0.2, optimizer=optimizer, seed=1)
    torch.manual_seed(3)
    other.train()
    assert not torch.equal(weights(runs[0])["final_norm.weight"], weights(other)["final_norm.weight"])


def test_the_logged_loss_is_the_mean_of_the_steps_since_the_line_before(trainer, tmp_path):
    losses, ours = [], trainer(grad_accum_steps=2)
    step = ours.train_step

    def remember() -> dict:
        losses.append(step())
        return losses[-1]

    ours.train_step = remember
    assert ours.train()
    lines = read_metrics(tmp_path / "run")
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)) and {0, 4, 8, 9} <= set(steps) and lines[0]["loss"] is None
    for before, line in pairwise(lines):
        told = [entry["loss"] for entry in losses[before["step"] : line["step"]]]
        assert line["loss"] == pytest.approx(sum(told) / len(told))
        assert (
            line["tokens_per_second"] > 0
            and line["learning_rate"] == losses[line["step"] - 1]["learning_rate"]
        )
    assert (
        lines[-1]["validation_bits_per_byte"]
        == pytest.approx(ours.evaluate())
        != lines[0]["validation_bits_per_byte"]
    )


def test_what_a_listener_adds_is_logged_with_the_rest(trainer, tmp_path):
    trainer(on_evaluation=lambda t, metrics: metrics.update(sample=f"at {t.step}")).train()
    assert [line["sample"] for line in read_metrics(tmp_path / "run")][-1] == "at 9"


# Stopping and going on.


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_interrupted_and_resumed_run_ends_with_the_very_weights_of_an_undisturbed_one(
    trainer, tmp_path, optimizer, tied
):
    changes = {"optimizer": optimizer, "dropout": 0.2, "tied": tied}
    whole = trainer("whole", **changes)
    torch.manual_seed(4)
    assert whole.train()

    def press_ctrl_c(running: Trainer, _) -> None:
        if running.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    broken = trainer("broken", on_evaluation=press_ctrl_c, **changes)
    torch.manual_seed(4)
    assert broken.train() is False and broken.step == 4
    assert signal.getsignal(signal.SIGINT) is handler

    resumed = trainer("broken", **changes)
    torch.manual_seed(12345)
    resumed.resume()
    assert resumed.step == 4 and resumed.train()
    assert all(map(torch.equal, weights(whole).values(), weights(resumed).values()))
    lines = [
        [{**line, "tokens_per_second": 0} for line in read_metrics(tmp_path / name)]
        for name in ("whole", "broken")
    ]
    assert lines[0] == lines[1]


def test_a_killed_run_forgets_what_it_logged_after_its_last_checkpoint(trainer, tmp_path):
    whole = trainer("whole", checkpoint_every=3)
    whole.train()
    killed = trainer("killed", checkpoint_every=3)

    def kill(running: Trainer, _) -> None:
        if running.step == 9:
            raise SystemExit("killed")

    killed.on_evaluation = kill
    with pytest.raises(SystemExit):
        killed.train()
    resumed = trainer("killed", checkpoint_every=3)
    resumed.resume()
    assert resumed.step == 6
    resumed.train()
    assert all(map(torch.equal, weights(whole).values(), weights(resumed).values()))
    lines = [[line["step"] for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert lines[0] == lines[1]


def test_a_run_stopped_before_its_first_step_goes_on_as_if_new(trainer, tmp_path):
    stopped = trainer(on_evaluation=lambda running, _: os.kill(os.getpid(), signal.SIGINT))
    assert stopped.train() is False and stopped.step == 0
    resumed = trainer()
    resumed.resume()
    assert resumed.train()
    steps = [line["step"] for line in read_metrics(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[0] == 0


def test_a_checkpoint_is_one_file_of_numbers_and_notes_without_code(trainer, tmp_path):
    ours = trainer()
    ours.train_step()
    ours.save()
    files = [path for path in (tmp_path / "run" / "checkpoint").iterdir()]
    assert [path.suffix for path in files] == [".safetensors"]
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata()["step"] == "1"
        assert json.loads(file.metadata()["train_config"]) == dataclasses.asdict(ours.config)

"""Chapter 8: each piece by hand equals PyTorch's, and the loop makes the textbook's step, no more and no less."""

import dataclasses
import json
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chapters.ch07_gpt_model import GPT, GPTConfig
from chapters.ch08_scale import autocast
from chapters.ch08_training import (
    AdamW,
    Trainer,
    TrainConfig,
    clip_gradients,
    cosine_warmup_lr,
    cross_entropy,
    make_optimizers,
    parameter_groups,
)

CPU = torch.device("cpu")
SMALL = GPTConfig(vocab_size=300, d_model=24, num_layers=2, num_heads=3, num_kv_heads=1, d_ff=35, max_seq_len=16)
QUICK = TrainConfig(max_steps=9, warmup_steps=3, batch_size=4, eval_every=4, checkpoint_every=100, dtype="float32",
                    compile="off", learning_rate=1e-2)


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


@pytest.fixture
def trainer(rows, tmp_path):
    """Make trainers on the same rows and first weights, each with a run folder of its own."""
    def make(name: str = "run", dropout: float = 0.0, on_evaluation=None, **changes) -> Trainer:
        torch.manual_seed(8)
        (tmp_path / name).mkdir(exist_ok=True)
        model = GPT(dataclasses.replace(SMALL, dropout=dropout))
        return Trainer(model, rows, rows, dataclasses.replace(QUICK, **changes), tmp_path / name, on_evaluation)

    return make


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


# Loss, clipping, AdamW, schedule: equal to PyTorch's.

def test_cross_entropy_equals_that_of_torch_with_its_gradient():
    logits, targets = 300 * noise(3, 5, 11), torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets)
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_fair_draw_costs_the_logarithm_of_the_vocabulary():
    assert cross_entropy(torch.zeros(1, 2, 50257), torch.tensor([[7, 50256]])).item() == pytest.approx(10.82, abs=0.005)


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
    assert parameter.grad.norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_equals_that_of_torch(fused):
    models = [layer_with_gradients(1.0) for _ in range(2)]
    groups = [[{"params": list(m[0].parameters()), "weight_decay": 0.3}, {"params": [*m[1].parameters(), *m[2].parameters()]}]
              for m in models]
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
    assert cosine_warmup_lr(99, 0.4, 8, 100, 0.1) == cosine_warmup_lr(5000, 0.4, 8, 100, 0.1) == pytest.approx(0.04)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 150), st.integers(1, 300), st.floats(0, 1))
def test_no_step_has_a_rate_of_zero_or_above_the_full_one(step, warmup, steps, floor):
    rate = cosine_warmup_lr(step, 0.01, warmup, steps, floor)
    assert 0 <= rate <= 0.01 and (rate > 0 or floor == 0)


# What is moved, and by whom.

@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_decay_vectors_do_not_and_each_number_is_moved_by_one_optimizer(tied, optimizer):
    model = GPT(dataclasses.replace(SMALL, tie_embeddings=tied, qkv_bias=True))
    config = dataclasses.replace(QUICK, optimizer=optimizer, weight_decay=0.7)
    groups = [(o, g) for o in make_optimizers(model, config) for g in o.param_groups]
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

def test_a_step_is_the_textbooks_step_written_with_torch_alone(trainer):
    ours = trainer()
    model = GPT(SMALL)
    model.load_state_dict(ours.model.state_dict())
    matrices, vectors = ([p for p in model.parameters() if (p.dim() == 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step, rate in enumerate([1 / 3, 2 / 3, 1, 1, 0.5 + 0.5 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 5))) / 1]):
        if step == 4:
            rate = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 5))
        x, y = ours.train_rows.rows(pass_order(len(ours.train_rows))[step * 4 : step * 4 + 4])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate
        optimizer.step()
        told = ours.train_step()
        assert told == {"step": step + 1, "loss": pytest.approx(loss.item(), abs=1e-5),
                        "learning_rate": pytest.approx(1e-2 * rate), "gradient_norm": pytest.approx(norm.item(), abs=1e-4)}
        assert all(p.grad is None for p in ours.model.parameters())
    torch.testing.assert_close(weights(ours), dict(model.state_dict()), rtol=1e-4, atol=1e-5)

"""Chapter 8, beside the loop: Muon equals PyTorch's, the number format is explicit, settings are checked."""

import pytest
import torch
from torch import nn

from chapters import ch08_muon, ch08_scale
from chapters.ch08_muon import Muon, orthogonalize
from chapters.ch08_scale import autocast, choose_dtype, has_native_bf16
from chapters.ch08_training import TrainConfig

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return the same random numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 13), (13, 7), (11, 11)])
def test_orthogonalizing_keeps_directions_and_levels_their_lengths(shape):
    matrix = noise(*shape)
    u, lengths, vt = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(torch.stack([noise(*shape, seed=9), matrix]))[1]
    torch.testing.assert_close(
        result, u @ torch.diag((u.mT @ result @ vt.mT).diag()) @ vt, rtol=1e-3, atol=1e-4
    )
    lengths = lengths / lengths.norm() / 1.01
    assert lengths.max() / lengths.min() > 2
    for a, b, c in ch08_muon.ROUNDS:
        lengths = a * lengths + b * lengths**3 + c * lengths**5
    torch.testing.assert_close((u.mT @ result @ vt.mT).diag(), lengths, rtol=1e-3, atol=1e-4)


def test_every_direction_down_to_a_hundredth_of_the_whole_ends_between_a_fifth_and_two():
    lengths = torch.linspace(0.01, 0.99, 99)
    for a, b, c in ch08_muon.ROUNDS:
        lengths = a * lengths + b * lengths**3 + c * lengths**5
    assert 0.18 < lengths.min() and lengths.max() < 1.9


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_equals_that_of_torch(monkeypatch, shape, dtype):
    # PyTorch's does five equal rounds in bfloat16, and fuses sums into products: they agree to about two digits.
    monkeypatch.setattr(ch08_muon, "ROUNDS", [(3.4445, -4.7750, 2.0315)] * 5)
    ours, theirs = nn.Parameter(noise(*shape)), nn.Parameter(noise(*shape))
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.2}
    optimizers = (
        Muon([ours], **settings, dtype=dtype),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = noise(*shape, seed=step + 1)
            optimizer.step()
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.03 * (ours - noise(*shape)).norm()


def test_muon_in_bfloat16_levels_lengths_and_keeps_the_dtype():
    result = orthogonalize(noise(2, 7, 13), dtype=torch.bfloat16)
    assert result.dtype == torch.float32
    exact = orthogonalize(noise(2, 7, 13))
    assert (result - exact).norm() < 0.1 * exact.norm()


# Number format, compiler, settings.


def test_products_have_the_dtype_that_was_asked_for_and_no_other():
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (noise(3, 5) @ noise(5, 2)).dtype == dtype
    assert choose_dtype("float32", CPU) == torch.float32 and choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if has_native_bf16(CPU) else torch.float32)


def test_bfloat16_training_keeps_weights_and_averages_in_float32(trainer):
    ours = trainer(dtype="bfloat16")
    losses = [ours.train_step()["loss"] for _ in range(9)]
    assert losses[-1] < losses[0] - 0.3
    state = [v for s in ours.optimizers[0].state.values() for v in s.values()]
    assert {t.dtype for t in [*ours.model.parameters(), *state]} == {torch.float32}


@pytest.mark.parametrize(
    "asked, steps, compiler, answer",
    [
        ("off", 10**6, True, False),
        ("on", 1, True, True),
        ("auto", 10**6, True, True),
        ("auto", 1, True, False),
        ("auto", 3999, True, False),
        ("auto", 4000, True, True),
        ("auto", 10**6, False, False),
    ],
)
def test_the_compiler_is_used_where_asked_or_where_it_pays_and_can_work(
    monkeypatch, asked, steps, compiler, answer
):
    monkeypatch.setattr(ch08_scale, "can_compile", lambda device: compiler)
    assert ch08_scale.compiler_pays(TrainConfig(compile=asked, max_steps=steps, batch_size=1), CPU) is answer


@pytest.mark.slow
@pytest.mark.skipif(not ch08_scale.can_compile(CPU), reason="needs a C++ compiler")
def test_a_compiled_step_is_the_same_step(trainer):
    runs = [trainer(compile=setting) for setting in ("on", "off")]
    told = [[run.train_step()["loss"] for _ in range(4)] for run in runs]
    assert told[0] == pytest.approx(told[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not ch08_scale.can_compile(CPU), reason="needs a C++ compiler")
def test_two_threads_in_a_hurry_give_the_same_bits(trainer):
    # Few rows and many lookups: without one order of sums, threads meet in the same row all the time.
    run, threads = trainer(compile="on", batch_size=64), torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    gradients = []
    for _ in range(8):
        run.gradient(0)
        gradients.append(run.model.token_embedding.weight.grad.clone())
        run.model.zero_grad()
    torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"grad_clip": 0.0}, "grad_clip"),
        ({"optimizer": "sgd"}, "'sgd': choose one of adamw, muon"),
        ({"dtype": "float8"}, "'float8'"),
        ({"compile": "yes"}, "'yes'"),
        ({"final_lr_fraction": 1.5}, "final_lr_fraction is 1.5"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": -0.1}, "beta2"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_impossible_setting_is_refused_in_one_line_that_names_it(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        TrainConfig(**changes)
    assert "\n" not in str(caught.value)

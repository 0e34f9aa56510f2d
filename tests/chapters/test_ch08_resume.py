"""Chapter 8, runs that survive: killed, interrupted, refused or damaged, a run goes on exactly or says why not."""

import errno
import json
import math
import os
import random
import signal
import threading

import pytest
import torch
from torch import nn

from chapters.ch08_checkpoint import load_checkpoint, read_checkpoint, same_dice, save_checkpoint
from chapters.ch08_guard import stop_politely
from chapters.ch08_run import read_metrics
from chapters.ch08_training import TokenRows, Trainer
from tools.broken_disk import BrokenDisk

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot copy a process")


def note_sample(trainer: Trainer, metrics: dict) -> None:
    """Write a sample into a log of its own, as the journey does."""
    from chapters.ch02_writing import append_durably

    append_durably(trainer.run_folder / "samples.txt", f"at {trainer.step}: {metrics['validation_bits_per_byte']}\n")


def traces(folder) -> dict:
    """Return all that a run leaves behind, without what a clock has measured."""
    path = folder / "checkpoint" / "state.safetensors"
    tensors, notes = read_checkpoint(path)
    lines = [{**line, "tokens_per_second": 0} for line in read_metrics(folder)]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    notes = {name: note for name, note in notes.items() if name not in ("seconds", "logs")}
    return {"tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, "notes": notes,
            "metrics": lines, "samples": (folder / "samples.txt").read_text(), "files": files}


@pytest.fixture
def run(trainer, tmp_path):
    """Make runs that look, save and drop numbers at steps of their own; one and the same each time."""

    def make(name: str, **changes) -> Trainer:
        usual = {"max_steps": 7, "eval_every": 3, "checkpoint_every": 2, "dropout": 0.2, "optimizer": "muon"}
        made = trainer(name, on_evaluation=note_sample, **usual | changes)
        torch.manual_seed(4)
        return made

    return make


@pytest.fixture
def whole(run, tmp_path) -> dict:
    """What an undisturbed run leaves behind."""
    assert run("whole").train()
    return traces(tmp_path / "whole")


def resumed(trainer: Trainer) -> Trainer:
    """Return a trainer that has gone back to its checkpoint, whatever the dice of the new process were."""
    torch.manual_seed(4 if not trainer.checkpoint.exists() else 12345)
    trainer.resume()
    return trainer


# Killed.


def killed_at(at: int, folder, action) -> bool:
    """Do something in a copy of this process that is killed at a certain writing call; return whether it was."""
    if not (child := os.fork()):
        with BrokenDisk(folder, at, kill=True):
            action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@forks
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_in_the_middle_of_any_write_goes_on_as_if_it_had_not_been(run, whole, tmp_path, stride):
    at, deaths = 1, 0
    while killed_at(at, tmp_path / f"run{at}", lambda: run(f"run{at}").train()):  # noqa: B023
        deaths += 1
        assert resumed(run(f"run{at}")).train()
        assert traces(tmp_path / f"run{at}") == whole
        at += stride
    assert deaths * stride > 150


@forks
def test_a_resumed_run_may_be_killed_again_and_again(run, whole, tmp_path):
    moments = random.Random(5)
    deaths = sum(
        killed_at(moments.randint(1, 90), tmp_path / "run", lambda: resumed(run("run")).train()) for _ in range(20)
    )
    assert resumed(run("run")).train() and deaths > 10
    assert traces(tmp_path / "run") == whole


def test_half_a_line_at_the_end_of_a_log_is_dropped(run, whole, tmp_path):
    ours = run("run")
    ours.on_evaluation = lambda trainer, metrics: (note_sample(trainer, metrics), stop_at(trainer, 3))
    assert ours.train() is False and ours.step == 3
    for name in ("metrics.jsonl", "samples.txt"):
        with open(tmp_path / "run" / name, "a") as file:
            file.write('{"step": 6, "lo')
    assert resumed(run("run")).train()
    assert traces(tmp_path / "run") == whole


def test_a_run_without_a_checkpoint_begins_at_its_first_step(run, whole, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "loss": null}\n{"st')
    ours = resumed(run("run"))
    assert ours.step == 0 and ours.train()
    assert traces(tmp_path / "run") == whole


def test_the_last_score_is_known_after_a_resume(run, tmp_path):
    ours = run("run", max_steps=5)
    assert ours.train()
    score = resumed(run("run", max_steps=5)).last_score
    assert score == ours.last_score == read_metrics(tmp_path / "run")[-1]["validation_bits_per_byte"]


def test_loss_and_speed_after_a_resume_are_those_of_all_steps_since_the_last_look(run, tmp_path, monkeypatch):
    def tick(seconds: int) -> None:
        clock = iter(range(0, 1000, seconds))
        monkeypatch.setattr("chapters.ch08_training.time.perf_counter", lambda: next(clock))

    rare = {"eval_every": 100, "max_steps": 5}
    tick(1)
    assert run("whole", **rare).train()
    ours = run("run", **rare)
    step = ours.train_step

    def stop_after_two() -> dict:
        ours.stop_requested = ours.step == 1
        return step()

    ours.train_step = stop_after_two
    assert ours.train() is False and ours.step == 2
    tick(3)
    assert resumed(run("run", **rare)).train()
    lines = [read_metrics(tmp_path / name)[-1] for name in ("whole", "run")]
    assert lines[0]["loss"] == lines[1]["loss"]
    assert [line["tokens_per_second"] for line in lines] == [4 * 16, round(5 * 4 * 16 / (2 * 1 + 3 * 3))]


# Asked to stop.


def stop_at(trainer: Trainer, step: int, number: int = signal.SIGINT) -> None:
    if trainer.step == step:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_finish_the_step_and_save_whatever_comes_in_between(run, whole, tmp_path, number, monkeypatch):
    ours = run("run")
    ours.on_evaluation = lambda trainer, metrics: (note_sample(trainer, metrics), stop_at(trainer, 3, number))
    save = ours.save
    monkeypatch.setattr(ours, "save", lambda: (stop_at(ours, 3, number), save()))
    handler = signal.getsignal(number)
    assert ours.train() is False and ours.step == 3
    assert signal.getsignal(number) is handler
    assert resumed(run("run")).train()
    assert traces(tmp_path / "run") == whole


def test_a_run_in_a_thread_of_its_own_goes_its_way(run):
    results = []
    thread = threading.Thread(target=lambda: results.append(run("run").train()))
    thread.start()
    thread.join()
    assert results == [True]


def test_signals_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_politely(print):
        assert signal.getsignal(signal.SIGTERM) is print
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


# Refused.


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_refused_write_is_told_in_one_line_and_the_last_checkpoint_serves(run, whole, tmp_path, stride):
    at, refused = 1, 0
    while True:
        folder, ours = tmp_path / f"run{at}", run(f"run{at}")
        with BrokenDisk(folder, at, [errno.ENOSPC, errno.EACCES][at % 2]) as disk:
            try:
                ours.train()
            except OSError as error:
                message = str(error)
        if len(disk.calls) < at:
            break
        # The line names the file, and no half of a file is left.
        refused += 1
        assert str(folder) in message and "make room" in message and "\n" not in message
        assert not [path for path in folder.rglob("*") if path.suffix == ".partial"]
        if ours.checkpoint.exists():
            assert read_checkpoint(ours.checkpoint)[1]["step"] in (2, 4, 6, 7)
        lines = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
        assert [line["step"] for line in lines] == [0, 1, 3, 6, 7][: len(lines)]
        assert resumed(run(f"run{at}")).train()
        assert traces(folder) == whole
        at += stride
    assert refused * stride > 150


# Exploded.


def poison(trainer: Trainer, step: int, tensor: str) -> None:
    """Put one bad number into a weight, an output or a gradient, as soon as a step begins."""
    before = trainer.gradient
    part = dict(trainer.model.named_modules())["blocks.1.feed_forward.up"]

    def spoil(*_) -> torch.Tensor:
        return torch.full_like(_[-1], math.inf)

    def gradient(now: int) -> float:
        if now == step and tensor == "weight":
            part.weight.data[3, 4] = math.nan
        elif now == step and tensor == "output":
            part.register_forward_hook(spoil)
        elif now == step:
            part.weight.register_hook(lambda grad: grad * math.nan)
        return before(now)

    trainer.gradient = gradient


@pytest.mark.parametrize("tensor", ["weight", "output", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_explosion_is_diagnosed_and_the_last_good_checkpoint_kept(run, tmp_path, tensor, optimizer):
    ours = run("run", optimizer=optimizer, grad_accum_steps=2)
    poison(ours, 5, tensor)
    with pytest.raises(ValueError) as caught:
        ours.train()
    message = str(caught.value)
    named = "" if tensor == "output" else ".weight"
    assert f"the first tensor that went bad is the {tensor}" in message
    assert f"blocks.1.feed_forward.up{named}." in message and "\n" not in message
    for fact in ("step 6,", "learning rate 0.00", "gradient norm nan", "loss ", "--learning-rate below 0.01"):
        assert fact in message
    assert read_checkpoint(ours.checkpoint)[1]["step"] == 4
    good = run("good", optimizer=optimizer, grad_accum_steps=2, max_steps=4)
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()
    assert resumed(run("run", optimizer=optimizer, grad_accum_steps=2)).train() and good.train()


def test_the_first_bad_part_is_named_and_not_those_behind_it(run):
    ours = run("run", dropout=0.0)
    ours.model.blocks[0].attention.query.register_forward_hook(lambda *_: _[-1] / 0)
    ours.model.blocks[1].attention.query.register_forward_hook(lambda *_: _[-1] / 0)
    with pytest.raises(ValueError, match=r"went bad is the output of blocks\.0\.attention\.query\. "):
        ours.train_step()


def test_a_sum_that_overflows_is_told_from_a_bad_tensor(run):
    ours = run("run")
    for parameter in ours.model.parameters():
        parameter.register_hook(lambda grad: torch.full_like(grad, 1e30))
    with pytest.raises(ValueError, match="went bad is none; only their sum is too large"):
        ours.train_step()


def test_bad_weights_are_never_saved_and_never_judged(run, tmp_path):
    ours = run("run")
    assert ours.train()
    before = ours.checkpoint.read_bytes()
    ours.model.blocks[0].feed_forward.gate.weight.data[0, 0] = -math.inf
    with pytest.raises(ValueError, match=r"model\.blocks\.0\.feed_forward\.gate\.weight holds a number"):
        ours.save()
    with pytest.raises(ValueError, match=r"went bad is the weight blocks\.0\.feed_forward\.gate\.weight"):
        ours._record({"step": 7, "loss": 1.0})
    assert ours.checkpoint.read_bytes() == before
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 3, 6, 7]


# Damaged.


@pytest.fixture
def saved(run) -> Trainer:
    """A trainer that has saved its third step."""
    ours = run("saved")
    for _ in range(3):
        ours.train_step()
    ours.save()
    return ours


def outcome(trainer: Trainer) -> str:
    """Return the one line with which a damaged checkpoint is refused, or nothing when it was read."""
    try:
        trainer.resume()
    except ValueError as error:
        assert str(trainer.checkpoint) in str(error) and "\n" not in str(error)
        return str(error)
    return ""


def test_a_checkpoint_cut_short_is_refused(saved):
    content = saved.checkpoint.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, *range(1000, len(content), 9973), len(content) - 1]:
        saved.checkpoint.write_bytes(content[:size])
        assert "remove it to begin the run from its first step" in outcome(saved)
    saved.checkpoint.write_bytes(content + b"\0")
    assert "damaged" in outcome(saved)


def test_one_flipped_bit_anywhere_is_noticed(saved):
    content, before = saved.checkpoint.read_bytes(), read_checkpoint(saved.checkpoint)
    described = 8 + int.from_bytes(content[:8], "little")
    drawn = random.Random(2)
    places = [*range(8), *drawn.sample(range(8, described), 300), *drawn.sample(range(described, len(content)), 100)]
    refused = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << drawn.randrange(8)
        saved.checkpoint.write_bytes(changed)
        # What is read in spite of it is what was written: a space that became a tab, say.
        if outcome(saved):
            refused += 1
        else:
            tensors, notes = read_checkpoint(saved.checkpoint)
            assert notes == before[1] and tensors.keys() == before[0].keys()
            assert all(torch.equal(tensors[name], before[0][name]) for name in tensors)
    assert refused >= len(places) - 5


def test_a_file_that_is_no_checkpoint_is_refused(saved):
    saved.model.save_pretrained(saved.run_folder)
    saved.checkpoint.write_bytes((saved.run_folder / "model.safetensors").read_bytes())
    assert "checksum" in outcome(saved)


@pytest.mark.parametrize("changes", [{"tied": False}, {"optimizer": "adamw"}])
def test_a_checkpoint_of_other_settings_is_refused_before_anything_changes(run, saved, changes):
    other = run("saved", **changes)
    before = [parameter.clone() for parameter in other.model.parameters()]
    assert "settings.json was changed" in outcome(other)
    assert all(map(torch.equal, before, other.model.parameters()))
    here = run("other", **changes)
    here.train_step()
    here.save()
    saved.checkpoint.write_bytes(here.checkpoint.read_bytes())
    assert "settings.json was changed" in outcome(saved)


def test_another_text_is_refused(run, saved, documents, tokenizer):
    other = run("saved")
    other.train_rows = TokenRows([*documents, "one more"], tokenizer, 16)
    with pytest.raises(ValueError, match="the text is not the one that .*saved began with"):
        other.resume()
    other.train_rows = saved.train_rows
    other.resume()
    assert other.step == 3


# What a checkpoint is.


def test_what_is_read_shares_no_memory_with_the_file(saved):
    expected = {name: t.clone() for name, t in saved.model.state_dict().items()}
    load_checkpoint(saved.checkpoint, saved.model, saved.optimizers)
    with open(saved.checkpoint, "r+b") as file:
        file.write(b"\xff" * saved.checkpoint.stat().st_size)
    assert all(torch.equal(expected[name], t) for name, t in saved.model.state_dict().items())
    averages = [t for o in saved.optimizers for state in o.state.values() for t in state.values()]
    assert averages and all(t.isfinite().all() and t.data_ptr() % 16 == 0 for t in averages)


def test_further_notes_come_back_as_they_were(run, tmp_path):
    ours, notes = run("run"), {"losses": [1 / 3, 2.5e-7], "logs": {"é": 3}, "nothing": None}
    save_checkpoint(tmp_path / "file", ours.model, ours.optimizers, 0, ours.config, **notes)
    read = load_checkpoint(tmp_path / "file", ours.model, ours.optimizers)
    assert read == {"step": 0, "train_config": json.loads(json.dumps(ours.config.__dict__)), **notes}


def test_dice_are_put_back():
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    with same_dice(torch.device("cpu")):
        nn.functional.dropout(torch.ones(99))
    assert torch.equal(torch.rand(5), expected)

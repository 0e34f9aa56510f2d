"""Chapter 10, the doctor: what it says of a machine is so, and its advice follows from what it measured."""

import dataclasses
import os
import platform
from types import SimpleNamespace

import pytest
import torch

import main
from chapters import ch10_doctor
from chapters.ch07_config import PRESETS, flops_per_token
from chapters.ch08_config import TrainConfig
from chapters.ch10_doctor import Forecast, advice, duration, examine, forecasts, gigabytes, largest_that_fits

CPU = torch.device("cpu")


def test_the_memory_is_what_another_library_says():
    psutil = pytest.importorskip("psutil")
    assert ch10_doctor.memory_bytes() == pytest.approx(psutil.virtual_memory().total, rel=0.01)


def test_a_system_that_tells_little_is_no_error(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    assert ch10_doctor.memory_bytes() is None and gigabytes(None) == "size unknown"
    assert ch10_doctor.usable_cores() == os.cpu_count()
    assert ch10_doctor.processor_name() == platform.machine()


def test_windows_is_asked_for_its_memory(monkeypatch):
    def fill(table) -> None:
        assert table._obj[0] == 64
        table._obj[1] = 5 << 30

    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
    monkeypatch.setattr(ch10_doctor.ctypes, "windll", windll, raising=False)
    assert ch10_doctor.memory_bytes() == 5 << 30


def test_a_card_and_an_apple_are_shown(monkeypatch):
    card = SimpleNamespace(name="Card", total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert ch10_doctor.graphics_cards() == [("Card", 8 << 30), ("Apple GPU, which shares the main memory", None)]


def test_operations_and_bytes_are_counted_right(monkeypatch):
    # A clock by which everything takes two seconds.
    monkeypatch.setattr(ch10_doctor, "fastest", lambda work, device: work() is None or 2.0)
    monkeypatch.setitem(ch10_doctor.MATRIX, "cpu", 30)
    monkeypatch.setattr(ch10_doctor, "ARRAY_BYTES", 4000)
    assert ch10_doctor.multiply_speed(CPU, torch.float32) == 30 * 30 * (30 + 30) / 2
    assert ch10_doctor.read_speed(CPU) == 4000 / 2


def test_the_fastest_of_several_calls_counts():
    calls = []
    seconds = ch10_doctor.fastest(lambda: calls.append(1), CPU, seconds=0)
    assert len(calls) == 4 and 0 < seconds < 1


def test_a_step_is_done_as_a_run_does_it(monkeypatch):
    steps = []
    monkeypatch.setattr(ch10_doctor, "fastest", lambda work, device: steps.append(work()) or 3.0)
    small = PRESETS["nano"].resized(d_model=32, num_heads=2, d_ff=48, max_seq_len=16, vocab_size=64)
    train = TrainConfig(batch_size=2, grad_accum_steps=5, dtype="float32")
    assert ch10_doctor.step_seconds(small, train, CPU) == 5 * 3.0 and len(steps) == 1


def test_the_other_presets_take_as_much_longer_as_they_have_more_to_do():
    found = {forecast.preset: forecast for forecast in forecasts(0.5, TrainConfig(max_steps=40))}
    assert list(found) == list(PRESETS) and found["tiny"].seconds == 20
    work = {name: config.max_seq_len * flops_per_token(config, config.max_seq_len)["training"]
            for name, config in PRESETS.items()}
    assert found["small"].seconds / found["nano"].seconds == pytest.approx(work["small"] / work["nano"])
    assert found["base"].memory == 16 * 151_862_784


def test_the_advice_is_the_largest_that_is_quick_and_fits():
    sizes = [("nano", 60, 10), ("tiny", 200, 30), ("small", 899, 200), ("base", 9e5, 900)]
    found = [Forecast(*size) for size in sizes]
    assert advice(found, None).preset == "small"
    assert advice(found, 400).preset == "small" and advice(found, 399).preset == "tiny"
    slow = [dataclasses.replace(forecast, seconds=forecast.seconds * 100) for forecast in found]
    assert advice(slow, None).preset == "nano"


def test_durations_are_said_as_a_person_would():
    said = [duration(s) for s in (4, 200, 3 * 3600, 86400 * 3)]
    assert said == ["4.0 s", "3.3 min", "3.0 h", "3.0 days"]


def test_the_doctor_says_all_of_it(monkeypatch, capsys):
    monkeypatch.setattr(ch10_doctor, "fastest", lambda work, device: 0.25)
    monkeypatch.setattr(ch10_doctor, "ARRAY_BYTES", 4000)
    assert main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("processor", "abilities", "memory", "GPU", "GFLOP/s", "GB/s", "a step of tiny", *PRESETS):
        assert words in out
    assert out.count("<- suits this machine") == 1 and f"{TrainConfig().max_steps} steps" in out
    assert list(examine())[0].startswith("processor")


@pytest.mark.parametrize(("gib", "preset"), [(0.001, "nano"), (0.1, "nano"), (0.2, "tiny"), (2, "small"), (16, "base")])
def test_a_gpu_gets_the_largest_preset_that_fits_into_half_of_it(gib, preset):
    assert largest_that_fits(int(gib * 2**30)) == preset
    for name in PRESETS:
        needs = 2 * ch10_doctor.training_bytes(PRESETS[name])
        assert largest_that_fits(needs) == name and (largest_that_fits(needs - 1) != name or name == "nano")

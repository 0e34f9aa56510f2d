"""Chapter 10, costs: a run writes down what was predicted and what came, and info shows both."""

import json
import sys

import pytest
import torch

from chapters.ch07_config import PRESETS
from chapters.ch10_costs import compare, peak_memory, write_costs

CPU = torch.device("cpu")


def test_the_peak_is_no_less_than_what_is_in_use():
    held = torch.ones(40 << 20, dtype=torch.uint8)
    assert peak_memory(CPU) > held.numel()
    psutil = pytest.importorskip("psutil")
    assert peak_memory(CPU) > 0.9 * psutil.Process().memory_info().rss


def test_a_system_that_does_not_count_memory_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) is None
    write_costs(tmp_path, CPU, 5, (1.0, 2.0), 1.5)
    assert "not counted" in compare(tmp_path, PRESETS["nano"])[-1]


def test_what_is_written_is_shown(tmp_path):
    assert compare(tmp_path, PRESETS["nano"]) == []
    write_costs(tmp_path, CPU, 370, (61.0, 127.5), 119.2)
    said = "\n".join(compare(tmp_path, PRESETS["tiny"]))
    assert "370 steps on cpu" in said and "predicted 1:01 to 2:07 minutes, real 1:59" in said
    assert "MiB before activations, real" in said


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", json.dumps({"predicted_seconds": [1]})])
def test_damaged_costs_are_named_in_one_line(content, tmp_path):
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(ValueError, match="costs.json cannot be read"):
        compare(tmp_path, PRESETS["tiny"])

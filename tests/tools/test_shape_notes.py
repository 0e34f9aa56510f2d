"""The shape notes' tracer must believe no note: false ones, unreached ones and unreadable ones all fail."""

import re
from pathlib import Path

import numpy as np
import pytest

from tools import shape_notes
from tools.shape_notes import trace
from tools.source import parse_note

MODULE = '''"""A module."""

from dataclasses import dataclass

import numpy as np

TABLE = np.zeros((3, 4))  # (T, C)


@dataclass
class Sizes:
    """Needs its module to be findable while it is made."""

    width: "int" = 4


def heads(x, split=False):
    """Return x per head, or two of them."""
    rows: np.ndarray = x.reshape(-1, x.shape[-1])  # (B*T, C)
    total = np.zeros(x.shape[-1])
    total += rows.sum()  # (C,)
    if split:
        first, second = (part for part in np.split(x, 2, axis=-1))  # (B, T, C/2), (B, T, C/2)
        return first, second.sum()  # (B, T, C/2), ()
    return np.concatenate(  # (B, T+1, C)
        [x, x[:, :1]], axis=1
    )
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that writes a module, with some text replaced, and traces it."""

    def write(old: str = "", new: str = "", **sizes):
        assert old in MODULE
        (tmp_path / "noted.py").write_text(MODULE.replace(old, new, 1) if old else MODULE, encoding="utf-8")
        monkeypatch.setattr(shape_notes, "ROOT", tmp_path)
        return trace("noted.py", **sizes)

    return write


def run(traced, **sizes):
    """Call both branches of the traced function."""
    with traced.sizes(**{"B": 2, "T": 3, "C": 4} | sizes):
        traced.module.heads(np.ones((2, 3, 4)), split=True)
        return traced.module.heads(np.ones((2, 3, 4)))


def test_true_notes_pass_and_the_module_computes_what_it_did(module):
    traced = module(T=3, C=4)
    assert run(traced).shape == (2, 4, 4)
    assert traced.unreached() == [] and len(traced.notes) == 6


@pytest.mark.parametrize(
    ("true", "false", "line"),
    [
        ("# (B*T, C)", "# (B*T+1, C)", 19),
        ("# (B*T, C)", "# (B*T,)", 19),
        ("# (C,)", "# (T,)", 21),
        ("(B, T, C/2)\n        return", "(B, T, C)\n        return", 23),
        ("# (B, T, C/2), ()", "# (B, T, C/2), (B,)", 24),
        ("# (B, T+1, C)", "# (B, T, C)", 25),
    ],
)
def test_a_false_note_fails_with_its_place_and_the_real_shape(module, true: str, false: str, line: int):
    traced = module(true, false)
    with pytest.raises(AssertionError, match=rf"noted.py:{line} .*the note says .*, the value has \("):
        run(traced)


def test_a_false_note_on_a_constant_fails_while_the_module_loads(module):
    with pytest.raises(AssertionError, match="noted.py:7"):
        module("# (T, C)", "# (C, T)", T=3, C=4)


def test_a_note_that_no_scenario_reaches_is_listed(module):
    traced = module(T=3, C=4)
    with traced.sizes(B=2, T=3, C=4):
        traced.module.heads(np.ones((2, 3, 4)))
    traced.module.heads(np.ones((2, 3, 4)), split=True)
    assert [re.split("[: ]", note)[1] for note in traced.unreached()] == ["23", "24"]


def test_the_number_of_notes_is_the_number_of_values(module):
    with pytest.raises(AssertionError, match="2 values, the note 3 shapes"):
        run(module("# (B, T, C/2), ()", "# (B, T, C/2), (), ()"))


def test_a_value_that_is_no_array_fails(module):
    with pytest.raises(AssertionError, match="noted.py:19 .*class 'float'"):
        run(module("x.reshape(-1, x.shape[-1])  #", "1.0  #"))


def test_a_letter_without_a_size_is_named(module):
    with pytest.raises(AssertionError, match="no size for V"):
        run(module("# (B*T, C)", "# (B*T, V)"))


def test_equal_sizes_must_be_asked_for(module):
    traced = module()
    with pytest.raises(ValueError, match="C and D are both 4"), traced.sizes(C=4, D=4):
        pass
    with pytest.raises(ValueError, match="T and D are both 4"), traced.sizes(["TS"], T=4, S=4, D=4):
        pass
    assert run(traced, S=3, same=["TS"]).shape == (2, 4, 4)


@pytest.mark.parametrize(
    "text", ["# (B, T) by token", "# (V)", "# (B, X)", "# (B,), T", "# (see it)", "# (len(x),)", "# (1.5,)"]
)
def test_a_note_is_shapes_alone(text: str):
    with pytest.raises(ValueError, match="no shape note"):
        parse_note(text)


def test_a_note_stands_on_an_assignment_or_a_return(module):
    with pytest.raises(ValueError, match="noted.py:22: .*assignment or a return"):
        module("if split:", "if split:  # (B,)")

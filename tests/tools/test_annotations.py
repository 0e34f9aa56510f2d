"""The annotation check must accept a well explained module and find each way to explain badly."""

import re

import pytest

from tools import annotations
from tools.annotations import check
from tools.source import ROOT

GOOD = '''"""A module that is explained."""

import math

# How many, and of what.
COUNT = 3
NAME = "x"


class Thing:
    """A thing."""

    def __init__(self):
        super().__init__()
        self.a = 1

    def grow(self, x):
        """Return more."""
        # 1. Refuse what cannot grow.
        a = x  # (B, T)
        if a is None:
            raise ValueError("x is None: give a number")

        # 2. Grow. The helper numbers its own steps, so it counts as one statement here.
        def helper(y):
            # 1. Take the first steps.
            y = y + 1
            y = y + 2
            y = y + 3

            # 2. Take the others.
            y = y + 4
            y = y + 5
            return y

        b, c, d = a, a, a  # (B, T), (B, T), (B, T)
        return helper(b + c + d)


def short(x):
    """Return x."""
    return x


if __name__ == "__main__":
    print(short(math.pi))
'''


def test_a_well_explained_module_passes():
    assert check("corpora/x.py", GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"""A module that is explained."""\n', "\n", 1, "module has no docstring"),
        ('    """A thing."""\n', "    a = 1\n", 10, "Thing has no docstring"),
        ('        """Return more."""\n', "", 17, "grow has no docstring"),
        ("# How many, and of what.\n", "\n", 6, "no comment stands above"),
        ('COUNT = 3\n', "COUNT = 3\n\n", 8, "no comment stands above"),
        ("# (B, T)\n", "# the batch\n", 20, "no shape note"),
        ("# (B, T)\n", "# (B, T) of floats\n", 20, "no shape note"),
        ("# How many", "# WHY: How many", 5, "label WHY:"),
        ('"""A thing."""', '"""A thing. TODO more."""', 11, "label TODO"),
        ("# 2. Grow.", "# 3. Grow.", 19, r"\[1, 3\]: count from 1"),
        ("# 1. Refuse", "# 2. Refuse", 19, r"\[2, 2\]: count from 1"),
        ("        # 1. Refuse", "        x = x\n        # 1. Refuse", 19, "statement before its first"),
        ("a = x  # (B, T)", "a = x\n" + 4 * "        a += 1\n", 19, "6 statements"),
        ("# 1. Take the first steps.", "# Take.", 31, r"\[2\]: count from 1"),
        ("    return x\n", "    x += 1\n" * 5 + "    return x\n", 40, "6 statements and no numbered"),
        ("    return x\n", "    return (\n" + 50 * "    #\n" + "    x)\n", 40, "52 lines, more than 50"),
        ("    return x\n", "    return x\n" + 410 * "#\n", 1, "the file has 456"),
    ],
)
def test_each_way_to_explain_badly_is_found(old: str, new: str, line: int, words: str):
    assert old in GOOD
    found = check("corpora/x.py", GOOD.replace(old, new, 1))
    assert any(re.search(rf"^corpora/x.py:{line}: .*{words}", problem) for problem in found), found


def test_an_inner_function_with_numbers_counts_as_one_statement():
    end = "        return helper"
    full = GOOD.replace(end, 2 * "        a += 1\n" + end)
    assert check("corpora/x.py", full) == []
    over = check("corpora/x.py", full.replace(end, "        a += 1\n" + end))
    assert len(over) == 1 and "opens 6 statements" in over[0]


def test_an_inner_function_without_numbers_counts_for_its_paragraph():
    bare = GOOD.replace("# 1. Take the first steps.", "# Take").replace("# 2. Take the others.", "# Take")
    assert any("opens 9 statements" in problem for problem in check("corpora/x.py", bare))


def test_a_chapter_has_words_enough_for_its_code():
    code = GOOD + 60 * "\n# One reason.\nx = 1\n" + 150 * "x = 1\n"
    assert not any("lines of words" in problem for problem in check("main.py", code))
    assert any("lines of words" in problem for problem in check("chapters/ch01_x.py", code))


def test_the_check_exits_with_1_when_it_finds_something(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annotations, "ROOT", tmp_path)
    (tmp_path / "main.py").write_text(GOOD)
    assert annotations.main([]) == 0
    (tmp_path / "main.py").write_text(GOOD.replace("# How many, and of what.\n", ""))
    assert annotations.main([]) == 1 and "main.py:5:" in capsys.readouterr().out


def test_every_module_of_the_book_and_every_tool_is_explained(capsys):
    tools = [str(path) for path in [*ROOT.glob("tools/*.py"), ROOT / "conftest.py"]]
    assert annotations.main([]) + annotations.main(tools) == 0, capsys.readouterr().out

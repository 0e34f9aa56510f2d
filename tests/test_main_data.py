"""The promises of `main.py train --data`: any text, one clear line for a bad one, tokens made once."""

import json
import os
import re

import pytest

import main
from chapters import ch08_store
from corpora.stories import generate

SMALL = ["--d-model", "32", "--num-heads", "2", "--d-ff", "48", "--num-layers", "1", "--vocab-size", "300",
         "--max-seq-len", "64", "--max-steps", "2", "--batch-size", "3", "--eval-every", "2", "--compile", "off"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setattr(main, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def table(tmp_path):
    """A .jsonl file of stories under the name "body", a third of them twice."""
    told, path = generate(90, seed=7), tmp_path / "told.jsonl"
    rows = [json.dumps({"body": text, "id": i}) + "\n" for i, text in enumerate(told + told[::3])]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def train(*options: object) -> int:
    """Train the smallest of models, and return the exit code."""
    return main.main(["train", *map(str, options), *SMALL])


def card(folder) -> str:
    """What the model's card says."""
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_field_of_a_table_is_learnt_and_copies_are_dropped_and_counted(runs, table, capsys):
    assert train("--data", table, "--text-field", "body", "--clean", "--name", "clean") == 0
    assert train("--data", table, "--text-field", "body", "--name", "raw") == 0
    clean, raw = [re.search(r"Text +(\d+) \D+ (\d+) held out(.*?), [\d.]+ MB", line).groups()
                  for line in capsys.readouterr().out.splitlines() if line.startswith("Text ")]
    assert clean[2] == ", 30 exact copies dropped" and int(clean[0]) + int(clean[1]) == 90
    assert raw[2] == "" and int(raw[0]) + int(raw[1]) == 120


def test_a_folder_and_a_glob_give_the_same_run_as_the_same_text_in_another_place(runs, tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "deep").mkdir(parents=True)
        for i, text in enumerate(generate(60, seed=8)):
            (tmp_path / place / "deep" / f"{i:02}.txt").write_text(text, encoding="utf-8")
    for data, name in ((tmp_path / "here", "run"), (tmp_path / "there" / "**" / "*.txt", "again")):
        assert train("--data", data, "--name", name) == 0
    weights = [(runs / name / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


def test_tokens_are_made_once_and_the_second_run_is_the_same(runs, table, monkeypatch):
    options = ("--data", table, "--text-field", "body")
    assert train(*options, "--name", "run") == 0
    made = list((runs / ".tokens").iterdir())

    def never(*_):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(ch08_store, "build", never)
    assert train(*options, "--name", "again") == 0
    assert list((runs / ".tokens").iterdir()) == made
    assert card(runs / "run").split("Command")[0] == card(runs / "again").split("Command")[0].replace("again", "run")
    assert (runs / "run" / "model.safetensors").read_bytes() == (runs / "again" / "model.safetensors").read_bytes()


def test_a_run_goes_on_with_its_own_text_and_with_no_other(runs, table, capsys):
    assert train("--data", table, "--text-field", "body", "--clean", "--name", "run") == 0
    weights = (runs / "run" / "model.safetensors").read_bytes()
    os.utime(table, (1, 1))
    assert main.main(["train", "--resume", str(runs / "run")]) == 0
    assert (runs / "run" / "model.safetensors").read_bytes() == weights
    table.write_text(table.read_text(encoding="utf-8").replace("girl", "boy"), encoding="utf-8")
    assert main.main(["train", "--resume", str(runs / "run")]) == 2
    assert "told.jsonl is not what it was when the run began; put" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("content", "message"), [
    ('{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text'; its fields: 'body'; choose with --text-field"),
    ('{"text": "a b c"}\n{"text": "d e f"}\n', "tokens to learn from do not fill one context of 64; give more text"),
    ('{"text": ""}\n', "holds no text; give"),
    ('{"text": "a"}\n' * 40 + "oh", "line 41 is no JSON"),
    ("".join(f'{{"text": "story {i}"}}\n' for i in range(3000)) + "oh", "line 3001 is no JSON"),
])  # fmt: skip
def test_a_bad_table_is_one_line_and_no_run_is_begun(content, message, runs, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    assert train("--data", path) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"error: --data {path}") and message in error[-1]
    assert [path for path in runs.glob("*") if path.name != ".tokens"] == []

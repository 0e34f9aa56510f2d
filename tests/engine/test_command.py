"""The command line: a story without PyTorch, from both front doors; a mistake is one line."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import engine
import main
from engine import __main__ as command
from tests.engine.test_model import STORYTELLER, publish_any

ROOT = Path(main.__file__).parent
GREEDY = ["--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "12"]


def told(capsys, run, *typed: object) -> str:
    """Return what a command prints, which must do well."""
    assert run([*map(str, typed)]) == 0
    return capsys.readouterr().out


def refused(capsys, run, *typed: object) -> str:
    """Return the line with which a command is refused."""
    try:
        code = run([*map(str, typed)])
    except SystemExit as end:
        code = end.code
    out, error = capsys.readouterr()
    assert code == 2 and out == "" and re.fullmatch(r"(\(.* speaks\)\n)?error: .*\n", error), error
    return error


@pytest.mark.parametrize("typed", [
    ["-m", "engine", STORYTELLER, "--plain", *GREEDY],
    ["main.py", "generate", "--engine", "numpy", "--model", STORYTELLER, *GREEDY],
])
def test_a_story_is_told_and_pytorch_never_loaded(typed):
    made = subprocess.run([sys.executable, "-X", "importtime", *map(str, typed)], capture_output=True, text=True,
                          cwd=ROOT, encoding="utf-8")
    assert made.returncode == 0 and made.stdout.startswith("Once upon a time, in a sunny castle")
    loaded = set(re.findall(r"\|\s+([\w.]+)$", made.stderr, flags=re.MULTILINE))
    assert {"numpy", "engine.model"} <= loaded and not loaded & {"torch", "transformers", "tokenizers", "safetensors"}


def test_help_and_mistakes_are_answered_before_anything_is_compiled():
    for typed, code in ((["--help"], 0), ([], 2), (["x", "--no-such-flag"], 2)):
        made = subprocess.run([sys.executable, "-X", "importtime", "-m", "engine", *typed], capture_output=True,
                              text=True, cwd=ROOT)
        assert made.returncode == code and "numba" not in made.stderr


def test_both_doors_and_both_engines_tell_the_same(capsys):
    plain = told(capsys, command.main, STORYTELLER, "--plain", *GREEDY)
    assert plain == told(capsys, main.main, "generate", "--engine", "numpy", "--model", STORYTELLER, *GREEDY)
    assert plain == told(capsys, main.main, "generate", "--engine", "torch", "--model", STORYTELLER, *GREEDY)


def test_continuations_have_the_prompt_and_a_seed_each(capsys):
    typed = [STORYTELLER, "--plain", "--prompt", "The cat", "--max-new-tokens", "9", "--temperature", "1"]
    both = told(capsys, command.main, *typed, "--count", "2", "--seed", "4")
    alone = [told(capsys, command.main, *typed, "--seed", seed) for seed in (4, 5)]
    assert both == "\n".join(alone) and all(text.startswith("The cat") for text in alone) and alone[0] != alone[1]


def test_a_stop_string_and_fewer_bits_are_heeded(capsys):
    text = told(capsys, command.main, STORYTELLER, "--plain", *GREEDY, "--stop", "castle", "--dtype", "bf16")
    assert text == "Once upon a time, in a sunny \n"


@pytest.mark.parametrize(("typed", "words"), [
    ("{model} --top-p 0", "top_p is 0.0: above 0 at most 1"),
    ("{model} --count 0", "count is 0: 1 or above"),
    ("{model} --dtype int3", "dtype is 'int3' must be one of fp32"),
    ("{model} --temperature warm", "--temperature 'warm' --help"),
    ("{model} --threads some", "--threads 'some' --help"),
    ("{model} --no-such-flag", "--no-such-flag --help"),
    ("", "MODEL --help"),
    ("/nowhere", "/nowhere"),
    ("{model}/config.json", "config.json"),
    ("{model} --tokenizer /nowhere.json", "/nowhere.json"),
])
def test_a_mistake_ends_in_one_line(typed, words, capsys):
    line = refused(capsys, command.main, *(part.format(model=STORYTELLER) for part in typed.split()))
    assert all(word in line for word in words.split()), line


def test_line_ends_in_what_was_typed_do_not_break_the_line(capsys):
    assert "--no such" in refused(capsys, command.main, STORYTELLER, "--no\nsuch")
    assert "/nowhere at all" in refused(capsys, command.main, "/nowhere\nat all")


def test_what_was_typed_reaches_the_model(monkeypatch):
    seen = []

    def load(path, **options):
        seen.append((path, options))
        raise ValueError("enough")

    monkeypatch.setattr("engine.generation.load_model", load)
    typed = "folder --dtype int8 --threads 2 --plain --tokenizer words.json"
    assert command.main(typed.split()) == command.main(["folder"]) == 2
    asked = {"dtype": "int8", "threads": 2, "fast": False, "tokenizer": Path("words.json")}
    left = {"dtype": "fp32", "threads": None, "fast": None, "tokenizer": None}
    assert seen == [(Path("folder"), asked), (Path("folder"), left)]


@pytest.mark.parametrize(("trouble", "code", "words"), [
    (MemoryError("9 GiB"), 2, "error: not enough memory (9 GiB): choose a smaller model or dtype\n"),
    (KeyboardInterrupt(), 130, "\nStopped.\n"),
])
def test_no_memory_and_an_interruption_end_in_a_line(trouble, code, words, monkeypatch, capsys):
    def load(*_, **__):
        raise trouble

    monkeypatch.setattr("engine.generation.load_model", load)
    assert command.main(["folder"]) == code and capsys.readouterr().err == words


def test_each_piece_is_shown_at_once(monkeypatch):
    shown = []

    class Terminal(io.StringIO):
        def flush(self):
            shown.append(self.getvalue())

    teller = SimpleNamespace(generate=lambda *_, **__: iter(["b", "c"]))
    monkeypatch.setattr("engine.generation.load_model", lambda *_, **__: teller)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert command.main(["folder", "--prompt", "a"]) == 0 and shown == ["a", "ab", "abc"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to speak of")
def test_a_story_comes_piece_by_piece_on_a_terminal_of_any_letters_and_can_be_stopped():
    typed = [sys.executable, "-m", "engine", STORYTELLER, "--plain", "--count", "1000", "--prompt", "Eé"]
    settings = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with subprocess.Popen(typed, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert os.read(running.stdout.fileno(), 2) == b"E?" and len(os.read(running.stdout.fileno(), 1)) == 1
        running.send_signal(signal.SIGTERM)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 130 and error.endswith(b"\nStopped.\n")


def test_the_front_door_offers_what_it_names():
    assert all(getattr(engine, name).__name__ == name for name in engine.__all__)
    with pytest.raises(AttributeError, match="engine has no 'nothing': it offers Engine, SamplingConfig, Tensor"):
        _ = engine.nothing


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(capsys):
    assert "1 to 159" in refused(capsys, command.main, STORYTELLER, "--plain", "--prompt", "word " * 300)


@pytest.mark.parametrize("flags", [["--beams", "2"], ["--logprobs"], ["--draft", "x"]])
def test_what_needs_pytorch_is_refused_with_the_other_engine(flags, capsys):
    assert "--engine torch" in refused(capsys, main.main, "generate", "--engine", "numpy", *flags)


def test_a_gpt2_folder_runs_on_the_engine_by_itself(capsys, tmp_path):
    publish_any("gpt2 for words", tmp_path)
    shutil.copy(STORYTELLER / "tokenizer.json", tmp_path)
    typed = ["generate", "--model", tmp_path, "--prompt", "Once", "--max-new-tokens", "5"]
    assert told(capsys, main.main, *typed).startswith("Once")
    assert told(capsys, main.main, *typed) == told(capsys, main.main, *typed, "--engine", "numpy")
    assert "gpt2" in refused(capsys, main.main, *typed, "--engine", "torch")


def test_what_is_no_gpt2_is_left_to_pytorch(tmp_path):
    assert not command.is_gpt2(None) and not command.is_gpt2(STORYTELLER) and not command.is_gpt2(tmp_path)
    for content in ("[]", "{", "{}", '{"model_type": 3}', "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        assert not command.is_gpt2(tmp_path)

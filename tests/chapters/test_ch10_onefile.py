"""Chapter 10, one file: the whole GPT runs alone in an empty folder, and every line of it stands in a chapter."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from chapters import ch10_onefile
from chapters.ch10_onefile import ROOT, assemble, libraries_of, read_module, text_of, write_onefile


@pytest.fixture(scope="module")
def gpt(tmp_path_factory) -> Path:
    """The file, alone in an empty folder."""
    path = tmp_path_factory.mktemp("empty") / "gpt.py"
    write_onefile(path)
    return path


def run(path: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    """Run the file where it lies, in an environment that says nothing of this repository."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command, known = [sys.executable, path.name, *arguments], known | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=path.parent, env=known, capture_output=True, text=True)
    assert result.returncode == code, result.stderr[-2000:]
    return result


def test_the_file_trains_and_speaks_where_there_is_nothing_else(gpt):
    # The chapters cannot be imported from there, so nothing can lean on them in secret.
    (gpt.parent / "probe.py").write_text("import chapters")
    assert "No module named 'chapters'" in run(gpt.parent / "probe.py", code=1).stderr
    (gpt.parent / "probe.py").unlink()
    first = run(gpt, "--steps", "4", "--prompt", "Once upon")
    assert "step    4 of 4" in first.stdout and "Once upon" in first.stdout
    assert {path.name for path in gpt.parent.iterdir()} == {"gpt.py", "gpt-run"}

    # What is trained is kept: the same command only speaks, and says the same.
    again = run(gpt, "--steps", "4", "--prompt", "Once upon")
    assert "step" not in again.stdout and again.stdout.strip() == first.stdout[first.stdout.index("Once upon"):].strip()


def test_the_file_does_what_its_chapters_do(gpt, tmp_path):
    alone = run(gpt, "--steps", "3", "--folder", str(tmp_path / "alone")).stdout
    (tmp_path / "probe.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from chapters import ch10_alone; sys.exit(ch10_alone.main())"
    )
    assert run(tmp_path / "probe.py", "--steps", "3", "--folder", str(tmp_path / "chapters")).stdout == alone
    # Beside the numbers, a checkpoint notes how long its logs are, and a speed in these has three digits or four.
    kept = [load_file(tmp_path / name / "checkpoint" / "state.safetensors") for name in ("alone", "chapters")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_the_file_learns_from_a_text_of_ones_own_and_answers_mistakes_in_one_line(gpt, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("\n\n".join(f"The {word} met a {word}, {word} by {word}." for word in ("cat", "dog", "owl", "bee")))
    assert "step    2 of 2" in run(gpt, str(text), "--steps", "2", "--folder", str(tmp_path / "run")).stdout
    text.write_text("only one paragraph")
    for arguments in ([str(text)], ["/nowhere.txt"], ["--steps", "0"]):
        error = run(gpt, *arguments, "--folder", str(tmp_path / "other"), code=2).stderr.splitlines()
        assert len(error) == 1 and error[0].startswith("error: ")


def test_every_definition_in_the_file_stands_in_a_chapter_word_for_word(gpt):
    text = gpt.read_text(encoding="utf-8")
    chapters = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "chapters").glob("ch*.py")))
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 100
    for node in functions:
        assert ast.get_source_segment(text, node) in chapters, node.name
    assert "from chapters" not in text and "import corpora" not in text and "from corpora" not in text


def test_the_file_has_no_fault_that_a_linter_finds(gpt):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(gpt)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_file_holds_all_of_it_and_only_that(gpt):
    tree = ast.parse(gpt.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert names >= {"BPETokenizer", "apply_rope", "MultiHeadAttention", "SwiGLU", "GPT", "Muon", "Trainer", "KVCache"}
    # What only the book's tests and other files need stays there.
    assert not names & {"learn_merges_slow", "one_hot_lookup", "rms_norm", "AdamW", "load_model", "draw_loss_curve"}


def test_a_name_that_means_two_things_is_refused():
    # `checksum` is one function for checkpoints and another for tokens on disk.
    places = {("chapters.ch08_checkpoint", "checksum"), ("chapters.ch08_store", "checksum")}
    with pytest.raises(ValueError, match="checksum means two things"):
        libraries_of(places, set())


def test_imports_of_the_book_inside_of_functions_are_left_out():
    module = read_module("chapters.ch07_gpt_model")
    text = text_of(module, module.pieces["GPT"], {"from_pretrained", "save_pretrained"})
    assert "def from_pretrained" in text and "load_model(" in text and "from chapters" not in text


def test_code_that_would_need_the_corpora_is_refused(monkeypatch):
    module = read_module("chapters.ch10_journey")
    assert module.links["load_corpus"] == ("corpora.documents", "load_corpus")
    with pytest.raises(ValueError, match="is used by code"):
        ch10_onefile.follow(("chapters.ch10_journey", "Journey"), {"begin"})


def test_an_existing_file_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "gpt.py"
    path.write_text("mine")
    assert main.main(["onefile", "--out", str(path)]) == 2
    assert "exists: name a new file" in capsys.readouterr().err and path.read_text() == "mine"
    assert main.main(["onefile", "--out", str(tmp_path / "new.py")]) == 0
    assert (tmp_path / "new.py").read_text(encoding="utf-8") == assemble()

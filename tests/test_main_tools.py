"""The promises of `main.py` around a run: what it cost, how good it is, and carrying it away."""

import pytest
import torch

import main
from chapters.ch07_gpt_model import GPT
from corpora.stories import generate

SMALL = ["--d-model", "32", "--num-heads", "2", "--d-ff", "48", "--num-layers", "2", "--vocab-size", "300",
         "--max-seq-len", "64", "--max-steps", "4", "--batch-size", "3", "--eval-every", "2", "--compile", "off"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, made by `main.py train` on a file of a few stories."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "little.txt"
    text.write_text("<|endoftext|>".join(generate(120, seed=7)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "RUNS", folder)
        assert main.main(["train", "--data", str(text), *SMALL]) == 0
    return folder / "little-tiny"


def test_info_holds_what_a_run_took_against_what_was_predicted(run, capsys):
    assert main.main(["info", "--model", str(run)]) == 0
    out = capsys.readouterr().out
    assert "of its run, 4 steps on cpu" in out and "predicted 0:0" in out and "MiB before activations, real" in out


def test_a_run_is_examined_on_its_own_held_out_text(run, capsys):
    assert main.main(["eval", "--model", str(run)]) == 0
    said = capsys.readouterr().out
    card = (run / "README.md").read_text()
    score = next(line.split("|")[2].strip() for line in card.splitlines() if line.startswith("| bits per byte"))
    assert f"bits per byte {score}, end tokens included" in said and "floor" not in said


def test_a_run_is_exported_and_read_back(run, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    assert main.main(["export", "--model", str(run), "--to", "gguf", "--out", str(tmp_path / "run.gguf")]) == 0
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "run.gguf").tensors}
    table = GPT.from_pretrained(run).token_embedding.weight
    assert torch.equal(torch.tensor(tensors["token_embd.weight"]), table.half())


@pytest.mark.parametrize(("command", "message"), [
    (["eval", "--documents", "0"], "--documents is 0"),
    (["eval", "--window", "100000"], "--window is 100000"),
    (["eval", "--data", "/nowhere"], "/nowhere"),
    (["export", "--out", "/nowhere/at/all.gguf"], "/nowhere/at/all.gguf"),
    (["onefile", "--out", "/nowhere/at/all.py"], "/nowhere/at/all.py"),
])
def test_a_mistake_is_answered_in_one_line(command, message, run, capsys):
    command += ["--model", str(run)] if command[0] != "onefile" else []
    assert main.main(command) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]

"""The promises of `main.py`: its commands, its run folder, its manners."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import main
from chapters import ch09_inference
from chapters.ch07_gpt_model import GPT
from corpora.stories import generate

ROOT = Path(main.__file__).parent
SMALL = ["--d-model", "32", "--num-heads", "2", "--d-ff", "48", "--num-layers", "2", "--vocab-size", "300",
         "--max-seq-len", "64", "--max-steps", "4", "--batch-size", "3", "--eval-every", "2", "--compile", "off"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of a few stories, one document each."""
    path = tmp_path_factory.mktemp("data") / "little.txt"
    path.write_text("<|endoftext|>".join(generate(120, seed=7)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text):
    """A folder of runs in which one small run has been made."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "RUNS", folder)
        assert main.main(["train", "--data", str(text), *SMALL]) == 0
    return folder


def test_a_run_writes_everything_it_promises(runs):
    names = {path.name for path in (runs / "little-tiny").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md",
                     "metrics.jsonl", "loss.png", "samples.txt", "checkpoint", "settings.json"}
    steps = [json.loads(line)["step"] for line in (runs / "little-tiny" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 4]
    card = (runs / "little-tiny" / "README.md").read_text()
    assert "little.txt" in card and "bits per byte" in card


def test_transformers_opens_what_main_wrote_and_says_the_same(runs):
    folder = runs / "little-tiny"
    ours, theirs = GPT.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    reader = AutoTokenizer.from_pretrained(folder)
    prompt = reader("<|endoftext|>Once upon a time", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(ours(prompt), theirs(prompt).logits, atol=1e-4, rtol=0)
    config = main.SamplingConfig(temperature=0, max_new_tokens=12)
    told = list(ch09_inference.generate(ours, prompt[0].tolist(), config))
    again = theirs.generate(prompt, do_sample=False, max_new_tokens=12, min_new_tokens=12)
    assert again[0, prompt.shape[1]:].tolist() == told


def test_a_second_run_takes_a_new_name(runs, text, monkeypatch, capsys):
    monkeypatch.setattr(main, "RUNS", runs)
    before = (runs / "little-tiny" / "model.safetensors").read_bytes()
    assert main.main(["train", "--data", str(text), *SMALL]) == 0
    assert (runs / "little-tiny-2" / "model.safetensors").read_bytes() == before
    assert (runs / "little-tiny" / "model.safetensors").read_bytes() == before
    out = capsys.readouterr().out
    assert "tokens/s  used" in out and "minutes" in out and out.count("── Story") == 3


def test_a_run_in_float16_is_timed_beside_the_other_formats(text, tmp_path, capsys):
    assert main.main(["train", "--data", str(text), "--runs", str(tmp_path), *SMALL, "--dtype", "float16"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]
    assert [line.split()[0] for line in lines] == ["float32", "bfloat16", "float16"]
    assert [line.endswith("used") for line in lines] == [False, False, True]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, text):
    script = f"import main, pathlib; main.RUNS = pathlib.Path({str(tmp_path)!r}); raise SystemExit(main.main())"
    many = [*SMALL, "--max-steps", "100000", "--eval-every", "100000"]
    process = subprocess.Popen([sys.executable, "-c", script, "train", "--data", str(text), *many], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/samples.txt")) and process.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert f"main.py train --resume {tmp_path / 'little-tiny'}" in out
    assert (tmp_path / "little-tiny" / "checkpoint" / "state.safetensors").exists()


def test_generate_keeps_the_prompt_and_repeats_itself_under_one_seed(runs, capsys):
    command = ["generate", "--model", str(runs / "little-tiny"), "--prompt", "Lily saw", "--max-new-tokens", "9"]
    texts = []
    for _ in range(2):
        assert main.main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("Lily saw") and len(texts[0]) > len("Lily saw\n")


def test_chat_goes_on_from_what_was_said(runs, monkeypatch, capsys):
    lines = iter(["Once", "", "Tom"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert main.main(["chat", "--model", str(runs / "little-tiny"), "--max-new-tokens", "5"]) == 0
    assert "An empty line starts a new one" in capsys.readouterr().out


def test_info_counts_the_parameters_of_a_preset_and_of_a_folder(runs, capsys):
    assert main.main(["info", "--preset", "base"]) == 0
    assert "151,862,784" in capsys.readouterr().out
    assert main.main(["info", "--model", str(runs / "little-tiny")]) == 0
    model = GPT.from_pretrained(runs / "little-tiny")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in capsys.readouterr().out


def test_every_field_of_every_config_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main.read_arguments(["train", "--help"])
    shown = capsys.readouterr().out
    for config in (main.GPTConfig, main.TrainConfig):
        assert all("--" + name.replace("_", "-") in shown for name in config.__dataclass_fields__)


def test_chat_begins_anew_when_a_story_fills_the_context(runs, monkeypatch, capsys):
    lines = iter(["word " * 80, "Once"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert main.main(["chat", "--model", str(runs / "little-tiny"), "--max-new-tokens", "5"]) == 0
    assert "fills the model's 64 tokens" in capsys.readouterr().out


def test_a_file_called_stories_is_not_held_against_the_grammar(tmp_path, text, monkeypatch):
    monkeypatch.setattr(main, "RUNS", tmp_path / "runs")
    mine = tmp_path / "stories.txt"
    mine.write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    assert main.main(["train", "--data", str(mine), *SMALL]) == 0
    assert "grammar" not in (tmp_path / "runs" / "stories-tiny" / "README.md").read_text()

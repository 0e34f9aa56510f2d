"""Bad input: one line on stderr that names the value, the rule and the next step, exit code 2, and nothing is lost.

Each test types a command and looks at the whole of what came of it: the exit code, every line on stderr, and every
file in the folder of the test, byte for byte. Empty folders do not count.
"""

import dataclasses
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import main
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch07_safetensors import save_tensors
from chapters.ch08_checkpoint import checksum, read_checkpoint
from corpora.stories import generate

ROOT = Path(main.__file__).parent
SMALL = ["--d-model", "32", "--num-heads", "2", "--d-ff", "48", "--num-layers", "2", "--vocab-size", "300",
         "--max-seq-len", "64", "--max-steps", "2", "--batch-size", "3", "--eval-every", "2", "--compile", "off"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a text, and a run that has learnt from it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text("<|endoftext|>".join(generate(60, seed=7)), encoding="utf-8")
    begun = ["train", "--data", str(folder / "text.txt"), "--runs", str(folder / "runs"), "--name", "old"]
    assert main.main([*begun, *SMALL]) == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of it for one test, in which the command is typed."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(main, "RUNS", tmp_path / "here" / "runs")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(here, capsys) -> Callable[..., str]:
    """Type a command that is to be refused, and get the line that says so."""

    def type_it(*command: object) -> str:
        before, _ = contents(here), capsys.readouterr()
        try:
            code = main.main(list(map(str, command)))
        except SystemExit as end:
            code = end.code
        # A note of which model was opened may stand before: then the model is well, and the prompt is not.
        error = re.sub(r"^\(.* speaks\)\n", "", capsys.readouterr().err)
        assert code == 2 and error.startswith("error: ") and error.endswith("\n"), error
        assert len(error.splitlines()) == 1, error
        assert contents(here) == before
        return error

    return type_it


def says(line: str, *words: str) -> None:
    """Assert that a line has all of these words."""
    assert all(word in line for word in words), line


# What is typed


@pytest.mark.parametrize(("command", "words"), [
    ("fly", "invalid choice: 'fly' (choose from --help"),
    ("--d-model 32", "invalid choice: '32' --help"),
    ("--no-such-flag", "unknown: --no-such-flag --help"),
    ("train --preset huge", "--preset invalid 'huge' 'nano' see: main.py train --help"),
    ("train --no-such-flag", "unknown: --no-such-flag see: main.py train --help"),
    ("train --d-modell 32", "unknown: --d-modell"),
    ("generate --d-model 32", "unknown: --d-model see: main.py generate --help"),
    ("train --d-model", "--d-model expected --help"),
    ("train --d-model wide", "--d-model 'wide' --help"),
    ("train --d-model 255", "d_model 255 divisible num_heads 4: change"),
    ("train --num-heads 4 --num-kv-heads 3", "num_heads 4 divisible num_kv_heads 3: change"),
    ("train --d-model 36 --num-heads 4", "head_dim 9 odd: choose"),
    ("train --vocab-size 256", "vocab_size 256 small: choose 257"),
    ("train --vocab-size -1", "vocab_size -1: above 0"),
    ("train --qk-norm --qkv-bias", "qk_norm qkv_bias family switch off"),
    ("train --dropout 1", "dropout 1.0 [0, 1): 0.1"),
    ("train --norm-eps 0", "norm_eps 0.0 above 1e-5"),
    ("train --max-steps 0", "max_steps 0: above"),
    ("train --batch-size -3", "batch_size -3: above"),
    ("train --beta2 1", "beta2 1.0: below 1"),
    ("train --optimizer adam", "optimizer 'adam': choose adamw, muon"),
    ("train --dtype float8", "dtype 'float8': choose auto, float32, bfloat16, float16"),
    ("train --seed -1", "seed -1: 0 above"),
    (f"train --seed {1 << 64}", f"seed {1 << 64}: below"),
    ("train --rope-scaling {", "--rope-scaling '{' no JSON object, such as {"),
    ("train --rope-scaling [1]", "--rope-scaling '[1]' no JSON object"),
    (f"train --rope-scaling {'[' * 100_000}", "--rope-scaling no JSON object"),
    ('train --rope-scaling {"rope_type":"linear"}', "rope_scaling linear needs factor"),
    ('train --rope-scaling {"rope_type":"linear","factor":NaN}', "factor nan: finite"),
    ('train --rope-scaling {"rope_type":"yarn"}', "rope_scaling yarn one of linear"),
    ("train --d-model 40000000", "parameters GiB least choose smaller"),
    ("train --num-layers 100000000000", "parameters GiB least choose smaller"),
    ("train --batch-size 100000000000000", "batches of 100000000000000 GiB least choose smaller"),
    ("train --max-seq-len 100000000000", "tokens to learn from do not fill one context of 100000000000; give"),
    ("generate --temperature -1", "temperature -1.0: 0 or above"),
    ("generate --top-p 0", "top_p 0.0: above 0 at most 1"),
    ("generate --top-p 1.01", "top_p 1.01: above 0 at most 1"),
    ("generate --top-k -1", "top_k -1: 0 or above"),
    ("generate --min-p 1", "min_p 1.0: below 1"),
    ("generate --repetition-penalty 0", "repetition_penalty 0.0: above 0"),
    ("generate --max-new-tokens 0", "max_new_tokens 0: 1 or above"),
    ("generate --count 0", "count 0: 1 or above"),
    (f"generate --seed {1 << 63}", f"seed {1 << 63}: below"),
    ("generate --prompt \udcff", "'\\udcff' no UTF-8 text: type"),
    ("info --preset huge", "--preset invalid 'huge' 'nano' --help"),
])  # fmt: skip
def test_a_flag_or_a_value_that_cannot_be_is_refused(command, words, refused):
    parts = command.split()
    data = ["--data", "text.txt"] if parts[0] == "train" else []
    says(refused(*parts, *data), *words.split())


FLOATS = [(command, field.name.replace("_", "-"))
          for command, configs in (("train", (main.GPTConfig, main.TrainConfig)), ("generate", (main.SamplingConfig,)))
          for config in configs for field in dataclasses.fields(config) if field.type is float]  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(("command", "flag"), FLOATS)
def test_no_flag_takes_what_is_not_a_finite_number(command, flag, value, refused):
    says(refused(command, f"--{flag}={value}"), flag.replace("-", "_"), f"{float(value)}: it must be a finite number")


def test_a_word_with_line_ends_is_answered_in_one_line_all_the_same(refused):
    says(refused("train", "--data", "no\nsuch\rfile\u2028here"), "no such file here", "give")
    says(refused("train", "--no\nflag"), "unknown: --no flag")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "C:", ".tokens", "a b", "x" * 61, "-a"])
def test_the_name_of_a_run_is_no_path_and_fits_every_system(name, refused):
    line = refused("train", "--data", "text.txt", f"--name={name}", *SMALL)
    says(line, f"--name {name!r}", "at most 60", "--runs FOLDER")


def test_a_folder_that_exists_is_never_written_into(refused, here):
    line = refused("train", "--data", "text.txt", "--name", "old", *SMALL)
    says(line, "--name old", "exists", "another name", f"--resume {here / 'runs' / 'old'}")
    (here / "runs" / "file").write_text("not a folder")
    says(refused("train", "--data", "text.txt", "--name", "file", *SMALL), "--name file", "exists")


@pytest.mark.parametrize("runs", ["text.txt", "text.txt/deep"])
def test_runs_that_cannot_be_a_folder_are_refused(runs, refused):
    says(refused("train", "--data", "text.txt", "--runs", runs, *SMALL), runs, "cannot", "mend")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root, or to Windows")
def test_a_folder_that_is_closed_to_us_is_named(refused, here):
    closed = here / "closed"
    closed.mkdir(mode=0o500)
    says(refused("train", "--data", "text.txt", "--runs", closed, *SMALL), "closed", "Permission denied", "mend")


def may_open(port: int) -> bool:
    """Return whether the system lets us open a port."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize(("port", "words"), [
    ("taken", ["address already in use"]), ("70000", ["from 0 to 65535"]), ("-1", ["from 0 to 65535"]),
    ("many", ["invalid literal"]), ("", ["MASTER_PORT"]),
    ("1", ["permission denied"]),
])
def test_a_port_where_processes_cannot_meet_is_refused(port, words, refused, monkeypatch):
    if port == "1" and may_open(1):
        pytest.skip("low ports are open to root, and to everybody on some systems")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1]) if port == "taken" else port
        torchruns = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0",
                     "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in torchruns.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        says(refused("train", "--data=text.txt"), f"cannot meet at 127.0.0.1:{port} ", *words, "--master-port")


# What is read to learn from


@pytest.mark.parametrize(("name", "content", "words"), [
    ("empty.txt", b"", ["holds no text", "give a text"]),
    ("spaces.txt", b" \n\t\n", ["holds no text", "give a text"]),
    ("marks.txt", b"<|endoftext|>" * 9, ["holds no text", "give a text"]),
    ("picture.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", ["byte 8 is NUL", "give text"]),
    ("program.txt", b"ELF\x00\x01", ["byte 3 is NUL", "give text"]),
    ("latin.txt", "grün".encode("latin-1"), ["byte 2 is not UTF-8", "convert"]),
    ("late.txt", b"good text. " * 200_000 + b"\xff", ["byte 2200000 is not UTF-8", "convert"]),
    ("wide.txt", "text".encode("utf-16-be"), ["byte 0 is NUL", "give text"]),
    ("short.txt", b"One day.\n\nThe end.", ["tokens to learn from do not fill one context of 64", "give more"]),
    ("letter.txt", b"a", ["1 letters are too few", "give more"]),
    ("no.jsonl", b"text", ["line 1 is no JSON", "mend or remove"]),
    ("deep.jsonl", b"[" * 100_000, ["line 1 is no JSON", "mend or remove"]),
    ("other.jsonl", b'{"body": "a"}', ["line 1 has no field 'text'", "'body'", "--text-field"]),
    ("number.jsonl", b'{"text": 5}', ["line 1", "is int, not text", "--text-field"]),
    ("half.jsonl", b'{"text": "\\ud800"}', ["line 1", "U+D800, half a character", "mend or remove"]),
    ("late.jsonl", b'{"text": "good text"}\n' * 90_000 + b"{", ["line 90001 is no JSON", "mend or remove"]),
    ("no.parquet", b"PAR1 but not really PAR1", ["not a parquet file", "get it again"]),
])  # fmt: skip
def test_a_text_that_cannot_be_learnt_from_is_refused(name, content, words, refused, here):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (here / name).write_bytes(content)
    says(refused("train", "--data", name, *SMALL), f"--data {name}", *words)


@pytest.mark.parametrize("data", ["missing.txt", "runs/*.nothing", "empty", "", "text.txt/deeper", "hf:"])
def test_a_text_that_is_not_there_is_refused(data, refused, here):
    (here / "empty").mkdir()
    says(refused("train", "--data", data, *SMALL), f"--data {data or 'is empty'}", "give" if data != "hf:" else "write")


# A run that is to go on


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def rewrite_checkpoint(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Change the tensors or the notes of a checkpoint, and give it a checksum that fits."""
    tensors, notes = read_checkpoint(path)
    change(tensors, notes)
    texts = {name: json.dumps(note) for name, note in notes.items()}
    save_tensors(tensors, path, texts | {"sha256": checksum(tensors, texts)})


@pytest.mark.parametrize("folder", ["missing", "text.txt", "runs", "runs/old/checkpoint", "", ".."])
def test_a_folder_without_a_run_cannot_go_on(folder, refused):
    says(refused("train", "--resume", folder), "--resume", "no run to go on with", "begin a new one")


@pytest.mark.parametrize("change", [
    lambda settings: settings.pop("tokens"),
    lambda settings: settings.pop("model"),
    lambda settings: settings.update(data=5),
    lambda settings: settings.update(clean="yes"),
    lambda settings: settings["train"].update(max_step=5),
    lambda settings: settings["train"].update(max_steps=5.5),
    lambda settings: settings["train"].update(warmup_steps="few"),
    lambda settings: settings["train"].update(weight_decay=float("nan")),
    lambda settings: settings["model"].update(num_kv_heads=7),
    lambda settings: settings["model"].pop("vocab_size") and settings["model"].update(width=3),
])  # fmt: skip
def test_settings_of_an_older_book_or_of_another_hand_cannot_go_on(change, refused, here):
    rewrite(here / "runs" / "old" / "settings.json", change)
    says(refused("train", "--resume", "runs/old"), "--resume runs/old", "no run to go on with", "begin a new one")


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"\xff", b"{", b"[" * 100_000])
def test_settings_that_are_no_json_object_cannot_go_on(content, refused, here):
    (here / "runs" / "old" / "settings.json").write_bytes(content)
    says(refused("train", "--resume", "runs/old"), "--resume runs/old", "no run to go on with", "begin a new one")


@pytest.mark.parametrize(("change", "words"), [
    (lambda tensors, notes: tensors.pop("model.final_norm.weight"), ["another model", "change it back"]),
    (lambda tensors, notes: tensors.update({"model.final_norm.weight": torch.ones(33)}), ["another model"]),
    (lambda tensors, notes: tensors.update({"model.more": torch.ones(3)}), ["another model", "change it back"]),
    (lambda tensors, notes: tensors.update({"optimizer.7.0.mean": torch.ones(3)}), ["another model or optimizer"]),
    (lambda tensors, notes: tensors.pop("random.cpu"), ["lacks random.cpu", "another device", "go on with it there"]),
    (lambda tensors, notes: notes.pop("text"), ["another version", "remove it"]),
    (lambda tensors, notes: notes.pop("losses"), ["another version", "remove it"]),
    (lambda tensors, notes: notes.update(text="other"), ["the text is not the one", "bring it back"]),
])  # fmt: skip
def test_a_checkpoint_of_another_run_or_book_is_refused(change, words, refused, here):
    rewrite_checkpoint(here / "runs" / "old" / "checkpoint" / "state.safetensors", change)
    says(refused("train", "--resume", "runs/old"), str(Path("runs", "old")), *words)


def test_a_checkpoint_of_another_config_is_refused(refused, here):
    rewrite(here / "runs" / "old" / "settings.json", lambda settings: settings["model"].update(d_ff=50))
    says(refused("train", "--resume", "runs/old"), "belongs to another model", "settings.json", "change it back")


def test_a_size_that_no_machine_has_is_refused_in_settings_too(refused, here):
    rewrite(here / "runs" / "old" / "settings.json", lambda settings: settings["model"].update(d_ff=10**14))
    says(refused("train", "--resume", "runs/old"), "GiB at least", "choose smaller")


@pytest.mark.parametrize("flag", ["--data=text.txt", "--preset=nano", "--name=new", "--runs=there", "--clean",
                                  "--text-field=body", "--max-steps=9", "--dropout=0"])
def test_a_setting_beside_resume_is_refused_and_not_passed_over(flag, refused):
    name = flag[2:].split("=")[0].replace("-", "_")
    says(refused("train", "--resume", "runs/old", flag), "--resume keeps", f"leave out {name}", "begin a new run")


def test_a_damaged_log_is_named_before_the_run_goes_on(refused, here):
    path = here / "runs" / "old" / "metrics.jsonl"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    says(refused("train", "--resume", "runs/old"), "metrics.jsonl: line 1 is damaged", "mend or remove")


# A model that is to speak


@pytest.fixture
def model(here) -> Path:
    """A model's folder to damage."""
    return shutil.copytree(here / "runs" / "old", here / "model", ignore=shutil.ignore_patterns("checkpoint"))


def tensors_of(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Return what changes the tensors of a folder, and leaves a file without a checksum, as others write it."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def config_of(**fields: object) -> Callable[[Path], None]:
    """Return what sets fields of a folder's config.json."""
    return lambda folder: rewrite(folder / "config.json", lambda config: config.update(fields))


def without(*fields: str) -> Callable[[Path], None]:
    """Return what takes fields out of a folder's config.json."""
    return lambda folder: rewrite(folder / "config.json", lambda config: [config.pop(field) for field in fields])


def header_of(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Return what changes the description in front of a folder's numbers."""

    def damage(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        size = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:size])
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[size:])

    return damage


def bytes_of(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Callable[[Path], None]:
    """Return what changes the bytes of one of a folder's files."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


NORM, UP, EMBEDDING = "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"
DAMAGES = {
    "no folder": (shutil.rmtree, ["no folder here", "ORG/NAME"]),
    "an empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], ["config.json", "get the folder"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors", "get the folder"]),
    "a folder for weights": (lambda folder: [(folder / "model.safetensors").unlink(),
                                             (folder / "model.safetensors").mkdir()], ["get the folder"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json", "does not exist", "give"]),
    # Bytes of the file of numbers
    "cut short": (bytes_of(lambda content: content[:-1]), ["get the folder"]),
    "cut to its half": (bytes_of(lambda content: content[: len(content) // 2]), ["get the folder"]),
    "nothing in it": (bytes_of(lambda content: b""), ["get the folder"]),
    "one byte more": (bytes_of(lambda content: content + b"\0"), ["get the folder"]),
    "one bit of a number": (bytes_of(lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]),
                            ["checksum", "get the folder"]),
    "a page in a book": (bytes_of(lambda content: b"<html>404"), ["get the folder"]),
    "a pickle": (bytes_of(lambda content: b"\x80\x04}q\x00."), ["get the folder"]),
    # The description in front of the numbers
    "a header of gigabytes": (bytes_of(lambda content: struct.pack("<Q", 1 << 62) + content[8:]), ["get the folder"]),
    "a header of minus one": (bytes_of(lambda content: b"\xff" * 8 + content[8:]), ["get the folder"]),
    "a header of nothing": (bytes_of(lambda content: bytes(8) + content[8:]), ["get the folder"]),
    "a header that is no JSON": (bytes_of(lambda content: content[:8] + b"?" + content[9:]), ["get the folder"]),
    "a header without an end": (bytes_of(lambda content: struct.pack("<Q", 100_000) + b"[" * 100_000), ["get the"]),
    "tensors that overlap": (header_of(lambda header: header[NORM].update(
        data_offsets=[0, 128])), ["get the folder"]),
    "an end before its start": (header_of(lambda header: header[NORM]["data_offsets"].reverse()), ["get the folder"]),
    "a place below nothing": (header_of(lambda header: header[NORM].update(data_offsets=[-128, 0])), ["get the"]),
    "a place beyond the end": (header_of(lambda header: header[NORM].update(
        data_offsets=[1 << 40, (1 << 40) + 128])), ["get the folder"]),
    "a size that overflows": (header_of(lambda header: header[NORM].update(shape=[1 << 62, 1 << 62])), ["get the"]),
    "a negative size": (header_of(lambda header: header[NORM].update(shape=[-32])), ["get the folder"]),
    "an unknown format": (header_of(lambda header: header[NORM].update(dtype="F33")), ["get the folder"]),
    # Tensors
    "a wrong shape": (tensors_of(lambda all: all.update({NORM: torch.ones(33)})), [NORM, "(33,)", "(32,)", "get the"]),
    "whole numbers": (tensors_of(lambda all: all.update({NORM: torch.ones(32).int()})), [NORM, "I32", "fractions"]),
    "a missing tensor": (tensors_of(lambda all: all.pop(UP)), [UP, "missing", "get the folder"]),
    "an extra tensor": (tensors_of(lambda all: all.update(extra=torch.ones(3))), ["extra", "not belong", "get the"]),
    "a number that is none": (tensors_of(lambda all: all[UP].view(-1)[5:6].fill_(torch.nan)),
                              [UP, "not finite", "get the folder"]),
    "an infinite number": (tensors_of(lambda all: all[NORM][3:4].fill_(torch.inf)), [NORM, "not finite", "get the"]),
    "a number beyond float32": (tensors_of(lambda all: all.update({NORM: all[NORM].double() * 1e300})),
                                [NORM, "not finite"]),
    "numbers that overflow": (tensors_of(lambda all: [all[NORM].fill_(3e38), all[EMBEDDING].mul_(1e6)]),
                              ["scores", "not finite", "get it again"]),
    # Sizes and switches
    "a config that is no JSON": (bytes_of(lambda content: content[:-9], "config.json"), ["get the folder"]),
    "a config without end": (bytes_of(lambda content: b"[" * 100_000, "config.json"), ["get the folder"]),
    "a config that is a list": (bytes_of(lambda content: b"[]", "config.json"), ["config.json", "object", "get the"]),
    "another architecture": (config_of(model_type="bert"), ["model_type 'bert'", "known here are llama"]),
    "a GPT-2 without its sizes": (config_of(model_type="gpt2"), ["n_embd", "config.json"]),
    "no architecture": (without("model_type"), ["model_type None", "known here are llama"]),
    "a missing size": (without("hidden_size"), ["4096", "config.json", "get the folder"]),
    "another size": (config_of(intermediate_size=47), ["47", "config.json", "get the folder"]),
    "a size in words": (config_of(hidden_size="32"), ["d_model is '32'", "whole number"]),
    "heads that do not fit": (config_of(num_attention_heads=3, num_key_value_heads=2), ["num_heads 3", "change one"]),
    "a base that is no number": (config_of(rope_parameters=None, rope_theta=float("nan")), ["rope_theta is nan"]),
    "another bend": (config_of(hidden_act="gelu"), ["hidden_act 'gelu'", "only 'silu'"]),
    # Tokens
    "no tokenizer in it": (bytes_of(lambda content: b"{}", "tokenizer.json"), ["tokenizer.json", "no object called"]),
    "half a tokenizer": (bytes_of(lambda content: content[:-99], "tokenizer.json"), ["tokenizer.json", "read"]),
    "another model's tokenizer": (lambda folder: BPETokenizer.train(generate(60, seed=1), 420).save(folder),
                                  ["id 419", "only 300 tokens", "model's own tokenizer.json"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_that_is_damaged_or_foreign_does_not_speak(name, refused, model):
    damage, words = DAMAGES[name]
    damage(model)
    line = refused("generate", "--model", "model", "--max-new-tokens", "3")
    says(line, *words)
    assert "model" in line


def test_a_bit_of_a_number_is_missed_only_in_a_file_without_a_checksum(model, tmp_path):
    whole = GPT.from_pretrained(model)
    tensors_of(lambda all: None)(model)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    changed = GPT.from_pretrained(model)
    pairs = zip(whole.state_dict().values(), changed.state_dict().values(), strict=True)
    assert sum(int((a != b).sum()) for a, b in pairs) == 1
    changed.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "model.safetensors", framework="pt") as file:
        assert len(file.metadata()["sha256"]) == 64


@pytest.mark.parametrize("command", ["generate", "chat", "info"])
def test_every_command_that_opens_a_model_refuses_one_that_is_not_there(command, refused):
    says(refused(command, "--model", "nowhere"), "nowhere is no folder here", "ORG/NAME")
    says(refused(command, "--model", "text.txt"), "text.txt is no folder here", "ORG/NAME")


def test_a_prompt_longer_than_the_context_is_refused_and_not_cut(refused):
    line = refused("generate", "--model", "runs/old", "--prompt", "once upon a time " * 90)
    says(line, "the prompt has", "tokens: it must have 1 to 63", "give another")


# Without a network


SILENT = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "", "no_proxy": ""}


@pytest.fixture(params=["refuses", "is silent"])
def no_network(request, tmp_path):
    """Surroundings of a process whose only way out refuses every connection, or takes it and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        ways = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        yield SILENT | dict.fromkeys(ways, f"http://127.0.0.1:{port}") | {"HF_HOME": str(tmp_path / "hub")}


def typed(*command: str, **surroundings: str) -> subprocess.CompletedProcess:
    """Type a command, as a reader does."""
    return subprocess.run([sys.executable, "main.py", *command], cwd=ROOT, env=os.environ | surroundings,
                          capture_output=True, text=True, encoding="utf-8", timeout=600)


def test_a_name_of_the_hub_without_a_network_names_the_way_without_one(no_network, here):
    done = typed("generate", "--model", "org/name", **no_network)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    says(done.stderr, "error: 'org/name' is not on this disk", "cannot be reached", "hf download org/name --local-dir")


def test_a_data_set_of_the_hub_without_a_network_names_the_way_without_one(no_network, here):
    pytest.importorskip("datasets")
    before = contents(here)
    done = typed("train", "--data", "hf:org/name", "--runs", str(here / "runs"), **no_network)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    says(done.stderr, "error: --data hf:org/name", "network", "or give a file")
    assert contents(here) == before


# The same in a process of its own


@pytest.mark.parametrize(("command", "words"), [
    (["train", "--wide", "3"], "error: unknown: --wide 3; see: python main.py train --help"),
    (["train", "--dropout", "nan"], "error: dropout is nan: it must be a finite number"),
    (["train", "--data", "{here}/nowhere.txt"], "nowhere.txt: no such file, folder or match; give"),
    (["train", "--resume", "{here}"], "no run to go on with"),
    (["generate", "--model", "{here}/model", "--max-new-tokens", "3"], "the checksum of model.safetensors"),
])
def test_a_reader_who_types_it_sees_one_line_and_exit_code_2(command, words, here, model):
    DAMAGES["one bit of a number"][0](model)
    before = contents(here)
    done = typed(*(part.format(here=here) for part in command))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr and contents(here) == before


def test_a_terminal_without_some_letters_does_not_end_a_command(here):
    done = typed("generate", "--model", str(here / "runs" / "old"), "--prompt", "── Größe 🙂", "--max-new-tokens", "3",
                 PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.startswith("?? Gr??e ?")


# Nothing on disk is a pickle


def read_strictly(path: Path) -> None:
    """Read a file as what its name says it is; a name that says nothing known fails."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        assert load_file(path)
    elif path.suffix == ".json":
        assert isinstance(json.loads(content), dict)
    elif path.suffix == ".jsonl":
        assert all(isinstance(json.loads(line), dict) for line in content.splitlines())
    elif path.suffix == ".png":
        assert content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB`\x82")
    elif path.suffix in (".tokens", ".ends"):
        # Numbers, smallest byte first, all of them within bounds: tokens below 300, ends in order.
        width = 2 if path.suffix == ".tokens" else 8
        numbers = [int.from_bytes(content[i : i + width], "little") for i in range(0, len(content), width)]
        assert max(numbers) < 300 if width == 2 else numbers == sorted(set(numbers))
    else:
        assert path.suffix in (".txt", ".md") and "\0" not in content.decode("utf-8")


def test_every_file_that_a_run_writes_is_numbers_json_text_or_a_picture(made):
    files = [path for path in (made / "runs").rglob("*") if path.is_file()]
    assert len(files) >= 15
    for path in files:
        read_strictly(path)


def test_a_pickle_in_a_run_would_be_seen(tmp_path):
    pickled = io.BytesIO()
    torch.save({"weights": torch.ones(3)}, pickled)
    for name in ("model.safetensors", "a.json", "a.jsonl", "loss.png", "train.tokens", "a.ends", "a.md", "a.pt", "a"):
        (tmp_path / name).write_bytes(pickled.getvalue())
        with pytest.raises(Exception):  # noqa: B017
            read_strictly(tmp_path / name)

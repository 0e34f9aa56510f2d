"""`torchrun … main.py train`: several processes that look from outside like one, and end like one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from chapters.ch08_checkpoint import read_checkpoint
from chapters.ch08_run import read_metrics
from corpora.stories import generate

ROOT = Path(main.__file__).parent
# A process that dies without a word of Python says at least where it was.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "main.py"]
ONE = [sys.executable, "main.py"]
pytestmark = pytest.mark.slow

# How many seconds a command may take on a machine that has much else to do. Only one that hangs is ended.
PATIENCE = 1800


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A file of a few stories, one document each."""
    path = tmp_path_factory.mktemp("data") / "little.txt"
    path.write_text("<|endoftext|>".join(generate(120, seed=7)), encoding="utf-8")
    return path


def settings(text: Path, folder: Path, **changes) -> list[str]:
    """Return the arguments of a small run into a folder of that name."""
    chosen = {"d_model": 32, "num_heads": 2, "d_ff": 48, "num_layers": 2, "vocab_size": 300, "max_seq_len": 64,
              "batch_size": 4, "max_steps": 8, "eval_every": 4, "dtype": "float32", "compile": "off"} | changes
    flags = [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return ["train", "--data", str(text), "--runs", str(folder.parent), "--name", folder.name, *flags]


def start(command: list[str], out: Path) -> subprocess.Popen:
    with open(out, "w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)


def end_of(process: subprocess.Popen, out: Path) -> tuple[int, str]:
    """Return the exit code of a command, and what it said; end it, and show that, when it hangs."""
    try:
        return process.wait(timeout=PATIENCE), out.read_text()
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"it hangs: {out.read_text()[-2000:]}")


def run(command: list[str], out: Path, code: int | None = 0) -> str:
    """Run a command to its end, and return what it said."""
    found, said = end_of(start(command, out), out)
    assert found == code if code is not None else found != 0, said[-9000:]
    return said


def wait_until(true, process: subprocess.Popen, out: Path) -> None:
    """Wait for something that must come while a command runs."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None and time.monotonic() < end, out.read_text()[-2000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one(text, tmp_path_factory) -> Path:
    """What one process leaves behind."""
    folder = tmp_path_factory.mktemp("one")
    run([*ONE, *settings(text, folder / "run")], folder / "out")
    return folder / "run"


def scores(folder: Path) -> list[list[float]]:
    """Return what each look found, apart from what a clock has measured."""
    lines = read_metrics(folder)
    return [[line["step"], line["loss"] or 0.0, line["validation_bits_per_byte"]] for line in lines]


@pytest.mark.parametrize("flags", [[], ["--shard"]])
def test_two_processes_learn_what_one_learns_and_speak_and_write_as_one(one, text, tmp_path, flags):
    said = run([*TORCHRUN, *settings(text, tmp_path / "run"), *flags], tmp_path / "out")
    assert [said.count(words) for words in ("I will read", "2 processes", "tokens/s  used", "── Story 3")] == [1] * 4
    for ours, theirs in zip(scores(tmp_path / "run"), scores(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (tmp_path / "run", one)]
    assert files[0] == files[1]
    # One process goes on from the checkpoint, finds nothing left to train, and writes the very same model.
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    run([*ONE, "train", "--resume", str(tmp_path / "run")], tmp_path / "again")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to speak of")
@pytest.mark.parametrize(("number", "flags"), [(signal.SIGINT, []), (signal.SIGTERM, ["--shard"])])
def test_a_signal_to_torchrun_stops_all_after_one_step_saves_and_says_how_to_go_on(text, tmp_path, number, flags):
    folder = tmp_path / "run"
    endless = settings(text, folder, max_steps=100_000, eval_every=100_000, checkpoint_every=5)
    process = start([*TORCHRUN, *endless, *flags], tmp_path / "out")
    checkpoint = folder / "checkpoint" / "state.safetensors"
    wait_until(checkpoint.exists, process, tmp_path / "out")
    process.send_signal(number)
    code, said = end_of(process, tmp_path / "out")
    assert code != 0
    again = " ".join(["torchrun --nproc-per-node 2 main.py train", *flags, "--resume", str(folder)])
    assert again in said.split("all is saved")[1] and said.count("all is saved") == 1 and "error: " not in said
    step = read_checkpoint(checkpoint)[1]["step"]
    assert step >= 5 and f"Stopped at step {step}," in said


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes where Linux lists them")
def test_when_one_process_is_killed_the_others_end_with_one_line(text, tmp_path):
    endless = settings(text, tmp_path / "run", max_steps=100_000, eval_every=100_000, checkpoint_every=5)
    process = start([*TORCHRUN, *endless], tmp_path / "out")
    wait_until((tmp_path / "run" / "checkpoint" / "state.safetensors").exists, process, tmp_path / "out")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
    second = next(int(pid) for pid, environment in ranks.items() if b"RANK=1" in environment)
    os.kill(second, signal.SIGKILL)
    code, said = end_of(process, tmp_path / "out")
    assert code != 0
    assert said.count("error: another process of this run has ended") == 1
    assert read_checkpoint(tmp_path / "run" / "checkpoint" / "state.safetensors")[1]["step"] >= 5


@pytest.mark.parametrize(("changes", "words"), [
    ({"batch_size": 3}, "error: batch_size is 3: it must be a multiple of the 2 processes"),
    ({"d_model": -1}, "error: d_model"),
    ({"preset": "enormous"}, "error: argument --preset"),
    ({"data": "nowhere.txt"}, "nowhere.txt"),
])
def test_a_mistake_is_told_once_and_nothing_is_written(text, tmp_path, changes, words):
    said = run([*TORCHRUN, *settings(text, tmp_path / "run", **changes)], tmp_path / "out", code=None)
    ours = [line for line in said.splitlines() if "error: " in line]
    assert len(ours) == 1 and words in ours[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

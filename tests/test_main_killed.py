"""Whole processes that are killed, stopped and refused: a run of `main.py` survives all of it, to the last bit."""

import errno
import os
import random
import shutil
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
from tools.broken_disk import BrokenDisk

ROOT = Path(main.__file__).parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to speak of")

# Runs main.py as `python main.py` does, and keeps a note of what it is doing, for the one who kills it.
WATCHED = """
import os, runpy, sys
note = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT)
doing = ["starting"]
def tell():
    os.pwrite(note, doing[-1].ljust(12).encode(), 0)
tell()
from chapters import ch08_training, ch10_journey
def watch(owner, name, words):
    real = getattr(owner, name)
    def call(*args, **options):
        doing.append(words)
        tell()
        try:
            return real(*args, **options)
        finally:
            doing.pop()
            tell()
    setattr(owner, name, call)
trainer, journey = ch08_training.Trainer, ch10_journey.Journey
for words, owner, name in [("measuring", journey, "predict"), ("training", trainer, "_loop"), ("a step", trainer,
        "train_step"), ("evaluating", trainer, "evaluate"), ("speaking", journey, "look"), ("saving", trainer, "save"),
        ("examining", journey, "_examine"), ("writing", journey, "_write"), ("telling", journey, "tell")]:
    watch(owner, name, words)
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A file of a few stories, one document each."""
    path = tmp_path_factory.mktemp("data") / "little.txt"
    path.write_text("<|endoftext|>".join(generate(120, seed=7)), encoding="utf-8")
    return path


def settings(text: Path, folder: Path, steps: int, **changes) -> list[str]:
    """Return the arguments of a small run into a folder of that name."""
    chosen = {"d_model": 32, "num_heads": 2, "d_ff": 48, "num_layers": 2, "vocab_size": 300, "max_seq_len": 64,
              "dropout": 0.1, "batch_size": 3, "eval_every": 12, "checkpoint_every": 7, "compile": "off"} | changes
    flags = [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]
    place = ["--runs", str(folder.parent), "--name", folder.name]
    return ["train", "--data", str(text), *place, "--max-steps", str(steps), *flags]


def traces(folder: Path) -> dict:
    """Return all that a run leaves behind and no clock has measured."""
    tensors, notes = read_checkpoint(folder / "checkpoint" / "state.safetensors")
    lines = [{**line, "tokens_per_second": 0} for line in read_metrics(folder)]
    card = [line for line in (folder / "README.md").read_text().splitlines() if "Command" not in line]
    exact = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "tokenizer.json")}
    # What the run cost is all measured by a clock; of a run that went on after its last step, nothing is.
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "costs.json")
    return exact | {
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, "metrics": lines,
        "notes": {name: note for name, note in notes.items() if name not in ("seconds", "logs")},
        "samples": (folder / "samples.txt").read_text(), "card": card, "files": files,
    }


# A process that is killed must take no other one with it, and uses one thread as tests should.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Watched:
    """A running `main.py`, and what it is doing."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str):
        self.note, self.out = folder / "doing", folder / "out"
        self.note.write_text("")
        command = [sys.executable, "-c", WATCHED, str(self.note), *arguments]
        with open(self.out, "w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, stdout=out,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    def doing(self) -> str:
        return self.note.read_text().strip()

    def wait_for(self, words: str) -> None:
        """Return when it does this, or has ended."""
        while self.doing() != words and self.process.poll() is None:
            time.sleep(0.0005)

    def stop(self, number: int) -> tuple[str, str, int]:
        """Send a signal; return what it was doing, what it said, and its exit code."""
        doing = self.doing()
        self.process.send_signal(number)
        code = self.process.wait()
        return doing, self.out.read_text(), code


def finish(folder: Path) -> None:
    """Resume a run by the command that a reader types, and see it end well."""
    command = [sys.executable, "main.py", "train", "--resume", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


# Killed.


def kill_twenty_times(run: list[str], folder: Path, seed: int) -> dict[str, int]:
    """Kill a run and its resumed selves at moments drawn from a seed; return how often it was doing what.

    A moment lies a hundredth, a tenth or a whole second at most after the run has begun to do something chosen
    by lot. The last few kills, and those of a run that has finished all the same, come after the last step.
    """
    drawn, deaths = random.Random(seed), {}
    early = ["starting", "measuring", "a step", "a step", "evaluating", "speaking", "saving"]
    late = ["saving", "examining", "writing", "telling"]
    for _ in range(60):
        if (number := sum(deaths.values())) == 20:
            break
        # A folder without settings is no run yet: its name is free again once it is removed.
        going, finished = (folder / "settings.json").exists(), (folder / "README.md").exists()
        if not going:
            shutil.rmtree(folder, ignore_errors=True)
        watched = Watched(["train", "--resume", str(folder)] if going else run, folder.parent)
        watched.wait_for(drawn.choice(late if finished or number >= 16 else early))
        time.sleep(drawn.random() * drawn.choice([0.01, 0.1, 1]))
        doing, out, code = watched.stop(signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0), out[-1000:]
        if code:
            deaths[doing] = deaths.get(doing, 0) + 1
    assert sum(deaths.values()) == 20, deaths
    return deaths


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "seed"), [("muon", 1), ("adamw", 2)])
def test_a_run_killed_twenty_times_ends_with_the_very_weights_of_an_undisturbed_one(text, tmp_path, optimizer, seed):
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    for folder in (whole.parent, broken.parent):
        folder.mkdir()
    arguments = {"optimizer": optimizer, "eval_every": 30}
    subprocess.run([sys.executable, "main.py", *settings(text, whole, 400, **arguments)], cwd=ROOT, env=ENVIRONMENT,
                   check=True, capture_output=True)
    deaths = kill_twenty_times(settings(text, broken, 400, **arguments), broken, seed)
    finish(broken)
    print(f"{optimizer}: killed while " + ", ".join(f"{what} {times}" for what, times in sorted(deaths.items())))
    assert traces(broken) == traces(whole)


@posix
@pytest.mark.slow
def test_a_compiled_run_killed_while_it_compiles_and_later_ends_the_same(text, tmp_path):
    for name in ("whole", "broken", "cache"):
        (tmp_path / name).mkdir()
    whole, broken, cold = tmp_path / "whole" / "run", tmp_path / "broken" / "run", str(tmp_path / "cache")
    # The broken run comes first, and finds nothing compiled before.
    for moment, delay in (("measuring", 1.0), ("measuring", 8.0), ("a step", 0.05), ("saving", 0.002)):
        going = (broken / "settings.json").exists()
        arguments = ["train", "--resume", str(broken)] if going else settings(text, broken, 30, compile="on")
        watched = Watched(arguments, broken.parent, TORCHINDUCTOR_CACHE_DIR=cold)
        watched.wait_for(moment)
        time.sleep(delay)
        print("killed while", watched.stop(signal.SIGKILL)[0])
    finish(broken)
    subprocess.run([sys.executable, "main.py", *settings(text, whole, 30, compile="on")], cwd=ROOT, env=ENVIRONMENT,
                   check=True, capture_output=True)
    assert traces(broken) == traces(whole)


def test_a_run_killed_before_its_settings_were_written_is_no_run_and_that_is_said(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    assert main.main(["train", "--resume", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "no run to go on with" in error[0] and "begin a new one" in error[0]


# Asked to stop.


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_and_says_how_to_go_on(text, tmp_path, number):
    watched = Watched(settings(text, tmp_path / "run", 100_000, eval_every=100_000), tmp_path)
    watched.wait_for("a step")
    _, out, code = watched.stop(number)
    assert code == 130
    assert f"python main.py train --resume {tmp_path / 'run'}" in out.split("all is saved")[1]
    assert "Traceback" not in out and out.count("error") == 0
    assert read_checkpoint(tmp_path / "run" / "checkpoint" / "state.safetensors")[1]["step"] > 0


@posix
def test_a_run_asked_to_stop_before_its_first_step_says_how_to_go_on_too(text, tmp_path):
    watched = Watched(settings(text, tmp_path / "run", 5), tmp_path)
    watched.wait_for("measuring")
    _, out, code = watched.stop(signal.SIGTERM)
    assert code == 130 and "Traceback" not in out
    assert f"python main.py train --resume {tmp_path / 'run'}" in out.split("Stopped at step 0")[1]


# Refused, exploded, damaged: each with one line and exit code 2.


def refusal(capsys) -> str:
    """Return the one line that says what is wrong."""
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and not any("Traceback" in line for line in error)
    return error[-1]


def run_main(arguments: list[str], capsys) -> None:
    assert main.main(arguments) == 0
    capsys.readouterr()


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory) -> dict:
    """What a run of three steps leaves behind."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main(settings(text, folder, 3, eval_every=2, checkpoint_every=1)) == 0
    return traces(folder)


@pytest.mark.slow
def test_any_refused_write_of_a_whole_run_is_told_in_one_line_and_costs_nothing(text, tmp_path, undisturbed, capsys):
    def begin(name: str) -> int:
        return main.main(settings(text, tmp_path / name / "run", 3, eval_every=2, checkpoint_every=1))

    # One failing call of each kind to each file: all writes of one file's tensors are one kind.
    with BrokenDisk(tmp_path / "counted") as disk:
        assert begin("counted") == 0
    kinds, file = {}, ""
    for at, call in enumerate(disk.calls, 1):
        file = call if call.startswith("open") else file
        kinds[file, call, sum(earlier == file for earlier in disk.calls[:at])] = at
    assert len(kinds) > 60
    for at in kinds.values():
        run = tmp_path / str(at) / "run"
        with BrokenDisk(tmp_path / str(at), at, [errno.ENOSPC, errno.EACCES][at % 2]):
            assert begin(str(at)) == 2
        line = refusal(capsys)
        assert "make room" in line and str(tmp_path / str(at)) in line
        assert not list(run.rglob("*.partial"))
        # What can go on says so, and ends as if nothing had been.
        if (run / "settings.json").exists():
            assert line.endswith(f"python main.py train --resume {run}")
            run_main(["train", "--resume", str(run)], capsys)
            assert traces(run) == undisturbed


@posix
def test_a_file_that_the_system_really_refuses_leaves_the_last_checkpoint_to_go_on_from(
    text, tmp_path, undisturbed, capsys
):
    # A first life of one step, then a process that may not write a file of more than 50 000 bytes.
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chapters.ch08_training.Trainer.evaluation_due", lambda self: self._request_stop() or True)
        assert main.main(settings(text, run, 3, eval_every=2, checkpoint_every=1)) == 130
    before = (run / "checkpoint" / "state.safetensors").read_bytes()
    assert len(before) > 50_000
    small = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (50_000, 50_000)); {RUN_AS_MAIN}"
    done = subprocess.run([sys.executable, "-c", small, "train", "--resume", str(run)], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "state.safetensors cannot be written (File too large)" in line
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["state.safetensors"]
    assert (run / "checkpoint" / "state.safetensors").read_bytes() == before
    run_main(["train", "--resume", str(run)], capsys)
    assert traces(run) == undisturbed


# Begins `main.py` as `python main.py` would.
RUN_AS_MAIN = "import runpy, sys; sys.argv[0] = 'main.py'; runpy.run_path('main.py', run_name='__main__')"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_explodes_stops_with_a_diagnosis(text, tmp_path, optimizer, capsys):
    wild = settings(text, tmp_path / "run", 30, optimizer=optimizer, learning_rate=1e37, warmup_steps=0)
    assert main.main(wild) == 2
    line = refusal(capsys)
    for words in ("exploded at step", "learning rate 9", "gradient norm", "went bad is the"):
        assert words in line
    assert "--learning-rate below 1e+37" in line
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


def test_a_damaged_checkpoint_and_settings_are_told_in_one_line(text, tmp_path, capsys):
    run = tmp_path / "run"
    run_main(settings(text, run, 2), capsys)
    checkpoint, settings_file = run / "checkpoint" / "state.safetensors", run / "settings.json"
    content, words = checkpoint.read_bytes(), settings_file.read_text()
    for damaged in (content[:-5], content[:-5] + b"\xff" + content[-4:], b""):
        checkpoint.write_bytes(damaged)
        assert main.main(["train", "--resume", str(run)]) == 2
        line = refusal(capsys)
        assert str(checkpoint) in line and "damaged" in line and "remove it" in line
    checkpoint.write_bytes(content)
    for broken in ("", "[]", "{}", words.replace('"d_model"', '"d_modell"'), words.replace('"muon"', '"moon"')):
        settings_file.write_text(broken)
        assert main.main(["train", "--resume", str(run)]) == 2
        assert "no run to go on with" in refusal(capsys)


def test_a_setting_beside_resume_is_refused_and_not_passed_over(tmp_path, capsys):
    assert main.main(["train", "--resume", str(tmp_path), "--max-steps", "9", "--d-model", "64"]) == 2
    assert "leave out d_model, max_steps" in refusal(capsys)


def test_ctrl_c_ends_any_command_quietly(monkeypatch, capsys):
    def interrupted(_) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.COMMANDS, "info", interrupted)
    assert main.main(["info"]) == 130
    assert capsys.readouterr().err.strip() == "Stopped."

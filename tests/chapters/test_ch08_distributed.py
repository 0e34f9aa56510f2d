"""Chapter 8, several processes: they learn what one learns, write as one, stop as one, and never wait for ever.

The processes are started as a test starts, by a fresh Python that imports this file, and find the environment that
`torchrun` would give them. Each works through `WORKS`, and leaves what it found in files that the tests compare.
"""

import atexit
import copy
import dataclasses
import json
import math
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch08_checkpoint import read_checkpoint
from chapters.ch08_distributed import ALONE, Alone, hear_all, team_of_processes, whole
from chapters.ch08_training import TokenRows, Trainer
from tests.chapters.conftest import DOCUMENTS, QUICK, SMALL

SIZE, STEPS, KINDS = 2, 6, ["ranks", "shards"]

# Gradients are clipped in every step, and accumulated over unequal batches.
RUNS = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "accumulated": {"optimizer": "muon", "grad_accum_steps": 3, "batch_size": 2},
    "untied": {"tied": False},
    "bfloat16": {"dtype": "bfloat16", "optimizer": "muon"},
    "float16": {"dtype": "float16", "optimizer": "muon"},
}


def trainer_of(team: Alone, folder: Path, dropout: float = 0.0, tied: bool = True, looks=None, **changes) -> Trainer:
    """Return a trainer whose first weights and rows are always the same."""
    torch.manual_seed(8)
    folder.mkdir(parents=True, exist_ok=True)
    rows = TokenRows(DOCUMENTS, BPETokenizer.train(DOCUMENTS, SMALL.vocab_size), SMALL.max_seq_len)
    model = GPT(dataclasses.replace(SMALL, dropout=dropout, tie_embeddings=tied))
    config = dataclasses.replace(QUICK, **{"grad_clip": 0.5, "max_steps": STEPS} | changes)
    return Trainer(model, rows, rows, config, folder, looks, team)


def steps(trainer: Trainer, count: int = STEPS) -> list[dict]:
    return [trainer.train_step() for _ in range(count)]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the whole weights of a trainer, of tied ones the first."""
    trainer.team.gather(trainer.model, trainer.whole)
    return {name: parameter.detach().clone() for name, parameter in trainer.whole.named_parameters()}


def keep(team: Alone, folder: Path, name: str, told: object, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Leave what a process found."""
    (folder / f"{name}.{team.rank}.json").write_text(json.dumps(told))
    if tensors is not None:
        save_file(tensors, folder / f"{name}.{team.rank}.safetensors")


# What the processes do.


def work_steps(team: Alone, folder: Path) -> None:
    for name, changes in RUNS.items():
        trainer = trainer_of(team, folder / name, **changes)
        told = steps(trainer)
        keep(team, folder, name, told, weights(trainer))


def work_resume_what_one_process_saved(team: Alone, folder: Path) -> None:
    trainer = trainer_of(team, folder.parent / "alone", optimizer="muon")
    trainer.resume()
    assert trainer.step == STEPS // 2
    keep(team, folder, "resumed", steps(trainer, STEPS // 2), weights(trainer))


def work_train_to_the_end(team: Alone, folder: Path) -> None:
    def look(trainer: Trainer, metrics: dict) -> None:
        metrics["who"] = team.rank

    trainer = trainer_of(team, folder / "whole_run", looks=look, optimizer="muon", max_steps=STEPS // 2)
    keep(team, folder, "whole_run", trainer.train(), weights(trainer))
    keep(team, folder, "parts", [sum(map(local_size, trainer.model.parameters())),
                                 sum(p.numel() for p in trainer.whole.parameters())])
    names = [type(module).__name__ for module in trainer.model.modules()]
    keep(team, folder, "units", [name.removeprefix("FSDP") for name in names if name.startswith("FSDP")])


def local_size(parameter: torch.Tensor) -> int:
    """Return how many numbers of a parameter this process holds."""
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()


def work_stop_when_one_is_asked_to(team: Alone, folder: Path) -> None:
    trainer = trainer_of(team, folder / "stopped", max_steps=100, eval_every=100)
    real = trainer.train_step

    def step() -> dict:
        if team.rank == 1 and trainer.step == 2:
            trainer._request_stop()
        return real()

    trainer.train_step = step
    keep(team, folder, "stopped", [trainer.train(), trainer.step])


def work_throw_own_dice(team: Alone, folder: Path) -> None:
    undisturbed = trainer_of(team, folder / "dice", dropout=0.3)
    told = steps(undisturbed)
    broken = trainer_of(team, folder / "dice", dropout=0.3)
    told_again = steps(broken, 2)
    broken.save()
    resumed = trainer_of(team, folder / "dice", dropout=0.3)
    resumed.resume()
    told_again += steps(resumed, STEPS - 2)
    thrown = []
    for seed, step in ((0, 1), (0, 2), (1, 1)):
        team.throw_dice(seed, step)
        thrown.append(torch.rand(4).tolist())
    keep(team, folder, "dice", [told, told_again, thrown])


def work_explode(team: Alone, folder: Path) -> None:
    with pytest.raises(ValueError, match="exploded") as caught:
        steps(trainer_of(team, folder / "wild", learning_rate=1e37, warmup_steps=0))
    keep(team, folder, "wild", str(caught.value))


def work_overflow_in_one(team: Alone, folder: Path) -> None:
    """Let the numbers of the second process overflow in one step: no process may take it."""
    trainer = trainer_of(team, folder / "overflow", dtype="float16", optimizer="muon")
    real, before = trainer.loss_on, weights(trainer)

    def overflowing(*batch) -> torch.Tensor:
        (loss := real(*batch)).register_hook(lambda slope: slope * (math.inf if team.rank and not trainer.step else 1))
        return loss

    trainer.loss_of = overflowing
    told = steps(trainer, 1)
    moved = [name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])]
    keep(team, folder, "overflow", [told + steps(trainer, 2), moved, trainer.scaler.get_scale()])


def work_average_as_ddp(team: Alone, folder: Path) -> None:
    trainer = trainer_of(team, folder / "ddp")
    theirs = DistributedDataParallel(copy.deepcopy(trainer.whole))
    x, y = team.shares(trainer._batch(0))[team.rank]
    trainer.loss_on(theirs, x, y).backward()
    trainer.gradient(0)
    keep(team, folder, "ddp", None, {name: p.grad for name, p in theirs.module.named_parameters()})
    ours = {name: whole(p.grad).clone() for name, p in trainer.model.named_parameters()}
    keep(team, folder, "ours", None, ours)


def work_join(team: Alone, folder: Path) -> None:
    """Join a run as it should be, and one that is not there for the second process."""
    class Run:
        def __init__(self, at: Path):
            self.folder = at

    def refuse(at: Path) -> Run:
        raise ValueError(f"{at} is not on this disk")

    run = team.assemble(lambda: Run(folder), Run)
    with pytest.raises(ValueError) as caught:
        team.assemble(lambda: Run(folder), refuse)
    keep(team, folder, "joined", [str(run.folder), str(caught.value), team.ask_first(lambda: team.rank)])


# What one process may have to tell another: numbers to their last bit, letters, nothing, a text longer than theirs.
SAID = [[0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf")], "Bär läßt 国王\n" * 50, None,
        {"a": [True, 2**70]}]


def work_tell_each_other(team: Alone, folder: Path) -> None:
    heard = [hear_all(SAID[number + team.rank], team.waiting_room) for number in range(len(SAID) - 1)]
    asked = [team.ask_first(lambda words=words: words if team.first else "the second was asked") for words in SAID]
    keep(team, folder, "heard", [heard, asked])


def threads() -> list[str]:
    """Return the names of this process's threads, where Linux lists them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def work_list_threads(team: Alone, folder: Path) -> None:
    keep(team, folder, "threads", threads())


WORKS = [work_steps, work_resume_what_one_process_saved, work_train_to_the_end, work_stop_when_one_is_asked_to,
         work_throw_own_dice, work_explode, work_overflow_in_one, work_average_as_ddp, work_join, work_tell_each_other,
         work_list_threads]


def process(rank: int, shard: bool, ports: list[int], folder: Path) -> None:
    """Be one of the processes that torchrun starts, in two teams, each with a meeting place of its own."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE, "MASTER_PORT": ports[0]}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    # What is asked for first when Python closes is done last.
    atexit.register(lambda: (folder / f"closing.{rank}.json").write_text(json.dumps(threads())))
    with team_of_processes(shard) as team:
        for work in WORKS:
            work(team, folder)
    os.environ["MASTER_PORT"] = str(ports[1])
    with pytest.raises(ValueError, match="another process of this run has ended"), team_of_processes(shard) as team:
        leave_or_wait(team)
    keep(team, folder, "left", True)


def leave_or_wait(team: Alone) -> None:
    """Let the second process end, and the first find out."""
    if team.rank == 1:
        raise ValueError("another process of this run has ended: it was I")
    team.mean(1.0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """What one process finds: for each run what its steps told, and its weights; and a run saved half way."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.set_num_threads(1)
    work_steps(ALONE, folder)
    half = trainer_of(ALONE, folder / "alone", optimizer="muon")
    steps(half, STEPS // 2)
    half.save()
    return folder


@pytest.fixture(scope="module", params=KINDS)
def together(request, alone) -> Path:
    """What the processes found, of each kind of team."""
    folder = alone / request.param
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [server.getsockname()[1] for server in (first, second)]
    torch.multiprocessing.spawn(process, (request.param == "shards", ports, folder), nprocs=SIZE)
    return folder


def told(folder: Path, name: str, rank: int = 0):
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def tensors(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.{rank}.safetensors")


def assert_close(ours: Path, theirs: Path, ours_name: str, theirs_name: str, tolerance: float, first: int = 0) -> None:
    """Compare every step's loss, gradient norm and rate, and the weights at the end."""
    one, other = told(theirs, theirs_name)[first:], told(ours, ours_name)
    assert len(one) == len(other) > 0
    for expected, found in zip(one, other, strict=True):
        assert found == pytest.approx(expected, rel=tolerance)
    torch.testing.assert_close(tensors(ours, ours_name), tensors(theirs, theirs_name), rtol=0, atol=10 * tolerance)


# What is promised of them.


@pytest.mark.parametrize("name", RUNS)
def test_every_step_of_two_processes_is_that_of_one(alone, together, name):
    assert_close(together, alone, name, name, tolerance=2e-2 if name.endswith("float16") else 2e-5)
    norms = [step["gradient_norm"] for step in told(together, name)]
    assert min(norms) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("name", RUNS)
def test_what_the_steps_tell_is_the_same_in_both_processes(together, name):
    assert told(together, name, 0) == told(together, name, 1)
    if together.name == "ranks":
        first, second = tensors(together, name, 0), tensors(together, name, 1)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_saved_by_one_process_goes_on_in_two(alone, together):
    assert_close(together, alone, "resumed", "muon", tolerance=2e-5, first=STEPS // 2)


def test_a_run_saved_by_two_processes_goes_on_in_one(alone, together, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    saved = (together / "whole_run" / "checkpoint" / "state.safetensors").read_bytes()
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(saved)
    trainer = trainer_of(ALONE, tmp_path, optimizer="muon", max_steps=STEPS // 2)
    trainer.resume()
    assert trainer.step == STEPS // 2
    torch.testing.assert_close(weights(trainer), tensors(together, "whole_run"), rtol=0, atol=0)
    # What it holds has the names, shapes and formats of one that a single process saves.
    trainer.save()
    files = [path / "checkpoint" / "state.safetensors" for path in (tmp_path, together / "whole_run")]
    ours, theirs = (read_checkpoint(file)[0] for file in files)
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_process_looks_and_writes_and_both_are_done_together(together):
    lines = [json.loads(line) for line in (together / "whole_run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and {line["who"] for line in lines} == {0}
    assert told(together, "whole_run", 0) is told(together, "whole_run", 1) is True


def test_a_sharded_process_holds_a_part_of_the_model_and_the_others_all_of_it(together):
    held, everything = zip(told(together, "parts", 0), told(together, "parts", 1), strict=True)
    if together.name == "ranks":
        assert held == everything
    else:
        assert sum(held) == everything[0] and max(held) < 0.55 * everything[0]


def test_weights_come_and_go_block_by_block_and_never_all_at_once(together):
    expected = ["GPT", *["TransformerBlock"] * SMALL.num_layers] if together.name == "shards" else []
    assert told(together, "units", 0) == told(together, "units", 1) == expected


def test_a_request_to_one_process_stops_all_after_the_same_step(together):
    assert told(together, "stopped", 0) == told(together, "stopped", 1) == [False, 3]
    assert read_checkpoint(together / "stopped" / "checkpoint" / "state.safetensors")[1]["step"] == 3


def test_dropout_differs_between_processes_steps_and_seeds_and_goes_on_after_a_checkpoint(together):
    for rank in range(SIZE):
        undisturbed, broken, _ = told(together, "dice", rank)
        assert undisturbed == broken
    thrown = {tuple(dice) for rank in range(SIZE) for dice in told(together, "dice", rank)[2]}
    assert len(thrown) == 3 * SIZE


def test_a_run_that_explodes_says_so_once_with_a_diagnosis(together):
    first, second = (told(together, "wild", rank) for rank in range(SIZE))
    assert first == second and "went bad is" in first and "none" not in first


def test_an_overflow_in_one_process_passes_the_step_over_in_all(together):
    for rank in range(SIZE):
        (first, *others), moved, scale = told(together, "overflow", rank)
        assert first["gradient_norm"] is None and math.isfinite(first["loss"]) and moved == []
        assert scale == 2**15 and all(step["gradient_norm"] > 0 for step in others)
    assert told(together, "overflow", 0) == told(together, "overflow", 1)


def test_averaged_gradients_are_those_of_distributed_data_parallel(together):
    for rank in range(SIZE):
        ours, theirs = (tensors(together, name, rank) for name in ("ours", "ddp"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_process_that_cannot_join_ends_the_run_in_one_line_everywhere(together):
    for rank in range(SIZE):
        folder, line, asked = told(together, "joined", rank)
        assert folder == str(together) and asked == 0
        assert line == f"process 1 cannot join the run: {together} is not on this disk"


def test_what_a_process_says_is_heard_by_all_to_the_last_bit(together):
    for rank in range(SIZE):
        heard, asked = told(together, "heard", rank)
        assert heard == [[SAID[number], SAID[number + 1]] for number in range(len(SAID) - 1)] and asked == SAID
        assert math.copysign(1, asked[0][1]) == -1


def test_what_json_cannot_say_is_refused_before_anybody_waits_for_it():
    with pytest.raises(TypeError, match="Path"):
        hear_all(Path("run"), group=None)


def test_a_process_that_ends_is_missed_by_the_others(together):
    assert told(together, "left", 0) and told(together, "left", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the threads where Linux lists them")
def test_no_thread_of_a_team_is_left_that_could_ask_for_python_while_it_closes(together):
    # What shards a model holds the group of all processes in PyTorch's own memory; but its last word is not its own.
    may_stay = 0 if together.name == "ranks" else 2
    for rank in range(SIZE):
        during, closing = (told(together, moment, rank).count("pt_gloo_runloop") for moment in ("threads", "closing"))
        assert during > 2 and closing <= may_stay

"""Chapter 8, several processes: what can be said of a team without starting a second process."""

import pytest
import torch
from torch import nn

from chapters import ch08_distributed
from chapters.ch08_distributed import ALONE, Alone, Ranks, own_device, part_of, team_of_processes, whole
from chapters.ch08_training import TrainConfig
from tests.chapters.test_ch08_distributed import trainer_of


def test_a_team_of_one_changes_nothing(tmp_path):
    trainer = trainer_of(ALONE, tmp_path)
    tensor, batch = torch.arange(6.0), trainer._batch(0)
    assert whole(tensor) is tensor and part_of(tensor, nn.Parameter(tensor)) is tensor
    assert trainer.model is trainer.whole and ALONE.gather_averages(trainer.optimizers) is trainer.optimizers
    assert ALONE.shares(batch)[ALONE.rank] is batch and ALONE.mean(0.1) == 0.1 and ALONE.first
    before = torch.get_rng_state()
    ALONE.throw_dice(1, 2)
    assert torch.equal(torch.get_rng_state(), before)


def team_of(size: int, kind: type = Ranks) -> Ranks:
    team = object.__new__(kind)
    team.rank, team.size = 0, size
    return team


def test_a_batch_that_cannot_be_dealt_out_is_refused_in_one_line():
    with pytest.raises(ValueError, match="batch_size is 24: it must be a multiple of the 5 processes") as caught:
        team_of(5).check(TrainConfig())
    assert "--nproc-per-node" in str(caught.value) and "\n" not in str(caught.value)
    team_of(6).check(TrainConfig())


def test_a_sharded_step_is_not_compiled_and_that_is_said():
    with pytest.raises(ValueError, match="leave --compile out"):
        team_of(2, ch08_distributed.Shards).check(TrainConfig(compile="on"))
    team_of(2, ch08_distributed.Shards).check(TrainConfig(compile="auto"))
    assert not ch08_distributed.Shards.compiles and Ranks.compiles


def test_shards_without_torchrun_are_refused_and_one_process_of_torchrun_is_alone(monkeypatch):
    with team_of_processes() as team:
        assert team.__class__ is Alone
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"), team_of_processes(shard=True):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with team_of_processes() as team:
        assert team.__class__ is Alone


def pretend(monkeypatch, device: str, gpus: int, rank: int, size: int) -> list[int]:
    """Pretend to be one of these processes on such a machine; return where the chosen GPU will be noted."""
    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(size))
    monkeypatch.setattr(ch08_distributed, "choose_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    assert pretend(monkeypatch, "cuda", 4, 3, 4) == [] and own_device().type == "cuda"
    chosen = pretend(monkeypatch, "cuda", 4, 2, 3)
    assert own_device().type == "cuda" and chosen == [2]
    chosen = pretend(monkeypatch, "cpu", 0, 1, 2)
    assert own_device().type == "cpu" and chosen == []


@pytest.mark.parametrize(
    ("device", "words"), [("mps", "Apple GPU serves one"), ("cuda", "--nproc-per-node is 2: .* there are 1")]
)
def test_a_machine_without_room_for_so_many_is_told_so(monkeypatch, device, words):
    pretend(monkeypatch, device, 1, 0, 2)
    with pytest.raises(ValueError, match=words) as caught:
        own_device()
    assert "\n" not in str(caught.value)

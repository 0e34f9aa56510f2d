"""Several processes that train one model: each takes a part of every batch, and all take the same step.

    gradient of a batch  =  mean over the processes of the gradients of their parts

A mean of means is the mean of all when the parts are equally large. So a step of many processes is the step of
one, and so is its loss: what is shared out is the work, not the learning.

    torchrun --nproc-per-node 2 main.py train            each process holds the whole model
    torchrun --nproc-per-node 2 main.py train --shard    each holds a part of every matrix, and of its averages

`torchrun` starts `main.py` so many times and tells each process its number, the *rank*, from 0. The first one alone
prepares the text, looks at the model, speaks and writes; the others wait for it. The loop of `ch08_training.py`
calls a *team*, `Alone` where there is one process, and does not know how many there are.
"""

import atexit
import contextlib
import copy
import dataclasses
import datetime
import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from chapters.ch08_config import TrainConfig
from chapters.ch08_scale import choose_device

# How long a process waits for the numbers of another before it gives up, and for the first one's other work.
PATIENCE, LONG_PATIENCE = datetime.timedelta(minutes=10), datetime.timedelta(days=1)

# What the model reads, and what it should say: x and y.
Batch = tuple[Tensor, Tensor]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process holds a part; an ordinary tensor as it is.

    All processes must ask at the same time, for each has to send its part.
    """
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(everything: Tensor, like: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of `like`; where that is whole too, all of it.

    Nobody sends anything: each process cuts its part out of what it has.
    """
    # 1. Load the tools of sharding only where something is sharded: it takes half a second.
    if not hasattr(like, "full_tensor"):
        return everything
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(everything.detach(), like.device_mesh, like.placements, src_data_rank=None)


def hear_all(said: Any, group: dist.ProcessGroup) -> list:
    """Return what each process says, in the order of their ranks: a number, a text, None, lists and dicts of them.

    All processes must ask at the same time. What is said travels as JSON, letters that can only be read. A pickle,
    which is how Python objects usually travel, can also make its reader do things. A number arrives as it was, to its
    last bit. Raises TypeError for what JSON cannot say.
    """
    # 1. Write it down, and hear how long everybody's text is.
    letters = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(lengths, torch.tensor([len(letters)]), group=group)

    # 2. Send sheets of one size: fill the shorter ones up.
    sheet = nn.functional.pad(letters, (0, max(lengths).item() - len(letters)))
    sheets = [torch.empty_like(sheet) for _ in lengths]
    dist.all_gather(sheets, sheet, group=group)
    return [json.loads(bytes(sheet[:length].tolist())) for sheet, length in zip(sheets, lengths, strict=True)]


class Alone:
    """A team of one: nobody to wait for and nothing to share, so every method does the least that it can.

    What the methods promise to a training loop is said here; `Ranks` and `Shards` keep it for many processes.
    `rank` is the number of this process, `size` how many there are, `launcher` and `flags` how they are started.
    """

    rank, size, launcher, flags = 0, 1, "python", ""
    compiles = True

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError where the work of this run cannot be shared out evenly."""

    def spread(self, model: nn.Module) -> nn.Module:
        """Return the model that takes the steps here: this one, or one that holds a part of every matrix."""
        return model

    def gather(self, model: nn.Module, everything: nn.Module) -> None:
        """Bring the weights of the model that takes the steps into the one that is whole."""

    def gather_averages(self, optimizers: list) -> list:
        """Return the optimizers, or stand-ins for them, of which `state_dict` holds whole tensors."""
        return optimizers

    def deal_out(self, everything: nn.Module, model: nn.Module, optimizers: list) -> None:
        """Bring whole weights, and whole averages that optimizers were given, to where the steps are taken."""

    def throw_dice(self, seed: int, step: int) -> None:
        """Let no two processes drop the same numbers: their dropout must not depend on one another."""

    def shares(self, batch: Batch) -> list[Batch]:
        """Return the part of a batch that each process takes, in the order of their ranks.

        Shapes: x and y (B, T) -> for each process x and y (B/size, T).
        """
        return [batch]

    def average(self, model: nn.Module) -> None:
        """Make every gradient the mean over the processes."""

    def mean(self, number: float) -> float:
        """Return the mean of a number over the processes."""
        return number

    def anyone(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return flag

    def ask_first(self, function: Callable, *args: Any, **options: Any) -> Any:
        """Return, everywhere, what the function says in the first process: only that one calls it.

        What it says is a number, a text, None, or lists and dicts of these.
        """
        return function(*args, **options)

    def assemble(self, begin: Callable, join: Callable) -> Any:
        """Return a run: `begin()` in the first process, and `join(folder)` in the others, once that has a folder."""
        return begin()


# The team of a run that nobody shares.
ALONE = Alone()


class Ranks(Alone):
    """A team in which each process holds the whole model and a part of every batch (data-parallel).

    All begin with the same weights, since all drew them with the same seed, and all add the same averaged
    gradient to them: so they stay the same, and nobody ever sends a weight.

    Raises ValueError, from `check`, where a batch cannot be dealt out evenly.
    """

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.launcher = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', self.size)}"
        self.waiting_room = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError where rows would be left over: a mean of unequal parts is not the mean of all."""
        if config.batch_size % self.size:
            raise ValueError(f"batch_size is {config.batch_size}: it must be a multiple of the {self.size} processes "
                             "that share it; change --batch-size, or --nproc-per-node of torchrun")

    def throw_dice(self, seed: int, step: int) -> None:
        """Begin each step with dice that depend on seed, step and rank alone, and so resume like all the rest."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def shares(self, batch: Batch) -> list[Batch]:
        """Return equal slices of the rows."""
        return list(zip(*(part.chunk(self.size) for part in batch), strict=True))

    def average(self, model: nn.Module) -> None:
        """Add up the gradients of all processes, and divide by their number.

        An *all-reduce*: everybody brings a vector, everybody leaves with the sum. One long vector takes one
        journey, a hundred short ones take a hundred. `DistributedDataParallel` does the same in several pieces,
        the first of which travel while the last are computed; what arrives is equal.
        """
        # 1. Lay all gradients end to end, and send them.
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)

        # 2. Take each one's share of the sum back.
        means = flat.div_(self.size).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, number: float) -> float:
        """Return the mean of a number over the processes."""
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.size

    def anyone(self, flag: bool) -> bool:
        """Ask everybody: a run that is stopped must stop after the same step in all processes."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def ask_first(self, function: Callable, *args: Any, **options: Any) -> Any:
        """Let the first process call the function and tell the others, who wait as long as it takes.

        An error ends the first process; the others then notice that it is gone, and end as well.
        """
        answer = function(*args, **options) if self.first else None
        return hear_all(answer, self.waiting_room)[0]

    def assemble(self, begin: Callable, join: Callable) -> Any:
        """Let the first process begin, and the others join it.

        Raises ValueError, in all of them, when one cannot: it may run where the disk is another one.
        """
        # 1. Begin. What others join must be there, complete, on the disk.
        run, problem = begin() if self.first else None, None
        folder = Path(self.ask_first(lambda: str(run.folder)))
        try:
            # 2. Join it, but keep a problem until all can hear of it.
            run = run if self.first else join(folder)
        except (ValueError, OSError) as error:
            problem = f"process {self.rank} cannot join the run: {error}"

        # 3. Hear whether all are there.
        if problems := [words for words in hear_all(problem, self.waiting_room) if words]:
            raise ValueError(problems[0])
        print(f"Team   {self.size} processes share each batch" + (" and the model" if self.flags else ""))
        return run


@dataclasses.dataclass
class WholeAverages:
    """What a checkpoint wants to know of an optimizer, brought together from all processes."""

    state: dict

    def state_dict(self) -> dict:
        """Return the averages by the number of their parameter, as an optimizer does."""
        return {"state": self.state}


class Shards(Ranks):
    """A team in which each process also holds only a part of the weights, gradients and averages (FSDP2).

    Before a block computes, its weights are gathered from all processes, and let go of afterwards; the way back
    does the same, and hands each process the averaged gradient of its part. Of a training's 16 bytes for each
    parameter, N processes hold 16/N each. The first one has room for the whole weights besides: with these it looks
    at the model, speaks and saves.

    Source: Zhao et al. 2023 (arXiv 2304.11277).
    """

    flags, compiles = " --shard", False

    def __init__(self, device: torch.device):
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__()
        self.mesh = init_device_mesh(device.type, (self.size,))

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError where rows would be left over, or where a compiler is insisted on."""
        super().check(config)
        if config.compile == "on":
            raise ValueError("compile is 'on': with --shard weights come and go inside of the step, which is not "
                             "compiled; leave --compile out")

    def spread(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model in parts: those of a block come and go together, those around the blocks too."""
        # 1. Cut the blocks first, then what is left around them. Tied weights stay tied.
        from torch.distributed.fsdp import fully_shard

        sharded = copy.deepcopy(model)
        for layer in [*sharded.blocks, sharded]:
            fully_shard(layer, mesh=self.mesh)

        # 2. Keep the whole model near in the first process alone.
        if not self.first:
            model.to("cpu")
        return sharded

    @torch.no_grad()
    def gather(self, model: nn.Module, everything: nn.Module) -> None:
        """Bring the weights together, one matrix after the other."""
        for part, complete in zip(model.parameters(), everything.parameters(), strict=True):
            gathered = whole(part)
            if self.first:
                complete.copy_(gathered)

    def gather_averages(self, optimizers: list) -> list:
        """Return stand-ins whose `state_dict` holds the whole averages, in the first process and outside of its GPU."""
        return [WholeAverages(self._gathered(optimizer.state_dict()["state"])) for optimizer in optimizers]

    def _gathered(self, state: dict) -> dict:
        """Return an optimizer's state with whole tensors; the others take part, and keep nothing."""
        gathered = {}
        for number, values in state.items():
            complete = {name: whole(value).cpu() for name, value in values.items()}
            gathered[number] = complete if self.first else {}
        return gathered

    @torch.no_grad()
    def deal_out(self, everything: nn.Module, model: nn.Module, optimizers: list) -> None:
        """Cut this process's part out of the whole weights and averages."""
        # 1. Take the weights. Both models list them in one order.
        for part, complete in zip(model.parameters(), everything.parameters(), strict=True):
            part.copy_(part_of(complete.to(part.device), part))

        # 2. Take the averages. A count of steps is one number, and nothing to be cut.
        for parameter, state in (item for optimizer in optimizers for item in optimizer.state.items()):
            for name, value in state.items():
                state[name] = part_of(value, parameter) if value.shape == parameter.shape else value

    def average(self, model: nn.Module) -> None:
        """Do nothing: the way back has averaged already."""


@contextlib.contextmanager
def team_of_processes(shard: bool = False) -> Iterator[Alone]:
    """Give the team of the processes that `torchrun` started, or `Alone` where it did not start this one.

    Processes on processors talk by gloo, those on GPUs by nccl, each with a GPU of its own. When one ends, or does
    not answer for ten minutes, the others end too. Raises ValueError, in one line, for this and for a machine that
    has no room for so many.
    """
    # 1. Leave a single process as it is.
    launched = dist.is_torchelastic_launched()
    if shard and not launched:
        raise ValueError("--shard: one process has nobody to share with; use torchrun --nproc-per-node 2 main.py")
    if not launched or (os.environ["WORLD_SIZE"] == "1" and not shard):
        yield Alone()
        return
    # 2. Meet the others. Small numbers travel between processors everywhere.
    device = own_device()
    meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Shards(device) if shard else Ranks()
    # 3. Say in one line that somebody is missing; his own words say why.
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ValueError("another process of this run has ended or does not answer: what it said stands above or below "
                         "this line, and the last checkpoint is as it was") from error
    # 4. Part. Each group has threads, which end when nobody holds the group any longer. One that still gives a tensor
    # back when Python closes would abort the process: so let go, before that, of all that hold each other.
    finally:
        dist.destroy_process_group()
        atexit.register(gc.collect)


def meet(backend: str) -> None:
    """Bring the processes together at the address and port that `torchrun` told each of them.

    Raises ValueError where nobody can meet: the port belongs to another program or to the system, or is none at all.
    """
    # 1. Load first what training loads later: these functions would hold the group that they find, for ever.
    import torch.distributed.nn  # noqa: F401

    # 2. Meet, or say where nobody can.
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, dist.DistError) as error:
        place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = str(error).splitlines()[0]
        raise ValueError(f"the processes cannot meet at {place} ({reason}): the port must be free, from 1024 to 65535; "
                         "give torchrun another --master-port, or --standalone, which finds one") from error


def own_device() -> torch.device:
    """Return the device of this process, and make it the one that "cuda" means: of several GPUs, the one of its number.

    Raises ValueError where there are fewer GPUs than processes, or a GPU that cannot be shared out.
    """
    # 1. Refuse what would fail later, and darkly.
    device, there = choose_device(), torch.cuda.device_count()
    rank, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device.type == "mps":
        raise ValueError("an Apple GPU serves one process: train with python main.py, without torchrun")
    if device.type == "cuda" and size > there:
        raise ValueError(f"--nproc-per-node is {size}: each process needs a GPU of its own, and there are {there}")

    # 2. Take the GPU of this number.
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    return device

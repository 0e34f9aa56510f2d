"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file.

    model.*        the weights
    optimizer.*    the averages that AdamW and Muon keep of past gradients
    random.*       where the dice lie: dropout throws them
    notes          steps done, settings, how long the logs were, and a checksum over everything

A run that goes on from here takes the very steps that an undisturbed one would have taken: what is not in
this file follows from the settings, and what is in it is read into the same places. The checksum matters
because disks and copies do fail, and a model in which a single number is wrong shows nothing but a slightly
odd curve. The file is replaced as a whole: at every moment there is a good one.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chapters.ch02_writing import cut, explained
from chapters.ch07_safetensors import bytes_of, save_tensors
from chapters.ch08_config import TrainConfig

# The files of a run folder that grow at their ends.
LOGS = ("metrics.jsonl", "samples.txt")

# What can be done about a checkpoint that is lost.
REMEDY = "put a copy in its place, or remove it to begin the run from its first step"


def dice(device: torch.device) -> dict:
    """Return by name the modules whose random numbers a run draws: the processor's, and those of its device."""
    return {"cpu": torch} | ({} if device.type == "cpu" else {device.type: torch.get_device_module(device)})


@contextlib.contextmanager
def same_dice(device: torch.device) -> Iterator[None]:
    """Let the block draw random numbers, and put the dice back afterwards as if it had drawn none."""
    before = {module: module.get_rng_state() for module in dice(device).values()}
    yield
    for module, state in before.items():
        module.set_rng_state(state)


def checksum(tensors: dict[str, Tensor], notes: dict[str, str]) -> str:
    """Return the SHA-256 of names, formats, shapes, numbers and notes, as text."""
    # 1. Begin with the notes: a wrong step is as bad as a wrong number.
    total = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())

    # 2. Add the tensors in the order of their names, each with what it says of itself.
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        total.update(bytes_of(tensors[name]))
    return total.hexdigest()


def save_checkpoint(path: Path, model: nn.Module, optimizers: list, step: int, config: TrainConfig, **notes) -> None:
    """Write all that a run needs to go on exactly where it stands, as one safetensors file, atomically.

    `notes` are further facts to keep, whatever JSON can hold. Raises ValueError when a number is not finite,
    and OSError when the disk refuses; the file before stays in both cases.
    """
    # 1. Collect weights and random state. Of tied tensors one copy is kept.
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["model.lm_head.weight"]
    device = next(model.parameters()).device
    tensors |= {f"random.{name}": module.get_rng_state() for name, module in dice(device).items()}

    # 2. Collect the optimizers' averages.
    for i, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{number}.{name}": value for name, value in state.items()}

    # 3. Refuse bad numbers: they would take the place of the last good ones.
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds a number that is not finite, so nothing is saved after step {step}: "
                             f"{path} is as it was; begin again with a lower learning rate")

    # 4. Note the rest as texts, and sum up.
    everything = {"step": step, "train_config": dataclasses.asdict(config), **notes}
    texts = {name: json.dumps(note) for name, note in everything.items()}
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, path, texts | {"sha256": checksum(tensors, texts)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the notes of a checkpoint, in memory of their own.

    Raises ValueError when the file cannot be read, or when one bit of it is not what was written.
    """
    # 1. Copy every tensor out of the file: as long as its memory is in use, Windows would not replace it.
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        found = checksum(tensors, {name: text for name, text in texts.items() if name != "sha256"})
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}): {REMEDY}") from error

    # 2. Believe it only as a whole.
    if texts.pop("sha256", None) != found:
        raise ValueError(f"{path} is damaged, its checksum does not fit its numbers: {REMEDY}")
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def load_checkpoint(path: Path, model: nn.Module, optimizers: list) -> dict:
    """Put a run back where `save_checkpoint` left it, and return the notes: the steps done, and what else was kept.

    Raises ValueError when the file is damaged, or belongs to another model or other optimizers.
    """
    # 1. Compare what is there with what belongs there, before anything is changed. Tied weights are kept once.
    tensors, notes = read_checkpoint(path)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    fits = {name: t.shape for name, t in weights.items()} == {
        name: t.shape for name, t in model.state_dict().items() if name not in tied}

    # 2. Do the same for the optimizers. Each counts its parameters from 0.
    averages = {name: t for name, t in tensors.items() if name.startswith("optimizer.")}
    sizes = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in optimizers]
    places = {f"optimizer.{i}.{number}" for i, size in enumerate(sizes) for number in range(size)}
    if not fits or not {name.rsplit(".", 1)[0] for name in averages} <= places:
        raise ValueError(f"{path} belongs to another model or optimizer: settings.json was changed, change it back")

    # 3. Demand dice for this device: a processor's are not those of a GPU.
    if missing := {f"random.{name}" for name in dice(next(model.parameters()).device)} - tensors.keys():
        raise ValueError(f"{path} lacks {min(missing)}: the run began on another device, go on with it there")

    # 4. Give the weights and the random numbers back.
    model.load_state_dict(weights, strict=not tied)
    for name, module in dice(next(model.parameters()).device).items():
        module.set_rng_state(tensors[f"random.{name}"])
    # 5. Rebuild each optimizer's averages from their flat names.
    for i, optimizer in enumerate(optimizers):
        state = {}
        for name in (name for name in averages if name.startswith(f"optimizer.{i}.")):
            number, field = name.split(".")[2:]
            state.setdefault(int(number), {})[field] = averages[name]
        # 6. Let the optimizer take them to where its parameters are.
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return notes


def log_sizes(folder: Path) -> dict[str, int]:
    """Return how many bytes each log of a run folder has by now; a checkpoint keeps this."""
    return {name: (folder / name).stat().st_size for name in LOGS if (folder / name).exists()}


def cut_logs(folder: Path, sizes: dict[str, int]) -> None:
    """Cut each log of a run folder to its size of before, or to nothing where it had none.

    What was written after the checkpoint will be written again, word for word; half a line at the end, left
    by a process that was killed, goes too.
    """
    for name in LOGS:
        cut(folder / name, sizes.get(name, 0))

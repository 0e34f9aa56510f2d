"""Costs: what a run was expected to take, and what it took.

    runs/NAME/costs.json    steps, the seconds that were predicted and those that passed, the most memory in use

A prediction that nobody checks is an opinion. So each run that ends writes both numbers down, and `main.py info`
shows them side by side. Time is predicted from a few steps that are measured (`Journey.predict`), memory from the
sizes alone (chapter 7), which knows nothing of activations, of Python and of PyTorch's own libraries.
"""

import json
import sys
from pathlib import Path

import torch

from chapters.ch02_writing import write_atomically
from chapters.ch07_config import GPTConfig, count_parameters, flops_per_token, memory_bytes


def describe(config: GPTConfig) -> list[str]:
    """Return the lines that say what follows from a model's sizes: parameters by part, work and memory."""
    # 1. List the parts, and the share of each.
    parts, context = count_parameters(config), config.max_seq_len
    lines = [f"  {part:14} {number:>13,} parameters {number / parts['total']:7.1%}" for part, number in parts.items()]

    # 2. List what they cost.
    for kind, flops in flops_per_token(config, context).items():
        lines.append(f"  {kind:14} {flops / 1e6:>13,.1f} million operations per token at a context of {context}")
    for kind, size in memory_bytes(config, context).items():
        lines.append(f"  {kind:14} {size / 2**20:>13,.1f} MiB")
    return lines


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that were in use at one time since this program began; None where nobody counts them.

    On a GPU those of its own memory that PyTorch used, else those of the whole process.
    """
    # 1. Ask PyTorch for a GPU's memory.
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    # 2. Ask the system for the process. Windows has no such module; macOS counts bytes, and Linux units of 1024.
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def write_costs(folder: Path, device: torch.device, steps: int, predicted: tuple[float, float], seconds: float) -> None:
    """Write down what the last `steps` steps of a run were predicted to take, and what they took.

    A run that was resumed predicts anew, and both numbers are of what came after.
    """
    costs = {"device": device.type, "steps": steps, "predicted_seconds": predicted, "seconds": seconds}
    costs |= {"peak_memory_bytes": peak_memory(device)}
    write_atomically(folder / "costs.json", json.dumps(costs, indent=2) + "\n")


def compare(folder: Path, config: GPTConfig) -> list[str]:
    """Return the lines that put what a run took beside what was predicted; none for a folder from elsewhere.

    Raises ValueError where the file is damaged.
    """
    # 1. Know a folder from elsewhere.
    path = Path(folder) / "costs.json"
    if not path.exists():
        return []

    # 2. Read, and compare time with time.
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        (low, high), most = map(float, costs["predicted_seconds"]), costs["peak_memory_bytes"]
        lines = [f"\nof its run, {costs['steps']} steps on {costs['device']}:",
                 f"  time           predicted {clock(low)} to {clock(high)} minutes, real {clock(costs['seconds'])}"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__} {error}): remove it") from None

    # 3. Compare memory with memory. The prediction is a part of the whole, and says so.
    known = memory_bytes(config, config.max_seq_len)["training_fp32"] / 2**20
    whole = "not counted by this system" if most is None else f"{most / 2**20:,.0f} MiB with activations and libraries"
    return [*lines, f"  memory         predicted {known:,.0f} MiB before activations, real {whole}"]


def clock(seconds: float) -> str:
    """Return a number of seconds as minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

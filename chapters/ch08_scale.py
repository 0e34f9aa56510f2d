"""What the machine can do: device, number format, compiler, and how long a run will take.

The loop of chapter 8 is the same on a laptop and on a graphics card. What differs is decided here, from what
the machine has and never from how busy it is, so that the same command gives the same run again.
"""

import contextlib
import platform
import shutil
import time
from collections.abc import Callable

import torch

from chapters.ch07_config import GPTConfig, count_parameters, memory_bytes
from chapters.ch08_config import TrainConfig

# Below this many rows a run is over before a compiler has earned back its own time.
COMPILE_FROM_ROWS = 4000


def choose_device() -> torch.device:
    """Return the fastest device present: an NVIDIA or AMD GPU, an Apple GPU, or the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_memory(num_bytes: int, device: torch.device, sizes: str) -> None:
    """Raise ValueError where a device cannot give this much memory; what it gives is given back at once.

    Asking costs nothing, and running out of memory later would cost the time until then. A system that promises
    more than it has is believed. `sizes` says in the error what needs so much.
    """
    try:
        torch.empty(min(num_bytes, 1 << 62), dtype=torch.uint8, device=device)
    except RuntimeError:
        raise ValueError(f"{sizes} need {num_bytes / 2**30:,.1f} GiB at least, and this machine does not have them: "
                         "choose smaller sizes") from None


def check_machine(model: GPTConfig, train: TrainConfig) -> None:
    """Raise ValueError where the machine has not the memory that training takes in any case.

    Weights, gradients and averages, and the scores of one batch; what else a step needs, nobody knows beforehand.
    A model that is too large would otherwise be noticed only once the text has been tokenized.
    """
    scores = 4 * train.batch_size * model.max_seq_len * model.vocab_size
    needed = memory_bytes(model, model.max_seq_len)["training_fp32"] + scores
    sizes = f"{count_parameters(model)['total']:,} parameters and batches of {train.batch_size}"
    check_memory(needed, choose_device(), sizes)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers in hardware, and not by emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the matrix products for a setting of "auto", or that of its name."""
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    return getattr(torch, name)


def autocast(device: torch.device, dtype: torch.dtype):
    """Return a context in which matrix products use `dtype`; weights and sums stay in float32.

    The dtype is always said aloud: left to itself, autocast takes float16 on a GPU, which needs a loss scaler.

    Source: Micikevicius et al. 2017 (arXiv 1710.03740).
    """
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def loss_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return what keeps small slopes alive in float16: it multiplies the loss, and divides the gradient by as much.

    Slopes below 3e-8 would be 0 in float16. The scale begins at 65536, is halved after a step whose gradient
    overflowed, and doubled after 2000 steps in which none did. For other formats nothing is multiplied.

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), section 3.2.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


@contextlib.contextmanager
def one_order(device: torch.device):
    """Return a context in which a processor takes every sum in one order, so that the same step gives the same bits.

    Compiled code would let each thread add its share to a row of the embedding's gradient whenever it is ready, and
    with rounded numbers (a + b) + c is not a + (b + c). On a GPU nothing changes: some operations have no such order
    there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` can work: on a processor it needs a C++ compiler."""
    compiler = {"Windows": "cl"}.get(platform.system(), "g++")
    found = shutil.which(compiler) or shutil.which("clang++")
    return device.type == "cuda" or (device.type == "cpu" and bool(found))


def compiler_pays(config: TrainConfig, device: torch.device) -> bool:
    """Return whether this run is compiled: as asked, or where it can work and the run is long enough."""
    if config.compile == "auto":
        rows = config.max_steps * config.batch_size * config.grad_accum_steps
        return rows >= COMPILE_FROM_ROWS and can_compile(device)
    return config.compile == "on"


def _seconds(run: Callable[[], None]) -> float:
    """Return how long a call takes, by a clock that nobody sets while it runs."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def tokens_per_second(run_step: Callable[[], None], tokens: int, steps: int = 3) -> tuple[float, float]:
    """Return the tokens per second of a step, and the seconds that its first call took longer than usual.

    `run_step` does the work of one step on `tokens` tokens, and returns only when the device is done: a
    GPU is handed its work and would otherwise still be at it when the clock is read.
    """
    # 1. Let the first call pay for compiling and for warming caches.
    first = _seconds(run_step)

    # 2. Time some more, and take the middle one: a busy machine spoils a mean.
    typical = sorted(_seconds(run_step) for _ in range(steps))[steps // 2]
    return tokens / typical, max(0.0, first - typical)

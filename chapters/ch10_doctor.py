"""The doctor: what this machine is, how fast it really is, and which model it can train while you wait.

    GFLOP/s      billions of additions and multiplications a second, in products of large matrices
    GB/s         billions of bytes a second that come out of the memory, in a sum over a large array

The first decides how long training takes, the second how fast a trained model speaks: each new token reads every
weight once. Both are measured, because what a machine promises and what it gives differ, and so is one step of
training with one preset. How long the others take is worked out from it: a step twice as large in operations (chapter
7 counts them) takes about twice as long. The measuring takes some seconds, and writes nothing.
"""

import ctypes
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from chapters.ch07_config import PRESETS, GPTConfig, count_parameters, flops_per_token
from chapters.ch07_gpt_model import GPT
from chapters.ch08_config import TrainConfig
from chapters.ch08_scale import autocast, choose_device, choose_dtype, has_native_bf16
from chapters.ch08_training import make_optimizers

# The preset whose step is measured, how long a training may take to be advised, and how much memory it may fill.
MEASURED, PATIENCE_SECONDS, MEMORY_SHARE = "tiny", 15 * 60, 0.5

# What is multiplied and summed: larger than the caches of a processor; a GPU needs more to show what it can do.
MATRIX, ARRAY_BYTES = {"cpu": 1024, "mps": 4096, "cuda": 8192}, 1 << 28

# How PyTorch names what a processor can do beyond its width, and how the doctor does.
ABILITIES = {
    "_is_avx2_supported": "AVX2", "_is_avx512_supported": "AVX512", "_is_vnni_supported": "VNNI",
    "_is_avx512_bf16_supported": "AVX512-BF16", "_is_amx_tile_supported": "AMX", "_is_arm_sve_supported": "SVE",
}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What the default training of one preset would ask of this machine.

    `memory` is in bytes, without activations; `seconds` without the examinations on the way.
    """

    preset: str
    seconds: float
    memory: int


def processor_name() -> str:
    """Return the name of the processor, or of its kind where the system does not tell more."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            rows = [row.split(":", 1)[1].strip() for row in file if row.startswith("model name")]
        return rows[0] if rows else platform.machine()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the instruction sets of the processor that PyTorch knows how to use.

    The names of the tests differ between versions of PyTorch; one that is missing says nothing.
    """
    tests = {shown: getattr(torch.cpu, name, lambda: False) for name, shown in ABILITIES.items()}
    found = [torch.backends.cpu.get_cpu_capability(), *(shown for shown, test in tests.items() if test())]
    return list(dict.fromkeys(found))


def usable_cores() -> int:
    """Return how many processor cores this program may use.

    A computing centre, or a container, may lend it fewer than there are.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the size of the main memory, None where the system does not tell.

    Linux and macOS answer one question, Windows another.
    """
    # 1. Count pages, where there are pages to count.
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if platform.system() != "Windows":
        return None

    # 2. Let Windows fill in a table of eight rows: its own length, a percentage, and seven sizes in bytes.
    table = (ctypes.c_uint64 * 8)(64)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(table))
    return table[1]


def graphics_cards() -> list[tuple[str, int | None]]:
    """Return the name and memory of each GPU that PyTorch can use."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    apple = [("Apple GPU, which shares the main memory", None)] if torch.backends.mps.is_available() else []
    return [(card.name, card.total_memory) for card in cards] + apple


def fastest(work: Callable[[], object], device: torch.device, seconds: float = 0.5) -> float:
    """Return the seconds of the fastest of several calls, after one that warms up.

    The fastest, because other programs can only slow a call down. A GPU is asked to finish before the clock is read.
    """
    # 1. Warm up.
    finish = torch.get_device_module(device).synchronize
    work()
    finish()
    best, end = float("inf"), time.perf_counter() + seconds
    # 2. Repeat, at least three times.
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        finish()
        # 3. Keep the best.
        best, rounds = min(best, time.perf_counter() - began), rounds + 1
    return best


def multiply_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a product of two large matrices.

    n·n results, each of n multiplications and n additions.
    """
    n = MATRIX[device.type]
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / fastest(lambda: left @ right, device)


def read_speed(device: torch.device) -> float:
    """Return the bytes per second at which an array comes out of the memory, when it is summed."""
    numbers = torch.ones(ARRAY_BYTES // 4, device=device)
    return ARRAY_BYTES / fastest(numbers.sum, device)


def step_seconds(config: GPTConfig, train: TrainConfig, device: torch.device) -> float:
    """Return the seconds of one step of training with these settings, by doing a few on random text.

    What is measured is the plain step; compiling, where it works, makes a long run faster.
    """
    # 1. Build what a run builds.
    dtype = choose_dtype(train.dtype, device)
    model = GPT(config).to(device)
    optimizers = make_optimizers(model, train, dtype)
    ids = torch.randint(config.vocab_size, (train.batch_size, config.max_seq_len + 1), device=device)

    def step() -> None:
        """Do what the trainer does with a batch."""
        # 1. Guess, measure the surprise, find the gradient.
        with autocast(device, dtype):
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        # 2. Move.
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    # 2. Do it some times. A step of several batches takes several times as long.
    return train.grad_accum_steps * fastest(step, device)


def forecasts(measured: float, train: TrainConfig) -> list[Forecast]:
    """Return what the default training of each preset would take, from the seconds of a step of the measured one.

    Every preset is expected to use the machine as well as the measured one does; large ones use it a little better.
    """
    # 1. Count the operations of a step.
    work = {name: config.max_seq_len * flops_per_token(config, config.max_seq_len)["training"]
            for name, config in PRESETS.items()}

    # 2. Scale.
    seconds = {name: train.max_steps * measured * work[name] / work[MEASURED] for name in PRESETS}
    return [Forecast(name, seconds[name], training_bytes(config)) for name, config in PRESETS.items()]


def training_bytes(config: GPTConfig) -> int:
    """Return the bytes that training needs for the parameters: number, gradient, and two means of the optimizer."""
    return 16 * count_parameters(config)["total"]


def advice(found: list[Forecast], memory: int | None) -> Forecast:
    """Return the largest preset whose default training ends within a quarter of an hour and fits into memory.

    Where none does, the smallest. Half of the memory is left to activations and to other programs.
    """
    fits = [f for f in found if f.seconds <= PATIENCE_SECONDS and f.memory <= MEMORY_SHARE * (memory or float("inf"))]
    return max(fits or found[:1], key=lambda forecast: forecast.memory)


def largest_that_fits(memory: int) -> str:
    """Return the name of the largest preset whose training fits into a GPU with so many bytes; at least the smallest.

    Half of the memory is left to activations and to other programs.
    """
    sizes = {name: training_bytes(config) for name, config in PRESETS.items()}
    return max((name for name, size in sizes.items() if size <= MEMORY_SHARE * memory), key=sizes.get, default="nano")


def examine() -> Iterator[str]:
    """Yield the findings line by line, as they are made: the machine, its speeds, and what to train on it."""
    # 1. Look. A GPU that is not found is worth a line: a wrong installation may hide one.
    memory, cards = memory_bytes(), graphics_cards()
    yield f"processor  {processor_name()}, {usable_cores()} cores, PyTorch uses {torch.get_num_threads()} threads"
    yield f"abilities  {', '.join(instruction_sets())}"
    shown = "; ".join(f"{name}, {gigabytes(size)}" for name, size in cards) or "none that PyTorch can use"
    yield f"memory     {gigabytes(memory)}\nGPU        {shown}"

    # 2. Measure what the machine can do at best.
    device, train = choose_device(), TrainConfig()
    yield f"\nmeasured on {device.type}, the fastest of several tries:"
    native = "in hardware" if has_native_bf16(device) else "emulated"
    yield f"  float32   {multiply_speed(device, torch.float32) / 1e9:10,.0f} GFLOP/s"
    yield f"  bfloat16  {multiply_speed(device, torch.bfloat16) / 1e9:10,.0f} GFLOP/s, {native}"

    # 3. Measure what a step of training makes of it, in the format that a run would take.
    yield f"  memory    {read_speed(device) / 1e9:10,.1f} GB/s read"
    seconds = step_seconds(PRESETS[MEASURED], train, device)
    yield f"  training  {seconds:10.3f} s a step of {MEASURED}, {choose_dtype(train.dtype, device)}, not compiled"

    # 4. Advise.
    best = advice(found := forecasts(seconds, train), cards[0][1] if cards else memory)
    yield f"\nthe default run, {train.max_steps} steps (of {MEASURED} measured, of the others worked out from it):"
    for forecast in found:
        needs = f"{duration(forecast.seconds):>10}, {gigabytes(forecast.memory)} and activations"
        yield f"  {forecast.preset:9} {needs}" + ("  <- suits this machine" if forecast == best else "")


def gigabytes(size: int | None) -> str:
    """Return a number of bytes as text, in units of 2^30.

    The makers of disks count in units of 10^9, which are smaller.
    """
    return "size unknown" if size is None else f"{size / 2**30:,.2f} GiB"


def duration(seconds: float) -> str:
    """Return a number of seconds as a person would say it, such as 3.2 min."""
    limits = [(90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")]
    unit, name = next(((unit, name) for limit, unit, name in limits if seconds < limit), (86400, "days"))
    return f"{seconds / unit:.1f} {name}"

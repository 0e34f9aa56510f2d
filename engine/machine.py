"""What this processor offers, found out once: Numba or not, wide registers or not, threads, large pages.

The engine's loops are compiled for the processor they run on. Everything that depends on that processor is decided
here, so that no other module asks again. Where something is missing, the engine gets slower and never wrong: each
fast loop has a twin in plain NumPy. `ENGINE_PLAIN=1` in the environment chooses the twins everywhere.
"""

import functools
import math
import mmap
import os
import sys
from collections.abc import Callable

import numpy as np

# ENGINE_PLAIN=1: do as if Numba were not installed.
PLAIN = os.environ.get("ENGINE_PLAIN", "0") not in ("", "0")

# Numba translates loops to machine code. The engine runs without it.
try:
    if PLAIN:
        raise ImportError("ENGINE_PLAIN is set")
    import numba
    from numba.core import codegen, event
except ImportError:
    numba = None

# `prange` is a loop whose rounds are shared out among threads; without Numba it is a loop.
HAS_NUMBA = numba is not None
prange = numba.prange if HAS_NUMBA else range


def _features() -> set[str]:
    """Return the names of the instruction sets that Numba compiles for, as in {"avx2", "fma"}."""
    if not HAS_NUMBA:
        return set()
    words = numba.config.CPU_FEATURES
    words = codegen.get_host_cpu_features() if words is None else words
    return {word[1:] for word in words.split(",") if word.startswith("+")}


# AVX2: registers of 8 floats, and one instruction that multiplies and adds. AVX-512: registers of 16 floats.
# VNNI: one instruction that multiplies 64 pairs of bytes and adds them up in fours. BF16: dot products of bfloat16.
FEATURES = _features()
HAS_AVX2 = {"avx2", "fma"} <= FEATURES
HAS_AVX512 = HAS_AVX2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= FEATURES
HAS_VNNI = HAS_AVX512 and "avx512vnni" in FEATURES
HAS_BF16 = HAS_AVX512 and "avx512bf16" in FEATURES

# A page is the unit in which the system hands out memory: 4 KB, or 2 MB on request.
HUGE_PAGE = 2 << 20
CACHE_LINE = 64


def threads() -> int:
    """Return how many threads the compiled loops use; NUMBA_NUM_THREADS in the environment sets it."""
    return numba.get_num_threads() if HAS_NUMBA else 1


def compiled(**options) -> Callable:
    """Return a decorator that compiles a function of loops for this processor, and keeps the result on disk.

    Without Numba it returns the function as it is: the same loops, run by Python. `options` are those of
    `numba.njit`. Division by zero gives inf or nan, as in NumPy.
    """
    if not HAS_NUMBA:
        return lambda function: function
    return functools.partial(_compile, options={"error_model": "numpy"} | options)


def _compile(function: Callable, options: dict) -> Callable:
    """Return the compiled function. Where no folder can be written to, every process compiles anew."""
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


def aligned_empty(shape: int | tuple[int, ...], dtype: object = np.float32) -> np.ndarray:
    """Return a new array whose first number starts a cache line, and whose memory is in large pages if it is large.

    The processor finds a page through a table of a few thousand entries. Weights in pages of 4 KB overrun that
    table, and reading them waits for look-ups; in pages of 2 MB they fit. The contents are undefined.
    """
    # 1. Count the bytes. A small array only needs its place: so reserve a line more than it takes.
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    large = size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
    unit = HUGE_PAGE if large else CACHE_LINE

    # 2. Ask the system for large pages. Private memory: what is shared between processes gets none.
    if large:
        memory = mmap.mmap(-1, size + unit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            # This system has none. Small pages are slower, not wrong.
            pass

    # 3. Start where a page, or a line, starts. What lies before is never touched, so it costs nothing.
    raw = np.frombuffer(memory, np.uint8) if large else np.empty(size + unit, np.uint8)
    start = -raw.ctypes.data % unit
    return raw[start:start + size].view(dtype).reshape(shape)


# A first compilation takes seconds, and the reader should know why. What Numba finds on disk it does not compile.
if HAS_NUMBA:
    class _Announcement(event.Listener):
        """Says on stderr, once in a process, that loops of the engine are being compiled."""

        made = False

        def on_start(self, begun: event.Event) -> None:
            """Speak at the first of our own functions."""
            module = begun.data["dispatcher"].py_func.__module__ or ""
            if module.startswith("engine.") and not self.made:
                self.made = True
                print("engine: compiling loops for this processor; the next start finds them ready",
                      file=sys.stderr, flush=True)

        def on_end(self, ended: event.Event) -> None:
            """Stay silent: Numba reports this too."""

    event.register("numba:compile", _Announcement())

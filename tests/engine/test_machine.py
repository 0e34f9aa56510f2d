"""What the machine offers is found out once; without Numba the same names are there, and all is plain."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from engine import machine
from tools.source import ROOT

FLAGS = "from engine.machine import *; print(HAS_NUMBA, HAS_AVX2, HAS_AVX512, HAS_VNNI, HAS_BF16, threads())"


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a program in a Python of its own, with more in its environment."""
    settings = {"NUMBA_CACHE_DIR": "", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
                          env=os.environ | settings, cwd=ROOT)


@pytest.mark.parametrize("shape", [(3, 5), 7, (0, 4), (), (1031, 1033), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64])
def test_a_buffer_has_its_shape_and_type_and_starts_a_cache_line(shape, dtype):
    array = machine.aligned_empty(shape, dtype)
    assert (array.shape, array.dtype) == (np.empty(shape, dtype).shape, np.dtype(dtype))
    assert array.ctypes.data % machine.CACHE_LINE == 0 or array.size == 0
    assert array.flags.c_contiguous and array.flags.writeable
    array[...] = 1
    assert array.sum() == array.size


def test_a_large_buffer_starts_a_large_page():
    assert machine.aligned_empty(machine.HUGE_PAGE, np.int8).ctypes.data % machine.HUGE_PAGE == 0


def test_the_plain_switch_turns_everything_off():
    assert run(FLAGS, ENGINE_PLAIN="1").stdout.split() == ["False"] * 5 + ["1"]
    assert "numba" not in run("import engine.machine, sys; print(*sys.modules)", ENGINE_PLAIN="1").stdout.split()


def test_an_older_processor_is_not_asked_for_what_it_lacks():
    pytest.importorskip("numba")
    older = run(FLAGS, NUMBA_CPU_FEATURES="+sse4.2,+avx,+avx2,+fma", NUMBA_NUM_THREADS="1")
    assert older.stdout.split() == ["True", "True", "False", "False", "False", "1"]


def test_without_numba_a_compiled_function_is_the_function(monkeypatch):
    monkeypatch.setattr(machine, "HAS_NUMBA", False)

    def double(x):
        return 2 * x

    assert machine.compiled(parallel=True)(double) is double


def test_a_cold_compile_is_announced_once_and_a_warm_start_is_silent(tmp_path: Path):
    pytest.importorskip("numba")
    source = "from engine.machine import compiled\n@compiled()\ndef {0}(x):\n    return x + 1\nprint({0}(1))\n"
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "probe.py").write_text(source.format("one") + source.format("two"))
    program = f"import engine; engine.__path__.append({str(folder)!r}); import engine.probe"
    cold, warm = (run(program, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2))
    assert cold.stdout == warm.stdout == "2\n2\n", cold.stderr
    assert cold.stderr.count("compiling") == 1 and warm.stderr == ""


def test_a_disk_that_cannot_be_written_only_costs_the_cache(tmp_path: Path):
    pytest.importorskip("numba")
    source = """
        import numba
        from engine import machine
        njit = numba.njit
        def refuse(*functions, cache=False, **options):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return njit(*functions, **options)
        numba.njit = refuse
        print(machine.compiled(fastmath=True)(lambda x: x * 2)(3))
    """
    assert run(textwrap.dedent(source)).stdout == "6\n"

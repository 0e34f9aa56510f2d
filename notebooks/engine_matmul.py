# Imports that only quoted code needs look unused from here.
# ruff: noqa: F401

# %% [markdown]
# # The matrix product, to play with
#
# Beside [the tutorial](../engine/06_optimizing_matmul.md): climb the ladder on your own machine, look at the
# instructions that the compiler chose, and spoil a rung.

# %%
import re
import statistics
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

from engine import machine
from engine import matmul as ladder

print("Numba:", machine.HAS_NUMBA, "| threads:", machine.threads(), "| AVX2:", machine.HAS_AVX2,
      "| AVX-512:", machine.HAS_AVX512)

# %% [markdown]
# ## Time honestly
#
# The first call contains the compiler, so it does not count. Then all take turns, and the median counts.

# %%
def gigaflops(works: dict, operations: dict, rounds: int = 5) -> dict:
    for work in works.values():
        work()
    seconds = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: operations[name] / statistics.median(times) / 1e9 for name, times in seconds.items()}

# %% [markdown]
# ## The ladder on this machine
#
# 512 × 512 numbers, lists 64 × 64. The rungs that read b turned on its side get it so.

# %%
SIZE, SMALL = 512, 64
random = np.random.default_rng(0)
a, b = random.standard_normal((2, SIZE, SIZE), dtype=np.float32)
turned = np.ascontiguousarray(b.T).T
rows = random.standard_normal((SMALL, SMALL)).tolist()

works = {"Python lists": lambda: ladder.matmul_lists(rows, rows), "i-j-k": lambda: ladder.matmul_ijk(a, b),
         "i-k-j": lambda: ladder.matmul_ikj(a, b), "dot products": lambda: ladder.matmul_dot(a, turned),
         "4 × 4 in registers": lambda: ladder.matmul_registers(a, turned),
         "in blocks": lambda: ladder.matmul_blocked(a, turned), "vector tiles": lambda: ladder.matmul_packed(a, b),
         "all cores": lambda: ladder.matmul_threads(a, b), "NumPy, all cores": lambda: a @ b}
operations = dict.fromkeys(works, 2 * SIZE**3) | {"Python lists": 2 * SMALL**3}
speed = gigaflops(works, operations)
for name, value in speed.items():
    print(f"{name:20} {value:8.3g} GFLOP/s")

# %%
figure, panel = plt.subplots(figsize=(8, 3.6), layout="constrained")
bars = panel.barh(list(speed), list(speed.values()), color=["#0072b2"] * (len(speed) - 1) + ["#999999"])
panel.bar_label(bars, [f"{value:.3g}" for value in speed.values()], padding=3)
panel.set(xscale="log", xlabel="GFLOP/s, each mark ten times the one before", xlim=(0.01, 3000))
panel.invert_yaxis()

# %% [markdown]
# ## What did the compiler choose?
#
# Numba shows the instructions of what it has compiled itself; what it finds on disk it only runs. So compile anew.
# On an Intel or AMD processor `xmm`, `ymm` and `zmm` are registers for 4, 8 and 16 numbers, `vfmadd…ps` multiplies and
# adds whole registers, `…ss` a single number.

# %%
def instructions(loops) -> dict[str, int]:
    fresh = numba.njit(fastmath=loops.targetoptions.get("fastmath", False))(loops.py_func)
    fresh(a, b, np.zeros_like(a))
    text = "\n".join(fresh.inspect_asm().values())
    kinds = {"multiply-add, one number": r"\bvfmadd\w*ss\b", "multiply-add, 4": r"\bvfmadd\w*ps\b.*xmm",
             "multiply-add, 8": r"\bvfmadd\w*ps\b.*ymm", "multiply-add, 16": r"\bvfmadd\w*ps\b.*zmm",
             "multiply alone": r"\bvmul[sp]s\b", "add alone": r"\bvadd[sp]s\b"}
    return {kind: len(re.findall(pattern, text)) for kind, pattern in kinds.items()}


for name, loops in (("i-j-k", ladder._ijk), ("i-k-j", ladder._ikj), ("dot products", ladder._dot)):
    print(name, {kind: count for kind, count in instructions(loops).items() if count})

# %% [markdown]
# i-j-k multiplies and adds one number at a time. The other two have whole registers, and single numbers only for what
# is left over at the end of a row.
#
# ## The size of the matrices
#
# Small products do not reach the speed of large ones: waking the cores and copying into panels must pay off first.

# %%
sizes = (16, 32, 64, 128, 256, 512)
curves = {"dot products": [], "all cores": [], "NumPy, all cores": []}
for size in sizes:
    p, q = random.standard_normal((2, size, size), dtype=np.float32)
    works = {"dot products": lambda p=p, q=q: ladder.matmul_dot(p, q.T),
             "all cores": lambda p=p, q=q: ladder.matmul_threads(p, q), "NumPy, all cores": lambda p=p, q=q: p @ q}
    for name, value in gigaflops(works, dict.fromkeys(works, 2 * size**3), rounds=15).items():
        curves[name].append(value)

# %%
figure, panel = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, curve), style in zip(curves.items(), ("o-", "s--", "^:"), strict=True):
    panel.plot(sizes, curve, style, label=name)
panel.set(xlabel="rows and columns", ylabel="GFLOP/s", xticks=sizes)
panel.set_xscale("log", base=2)
panel.set_xticks(sizes, [str(size) for size in sizes])
panel.legend(frameon=False)

# %% [markdown]
# ## Spoil it
#
# A `min` in the bound of the inner loop looks harmless. Run it, then look at its instructions.

# %%
@numba.njit(fastmath={"contract"})
def strips(a, b, out):
    for first in range(0, out.shape[1], 64):
        for i in range(out.shape[0]):
            for k in range(a.shape[1]):
                for j in range(first, min(first + 64, out.shape[1])):
                    out[i, j] += a[i, k] * b[k, j]


works = {"i-k-j": lambda: ladder._ikj(a, b, np.zeros_like(a)), "with min": lambda: strips(a, b, np.zeros_like(a))}
print({name: f"{value:.3g} GFLOP/s" for name, value in gigaflops(works, dict.fromkeys(works, 2 * SIZE**3), 3).items()})
print("with min", {kind: count for kind, count in instructions(strips).items() if count})

# %% [markdown]
# Now you: cut the strip out first (`row, part = out[i, first:first + 64], b[k, first:first + 64]`), loop over
# `range(len(part))`, and see the speed come back.

"""How much of a model's time goes into matrix products: the engine's plain model, watched at work.

    python benchmarks/bench_product_share.py --write

The storyteller, in NumPy, one core. Every product of a token's vector with a matrix of weights goes through one
method, so one clock there sees them all. Attention's own small products, in which tokens meet each other, are not
among them: they count as the rest.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import write_table  # noqa: E402
from engine.model import Model  # noqa: E402
from engine.quantize import Matrix  # noqa: E402
from engine.weights import load_weights  # noqa: E402

ROUNDS, PROMPT = 31, 128


def watched(work) -> tuple[float, float, int]:
    """Return the seconds of one run, the part of them in products with weights, and how many products there were."""
    # 1. Put a clock round the one method.
    product, spent = Matrix.product, []

    def timed(self, x):
        """Multiply, and remember how long it took."""
        began = time.perf_counter()
        result = product(self, x)
        spent.append(time.perf_counter() - began)
        return result

    # 2. Run, and take the clock away again.
    Matrix.product = timed
    began = time.perf_counter()
    try:
        work()
    finally:
        Matrix.product = product
    return time.perf_counter() - began, sum(spent), len(spent)


def main() -> None:
    """Measure reading a prompt and writing one token, in turn."""
    # 1. Prepare both; the writer has read the prompt already.
    model = Model(*load_weights(Path("models/storyteller")))
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, PROMPT)

    def write():
        """Return the one step that is watched: a token behind a prompt that was read before."""
        cache = model.new_cache(PROMPT + 1)
        model.forward(ids, cache)
        return lambda: model.forward(ids[:1], cache)

    # 2. Take turns.
    runs = [(watched(lambda: model.forward(ids)), watched(write())) for _ in range(ROUNDS + 1)][1:]
    rows = [["work", "products", "milliseconds", "in products with weights"]]
    names = (f"read {PROMPT} tokens at once", "write one token")
    for name, results in zip(names, zip(*runs, strict=True), strict=True):
        whole = statistics.median(seconds for seconds, _, _ in results)
        share = statistics.median(part / seconds for seconds, part, _ in results)
        rows.append([name, str(results[0][2]), f"{1000 * whole:.2g}", f"{100 * share:.0f} %"])
    write_table("product_share", rows)


if __name__ == "__main__":
    main()

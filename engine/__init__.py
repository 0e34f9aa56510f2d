"""The engine: published language models run in Python, from a flat buffer of numbers up.

    from engine import load_model

    engine = load_model("models/storyteller")
    print("".join(engine.generate("Once upon a time")))

    from engine.matmul import matmul    # the fastest matrix product here; `engine.matmul` is the module of all rungs

Part II of the book. Every module is a step of the climb: `tensor` and `matmul` are where it begins, `layers`, `rope`
and `attention` are what a model is made of, `model` puts them together, `generation` lets it speak, and `fast` does
the same at the speed of the machine. It stands on NumPy, Numba, `regex` and Python's own library alone.
"""

import importlib

# Where each name of the front door lives. It is imported when it is first asked for: who wants a tensor shall not wait
# for a compiler.
_HOMES = {
    "Tensor": "engine.tensor", "load_model": "engine.generation", "Engine": "engine.generation",
    "SamplingConfig": "engine.sampling",
}
__all__ = ["Engine", "SamplingConfig", "Tensor", "load_model"]


def __getattr__(name: str):
    """Return a public name of the engine, from the module that makes it."""
    if name not in _HOMES:
        raise AttributeError(f"engine has no {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)

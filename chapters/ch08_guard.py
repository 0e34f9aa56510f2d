"""Two guards beside the training loop: one stops a run in good order, the other says what went wrong.

A run that is asked to stop finishes its step and saves. A run whose numbers explode stops at once, before the
weights are touched, and names the first tensor that went bad: without it, one would search a million numbers.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def stop_politely(request: Callable) -> Iterator[None]:
    """Turn Ctrl-C, and the SIGTERM by which computing centres end a job, into a call of `request`.

    Outside of the block both do again what they did. Only a main thread can receive signals; elsewhere, and
    for SIGTERM on Windows, nothing changes.
    """
    # 1. Lend both to the block.
    signals = [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield
    # 2. Take them back.
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def first_bad_tensor(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss_of: Callable[[Tensor, Tensor], Tensor]
) -> str:
    """Return which tensor is the first that is not finite, on the way from the weights to the loss and back.

    The batches that failed are computed once more, with a look at what each part of the model hands on.
    Shapes: each batch is x (B, T) and y (B, T).
    """
    # 1. Begin with the weights: a bad one spoils all that comes after it.
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"the weight {name}"

    # 2. Put a listener on every part.
    bad: list[str] = []
    parts = [(name, part) for name, part in model.named_modules() if name]
    listeners = [part.register_forward_hook(functools.partial(_note_bad, bad, name)) for name, part in parts]
    # 3. Compute, forward and then back. Gradients come from the end, so the last one goes bad first.
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss_of(x, y).backward()
        gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        bad += [f"the gradient of {name}" for name, grad in reversed(gradients) if not grad.isfinite().all()]

    # 4. Clear up, and name the first.
    for listener in listeners:
        listener.remove()
    model.zero_grad(set_to_none=True)
    return bad[0] if bad else "none; only their sum is too large"


def _note_bad(bad: list[str], name: str, part: nn.Module, inputs: tuple, output: object) -> None:
    """Remember a part of the model whose output is not finite."""
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        bad.append(f"the output of {name}")

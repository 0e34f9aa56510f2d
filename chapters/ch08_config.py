"""The settings of a training run, and the schedule of its learning rate.

    warm-up: the rate rises in a straight line       then: it falls along half a cosine wave

Nothing here needs PyTorch, so `main.py` can read its command line in an instant.
"""

import dataclasses
import math

from chapters.ch07_config import SEEDS, check_number


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run goes; the same settings and seed give the same weights.

    A step sees batch_size · grad_accum_steps rows of the model's `max_seq_len` tokens.

    learning_rate        the highest rate of the schedule; AdamW alone wants about a tenth of Muon's
    final_lr_fraction    the share of it that is left at the end
    warmup_steps         steps until the highest rate is reached
    weight_decay         how strongly matrices are pulled to zero, in proportion to the rate
    beta1, beta2         how much of AdamW's two averages is kept at each step; Muon has the first alone
    grad_clip            the longest gradient that is let through, as one length over all parameters
    optimizer            "muon" for the blocks' matrices with AdamW for the rest, or "adamw" for everything
    dtype                of the matrix products; "auto" takes bfloat16 where the processor computes with it,
                         "float16" is for GPUs that cannot
    compile              "auto" compiles where a compiler exists and the run is long enough to pay for it
    eval_every           steps between two examinations; the first come sooner
    checkpoint_every     steps between two checkpoints

    Raises ValueError naming the field, its value and the rule.
    """

    learning_rate: float = 3e-2
    final_lr_fraction: float = 0.05
    warmup_steps: int = 20
    max_steps: int = 340
    batch_size: int = 24
    grad_accum_steps: int = 1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    grad_clip: float = 1.0
    optimizer: str = "muon"
    dtype: str = "auto"
    compile: str = "auto"
    eval_every: int = 40
    checkpoint_every: int = 80
    seed: int = 0

    def __post_init__(self):
        # 1. Check the numbers. They may come from a settings.json that somebody has edited. To Python, True is a
        # whole number, and nan is never outside of any range.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and type(value) is not int:
                raise ValueError(f"{field.name} is {value!r}: it must be a whole number")
            if field.type is float:
                check_number(field.name, value)

        # 2. Check what must be positive: a step of size zero never ends.
        for name in ("learning_rate", "max_steps", "batch_size", "grad_accum_steps", "grad_clip",
                     "eval_every", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be above 0")
        # 3. Check the words, so that a typing error is not silently another run.
        words = {"optimizer": ("adamw", "muon"), "dtype": ("auto", "float32", "bfloat16", "float16"),
                 "compile": ("auto", "on", "off")}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}")

        # 4. Check the ranges.
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or above and below 1")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed is {self.seed}: it must be 0 or above and below {SEEDS}")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"final_lr_fraction is {self.final_lr_fraction}: a share of learning_rate, from 0 to 1")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(f"warmup_steps {self.warmup_steps}, weight_decay {self.weight_decay}: neither below 0")


def cosine_warmup_lr(
    step: int, learning_rate: float, warmup_steps: int, max_steps: int, final_lr_fraction: float = 0.1
) -> float:
    """Return the learning rate of a step: up in a straight line, then down half a cosine wave to a floor.

    Step 0 already moves, by 1/warmup_steps of the rate (a rate of zero would waste it), and the first
    step after the warm-up has the full rate. After `max_steps` the floor holds.

    Source: Goyal et al. 2017 (arXiv 1706.02677) for the warm-up, Loshchilov & Hutter 2016 (1608.03983) for the cosine.
    """
    # 1. Warm up. Adam's averages know little at first, and full steps in a wrong direction are hard to undo.
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps

    # 2. Cool down: fast in the middle, gently at both ends.
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
    floor = learning_rate * final_lr_fraction
    return floor + (learning_rate - floor) * 0.5 * (1 + math.cos(math.pi * progress))

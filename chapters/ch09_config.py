"""The settings of generation: how the next token is drawn, and when to stop.

Nothing here needs PyTorch, so `main.py` can read its command line in an instant.
"""

import dataclasses

from chapters.ch07_config import SEEDS, check_number


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to choose among the model's guesses; the defaults change nothing but the temperature.

        temperature          0 always takes the likeliest token, below 1 sharpens, above 1 flattens
        top_k                only this many of the likeliest tokens may be drawn
        top_p                only the likeliest ones that together reach this probability
        min_p                only those at least this share as probable as the likeliest
        repetition_penalty   above 1 makes tokens that were said before less likely
        max_new_tokens       when to stop at the latest
        seed                 where the dice start: same seed, same text

    top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch these filters off.
    Raises ValueError naming the setting, its value and its range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 250
    seed: int = 0

    def __post_init__(self):
        # 1. Know numbers from what is none.
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            check_number(name, getattr(self, name))

        # 2. Hold every setting against its range. Outside of it nothing need fail: a negative temperature
        # draws the unlikeliest tokens, and a reader would blame the model.
        ranges = {
            "temperature": (self.temperature >= 0, "0 or above; 0 means always the likeliest token"),
            "top_k": (self.top_k >= 0, "0 or above; 0 means no limit"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1; 1 means no limit"),
            "min_p": (0 <= self.min_p < 1, "0 or above and below 1; 0 means no limit"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 means none"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or above"),
            "seed": (0 <= self.seed < SEEDS, f"0 or above and below {SEEDS}"),
        }
        for name, (holds, rule) in ranges.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {rule}")

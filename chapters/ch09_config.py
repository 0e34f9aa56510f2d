"""The settings of generation: how the next token is drawn, and when to stop.

Nothing here needs PyTorch, so `main.py` can read its command line in an instant.
"""

import dataclasses
from collections.abc import Iterable

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


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How to make the text, where drawing one token after the other is not what is wanted.

        beams           search for the likeliest text, with so many beginnings at a time; 0 draws
        length_penalty  of a search: 0 ranks texts by their probability, 1 by the mean of a token
        draft           folder of a small model with the same tokens, which guesses ahead
        draft_tokens    how many tokens it guesses at a time
        logprobs        show each token on a line, with the probability that the model gave it

    Raises ValueError naming the setting, its value and its rule, or settings that contradict each other.
    """

    beams: int = 0
    length_penalty: float = 1.0
    draft: str | None = None
    draft_tokens: int = 4
    logprobs: bool = False

    def __post_init__(self):
        # 1. Hold the numbers against their ranges.
        if self.beams < 0:
            raise ValueError(f"beams is {self.beams}: it must be 0 or above; 0 draws instead of searching")
        if self.draft_tokens < 1:
            raise ValueError(f"draft_tokens is {self.draft_tokens}: it must be 1 or above")
        if not abs(self.length_penalty) < float("inf"):
            raise ValueError(f"length_penalty is {self.length_penalty}: it must be a finite number")

        # 2. Refuse two ways at once, and a setting of a way that is not taken: it would be passed over in silence.
        if len(ways := self._ways()) > 1:
            raise ValueError(f"{' and '.join(ways)} are different ways to make a text: choose one")
        for name, way in (("length_penalty", "beams"), ("draft_tokens", "draft")):
            if getattr(self, name) != getattr(DecodingConfig, name) and not getattr(self, way):
                raise ValueError(f"--{name.replace('_', '-')} is a setting of --{way}: give that too, or leave it out")

    def _ways(self) -> list[str]:
        """Return the flags of the ways that are asked for."""
        return [f"--{way}" for way in ("beams", "draft", "logprobs") if getattr(self, way)]

    def check_beside(self, given: Iterable[str]) -> None:
        """Refuse settings that have no meaning beside this way of making a text.

        `given` are the names of settings of `generate` that were asked for: fields of `SamplingConfig`, "stop" and
        "count". Raises ValueError naming the first that would be passed over in silence.
        """
        # 1. A search draws nothing. What is stopped at, it would have to know while it searches.
        drawing = {field.name for field in dataclasses.fields(SamplingConfig)} - {"max_new_tokens"}
        idle = drawing | {"stop", "count"} if self.beams else {"stop"} if self.logprobs else set()

        # 2. Name the first.
        for name in given:
            if name in idle:
                raise ValueError(f"--{name.replace('_', '-')} has no meaning beside {self._ways()[0]}: leave one out")

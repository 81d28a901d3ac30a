"""Which sampling settings give log-probs that the learner can recompute: the rule, said in words.

The learner computes log_softmax(logits / temperature): greedy drawing, filters and penalties all
sample from something else, and the ratio of an unchanged policy would not be 1.
"""

from __future__ import annotations

import math
from typing import Protocol

# vLLM raises any positive temperature below this to it without saying so in the output.
MIN_TEMPERATURE = 0.01

# Name of each setting that changes which tokens can be drawn, with the values that switch it off.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "top_p": (1.0,),
    "top_k": (-1, 0),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
}


class Drawing(Protocol):
    """What the settings of a configuration and those of a trajectory have in common."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""


def temperature_problems(sampling: Drawing) -> list[str]:
    """What keeps the temperature from training: it is greedy, not finite, or quietly replaced by an engine."""
    temperature = sampling.temperature
    if math.isfinite(temperature) and temperature >= MIN_TEMPERATURE:
        return []
    return [
        f"sampling.temperature is {temperature}; training needs a finite temperature of at least "
        f"{MIN_TEMPERATURE}: at 0 the token is chosen, not drawn, so its log-prob says nothing of how "
        "likely it was, and the engine replaces smaller positive ones"
    ]


def filter_problems(sampling: Drawing) -> list[str]:
    """The filters and penalties that are on: they draw from a distribution that only the engine knows."""
    return [
        f"sampling.{name} is {value}; only {' or '.join(map(str, neutral))} is allowed, because the learner recomputes "
        f"log-probs as log_softmax(logits / temperature) and cannot know what {name} left out"
        for name, neutral in NEUTRAL.items()
        if (value := getattr(sampling, name)) not in neutral
    ]

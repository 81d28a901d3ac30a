"""Which sampling settings give log-probs that the learner can recompute."""

from __future__ import annotations

import math

from shared.errors import SamplingError
from shared.types import SamplingSettings

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


def check_trainable(sampling: SamplingSettings) -> None:
    """Refuse settings whose `behavior_logprobs` the learner could not recompute.

    The learner computes log_softmax(logits / temperature): greedy drawing, filters and penalties all
    sample from something else, and the ratio of an unchanged policy would not be 1.

    Raises:
        SamplingError: names the setting, its value, what is allowed and why.

    """
    check_temperature(sampling.temperature)
    check_unfiltered(sampling)


def check_temperature(temperature: float) -> None:
    """Refuse temperatures that are greedy, not finite, or that an engine would quietly replace."""
    if math.isfinite(temperature) and temperature >= MIN_TEMPERATURE:
        return
    raise SamplingError(
        f"sampling.temperature is {temperature}; training needs a finite temperature of at least "
        f"{MIN_TEMPERATURE}: at 0 the token is chosen, not drawn, so its log-prob says nothing of how "
        "likely it was, and the engine replaces smaller positive ones"
    )


def check_unfiltered(sampling: SamplingSettings) -> None:
    """Refuse filters and penalties: they draw from a distribution that only the engine knows."""
    for name, neutral in NEUTRAL.items():
        value = getattr(sampling, name)
        if value not in neutral:
            allowed = " or ".join(str(v) for v in neutral)
            raise SamplingError(
                f"sampling.{name} is {value}; only {allowed} is allowed, because the learner recomputes "
                f"log-probs as log_softmax(logits / temperature) and cannot know what {name} left out"
            )

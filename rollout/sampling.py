"""Refuses sampling settings whose log-probs the learner could not recompute; the rule is in shared.sampling."""

from __future__ import annotations

from shared.errors import SamplingError
from shared.sampling import filter_problems, temperature_problems
from shared.types import SamplingSettings


def check_trainable(sampling: SamplingSettings) -> None:
    """Refuse settings whose `behavior_logprobs` the learner could not recompute.

    Raises:
        SamplingError: names the setting, its value, what is allowed and why.

    """
    _refuse(temperature_problems(sampling) + filter_problems(sampling))


def check_unfiltered(sampling: SamplingSettings) -> None:
    """Refuse filters and penalties; greedy drawing is no filter. Raises SamplingError."""
    _refuse(filter_problems(sampling))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise SamplingError(problems[0])

import math
from typing import Any

import pytest

from rollout.sampling import check_trainable, check_unfiltered
from shared.errors import SamplingError
from shared.types import SamplingSettings


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 2.5])
def test_neutral_settings_at_any_drawing_temperature_are_trainable(temperature: float) -> None:
    check_trainable(SamplingSettings(temperature=temperature, max_tokens=1, stop_token_ids=(1, 2)))


def test_both_ways_to_switch_top_k_off_are_trainable() -> None:
    check_trainable(SamplingSettings(top_k=-1))
    check_trainable(SamplingSettings(top_k=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 50),
        ("min_p", 0.05),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -0.1),
        ("repetition_penalty", 1.1),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", 0.009),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", math.nan),
    ],
)
def test_what_the_learner_cannot_recompute_is_refused_by_name_value_and_reason(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    sampling = SamplingSettings(**settings)
    with pytest.raises(SamplingError) as refused:
        check_trainable(sampling)
    message = str(refused.value)
    assert f"sampling.{name} is {value}" in message
    assert "log" in message


def test_greedy_drawing_is_unfiltered_and_so_allowed_outside_training() -> None:
    check_unfiltered(SamplingSettings(temperature=0.0))

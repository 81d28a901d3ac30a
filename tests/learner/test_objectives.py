"""The configured objective."""

import pytest

from learner.objective.registry import OBJECTIVES
from learner.objectives import describe, objectives_of
from shared.config import load_config
from shared.errors import ConfigError


def test_the_default_is_p3o_and_knobs_come_from_the_configuration() -> None:
    assert objectives_of(load_config(None, [], {}).learner).trained.name == "p3o"
    config = load_config(None, ["learner.objective={name: grpo, eps_low: 0.1}"], {})
    assert objectives_of(config.learner).trained.knobs == {"eps_low": 0.1}
    aliased = load_config(None, ["learner.objective.name=aipo"], {})
    assert objectives_of(aliased.learner).trained.name == "truncated_is"


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{name: p3p}", "learner.objective: objective 'p3p' is not known; did you mean p3o"),
        ("{name: p3o, clip: 1}", "learner.objective: objective 'p3o' has no knob 'clip'"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_key(objective: str, message: str) -> None:
    config = load_config(None, [f"learner.objective={objective}"], {})
    with pytest.raises(ConfigError, match=message):
        objectives_of(config.learner)


def test_every_objective_is_described_with_its_knobs() -> None:
    text = describe()
    for name in OBJECTIVES:
        assert f"\n{name}" in "\n" + text
    assert "kl_estimator = 'unbiased': one of unbiased, k3" in text
    assert "eps_low = 0.2: a number from 0 to 1" in text
    assert "grpo (also ppo aggregation=token_mean, dr_grpo aggregation=sequence_sum)" in text

"""Objectives by name: aliases with knobs of their own, and values as they come out of YAML."""

import math
from typing import Any

import pytest
import yaml

from learner.objective.core import needs_of
from learner.objective.registry import ALIASES, OBJECTIVES, build, canonical, knobs_of
from learner.objective.regularization import regularized


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_another_name_with_knobs_of_its_own(alias: str) -> None:
    name, preset = canonical(alias)
    assert alias not in OBJECTIVES
    assert name in OBJECTIVES
    built = build(alias)
    assert (built.name, built.knobs) == (name, preset)
    assert built.label == build(name, preset).label


def test_what_is_given_goes_before_what_the_alias_stands_for() -> None:
    assert build("dr_grpo").label == "grpo(aggregation=sequence_sum)"
    assert build("dr_grpo", {"aggregation": "token_mean", "eps_low": 0.1}).knobs == {
        "aggregation": "token_mean",
        "eps_low": 0.1,
    }
    assert build("dr_grpo").label == "grpo(aggregation=sequence_sum)", "the alias itself stays as it is"


def test_what_is_no_alias_means_itself() -> None:
    assert canonical("p3o") == ("p3o", {})
    assert canonical("zebra") == ("zebra", {})
    with pytest.raises(ValueError, match="did you mean p3o or ppo"):
        build("p3p")


@pytest.mark.parametrize("written", ["3e-4", "0.0003", "'3e-4'", "3.0e-4"])
def test_a_number_may_come_as_the_string_that_yaml_makes_of_it(written: str) -> None:
    """YAML 1.1 reads 3e-4, without a dot, as a string."""
    assert build("gspo", {"eps_low": yaml.safe_load(written)}).knobs == {"eps_low": 3e-4}
    assert isinstance(yaml.safe_load("3e-4"), str)


@pytest.mark.parametrize(
    "wrong", ["", "x", "nan", "inf", "-1", "2", "1e400", "true", None, True, math.inf, 10**400, [1]]
)
def test_what_is_no_number_within_bounds_is_refused_as_it_was_given(wrong: Any) -> None:
    with pytest.raises(ValueError, match="eps_low must be a number from 0 to 1, not ") as refused:
        build("gspo", {"eps_low": wrong})
    assert str(refused.value).endswith(repr(wrong))


def test_choices_and_switches_are_told_in_words() -> None:
    told = {knob.name: knob.allowed() for knob in [*knobs_of(OBJECTIVES["vcpo"]), *knobs_of(regularized)]}
    assert told["cap"] == "a number from 0.001 to 1000"
    assert told["divide_by_std"] == "true or false"
    assert told["gradient_proxy"] == "one of one_minus_prob, length, none"
    for wrong in ({"divide_by_std": "true"}, {"divide_by_std": 1}, {"gradient_proxy": True}):
        with pytest.raises(ValueError, match="must be"):
            build("vcpo", wrong)


def test_what_is_needed_follows_the_knobs_and_the_defaults_of_those_not_given() -> None:
    assert needs_of(OBJECTIVES["p3o"], {}) == frozenset()
    assert needs_of(OBJECTIVES["p3o"], {"ess_scope": "micro_batch"}) == {"micro_batch_of"}
    assert needs_of(regularized, {}) == frozenset()
    assert build("reinforce", {"entropy_weight": 0.1}).needs == {"entropy"}
    assert build("reinforce", {"entropy_weight": 0}).needs == frozenset()
    assert "preceding_logprobs" in needs_of(OBJECTIVES["remix"], {})
    assert "preceding_logprobs" not in needs_of(OBJECTIVES["remix"], {"base_share": 1.0})

"""Which tokens an objective may learn from: the policy's, and an expert's where it asks for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.lineage import Lineage
from learner.screening import Refused, Rules, screen
from shared.codec import encode_group
from shared.stream import Entry
from shared.types import Group, Source, Trajectory
from tests import builders

RULES = Rules(run_id="run", vocab_size=100, max_tokens=12, max_staleness=0, lineage=Lineage(), experts=True)


def screened(group: Group, rules: Rules = RULES) -> Group | Refused:
    return screen(Entry("1-0", group.group_id, group.prompt_index, encode_group(group), ""), rules)


def refused(group: Group, rules: Rules = RULES) -> Refused:
    result = screened(group, rules)
    assert isinstance(result, Refused)
    return result


def with_first(change: Trajectory) -> Group:
    group = builders.group()
    return replace(group, trajectories=(change, *group.trajectories[1:]))


def test_a_group_with_experts_passes_whole_where_the_objective_learns_from_them() -> None:
    group = builders.with_experts(builders.group(), 2)
    result = screened(group)
    assert isinstance(result, Group)
    assert encode_group(result) == encode_group(group)
    assert (result.group_size, len(result.trajectories)) == (4, 6)
    assert [t.by_expert for t in result.trajectories] == [False] * 4 + [True] * 2


def test_elsewhere_it_is_dead_lettered_and_the_keys_to_change_are_named() -> None:
    result = refused(builders.with_experts(builders.group(), 1), replace(RULES, experts=False))
    assert (result.reason, result.dead_letter) == ("bad_source", True)
    assert result.detail.startswith("trajectories[4]: source: an expert wrote a trained token")
    assert "set rollout.experts to 0, or learner.objective.name" in result.detail


def test_an_expert_s_untrained_tokens_are_refused_by_no_objective() -> None:
    t = builders.trajectory(4)
    told = replace(t, source=np.array([2, 2, 0, 0], np.uint8), loss_mask=np.array([0, 0, 1, 1], np.bool_))
    assert isinstance(screened(with_first(told), replace(RULES, experts=False)), Group)


@pytest.mark.parametrize("value", [float("nan"), -9999.0, 0.5])
def test_log_probs_are_looked_at_where_the_policy_drew_the_token_only(value: float) -> None:
    values = np.full(4, value, dtype=np.float32)
    group = builders.group()
    by_expert = replace(builders.expert(4), behavior_logprobs=values)
    assert isinstance(screened(replace(group, trajectories=(*group.trajectories, by_expert))), Group)
    drawn = replace(builders.trajectory(4), behavior_logprobs=values)
    assert refused(replace(group, trajectories=(*group.trajectories, drawn))).reason == "bad_logprobs"


@pytest.mark.parametrize(
    ("other", "who"), [(Source.POLICY, "policy and an expert"), (Source.ENVIRONMENT, "environment wrote")]
)
def test_who_wrote_a_trajectory_must_be_clear(other: Source, who: str) -> None:
    mixed = replace(builders.expert(3), source=np.array([Source.EXPERT, other, Source.EXPERT], dtype=np.uint8))
    result = refused(with_first(mixed))
    assert result.reason == "bad_source"
    assert who in result.detail


def test_a_group_of_experts_alone_has_nothing_to_train_on() -> None:
    assert refused(builders.group(trajectories=(builders.expert(),))).reason == "no_trained_tokens"


def test_a_trajectory_that_no_micro_batch_holds_is_refused_by_its_length() -> None:
    long = with_first(builders.trajectory(7))
    result = refused(long)
    assert (result.reason, result.dead_letter) == ("too_long", True)
    assert "13 tokens; learner.micro_batch_tokens (12)" in result.detail
    assert isinstance(screened(long, replace(RULES, max_tokens=13)), Group)

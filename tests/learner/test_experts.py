"""Expert trajectories from the stream to the weights."""

from __future__ import annotations

import pytest
import torch

from learner.batch import batch_rewards, build_step
from learner.model import PolicyModel
from shared.stream import Appended
from shared.types import Group
from tests import builders
from tests.learner.conftest import MakeWorld

CHORD = ["rollout.experts=2", "learner.objective={name: chord, mu: 0.5, expert_weight: one}"]


def expert_logprob(policy: PolicyModel, groups: list[Group]) -> float:
    """The mean log-prob of the experts' tokens."""
    batch = build_step(groups, batch_rewards(groups), "group_std", 10**6)
    with torch.no_grad():
        logprobs = torch.cat([policy.logprobs(m) for m in batch.micro_batches])
    return logprobs[batch.expert].mean().item()


def test_chord_learns_what_an_expert_says_and_tells_of_the_policy_s_own_completions(make_world: MakeWorld) -> None:
    world = make_world(*CHORD, "learner.micro_batch_tokens=64")
    learner = world.learner()
    policy = learner.training.parts.policy
    groups = [builders.with_experts(world.group(index), 2, version=0) for index in world.lease(4)]
    before = expert_logprob(policy, groups)
    assert [world.put(group) for group in groups] == [Appended.STORED] * 4
    learner.iterate()
    assert expert_logprob(policy, groups) > before + 0.01
    [row] = world.lines("history.jsonl")
    assert (row["trajectories"], row["tokens"]) == (16, 4 * (3 + 4 + 5 + 6 + 2 + 3))
    assert (row["reward_mean"], row["length_mean"], row["signal_share"]) == (0.5, 4.5, 1.0)
    assert row["floor_max_nats"] < 1e-4, "an expert's tokens were drawn by no version"
    assert row["skipped"] == ""


def test_what_was_dropped_is_described_by_the_policy_s_own_completions(make_world: MakeWorld) -> None:
    world = make_world()
    training = world.learner().training
    [index] = world.lease(1)
    world.put(builders.with_experts(world.group(index), 2))
    training.intake.read(training.rules)
    [dropped] = world.lines("dropped.jsonl")
    assert dropped["reason"] == "bad_source"
    assert (dropped["length_mean"], dropped["reward_mean"]) == (4.5, pytest.approx(0.5))

"""Groups to tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.batch import NO_VERSION, StepBatch, batch_rewards, build_step
from shared.types import Group, SamplingSettings, VersionSpan
from tests import builders
from tests.learner.one_by_one import completions


def step_of(groups: list[Group], micro_batch_tokens: int = 10_000) -> StepBatch:
    return build_step(groups, batch_rewards(groups), "group_std", micro_batch_tokens)


def test_every_trained_token_finds_its_own_id_logprob_temperature_advantage_and_version() -> None:
    group = builders.group(3)
    mask = np.array([True, False, True])
    odd = replace(
        group.trajectories[0],
        loss_mask=mask,
        versions=(VersionSpan(4, 0, 2), VersionSpan(5, 2, 3)),
        sampling=SamplingSettings(temperature=0.7),
    )
    group = replace(group, trajectories=(odd, *group.trajectories[1:]))
    batch = step_of([group])
    [m] = batch.micro_batches
    mine = m.sequence_of == 0
    assert m.tokens[mine].tolist() == odd.token_ids[mask].tolist()
    assert m.behavior_logprobs[mine].tolist() == odd.behavior_logprobs[mask].tolist()
    assert m.temperature[mine].tolist() == pytest.approx([0.7, 0.7])
    assert batch.versions[mine.numpy()].tolist() == [4, 5]
    assert batch.staleness(lambda version: 9 - version)[mine.numpy()].tolist() == [5, 4]
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0])
    expected = (rewards - 0.5) / rewards.std()
    assert m.advantages[mine].tolist() == pytest.approx([expected[0].item()] * 2)
    assert batch.trained_tokens == 2 + 4 + 5 + 6
    assert batch.signal_share == 1.0


def test_a_trajectory_is_the_prompt_and_what_a_trained_token_follows() -> None:
    group = builders.group(0)
    short = replace(group.trajectories[0], loss_mask=np.array([True, True, False]))
    group = replace(group, trajectories=(short, *group.trajectories[1:]))
    [m] = step_of([group]).micro_batches
    found = dict(zip(m.sequence_of.unique_consecutive().tolist(), completions(m), strict=True))
    for i, t in enumerate(group.trajectories):
        last = 2 if i == 0 else t.length
        assert found[i] == [*group.prompt_ids.tolist(), *t.token_ids.tolist()][: len(group.prompt_ids) + last - 1]
    assert m.packed.positions[m.before].tolist() == [
        5 + k for t in m.sequence_of.unique_consecutive().tolist() for k in range([2, 4, 5, 6][t])
    ]


def test_a_trajectory_without_trained_tokens_counts_for_the_baseline_only() -> None:
    group = builders.group(0)
    silent = replace(group.trajectories[1], loss_mask=np.zeros(4, dtype=np.bool_))
    one, _, *rest = group.trajectories
    whole, without = step_of([group]), step_of([replace(group, trajectories=(one, silent, *rest))])
    assert without.trained_tokens == whole.trained_tokens - 4
    assert 1 not in without.micro_batches[0].sequence_of
    assert without.rewards.tolist() == whole.rewards.tolist()


def test_shuffled_rewards_keep_the_multiset_and_follow_the_seed() -> None:
    groups = [builders.group(i) for i in range(16)]
    plain = np.concatenate(batch_rewards(groups))
    shuffled = np.concatenate(batch_rewards(groups, (0, 3)))
    assert sorted(plain) == sorted(shuffled)
    assert plain.tolist() != shuffled.tolist()
    assert shuffled.tolist() == np.concatenate(batch_rewards(groups, (0, 3))).tolist()
    assert shuffled.tolist() != np.concatenate(batch_rewards(groups, (0, 4))).tolist()
    assert [len(r) for r in batch_rewards(groups, (0, 3))] == [4] * 16


def test_an_expert_has_no_part_in_what_its_group_says_of_the_policy() -> None:
    groups = [builders.group(0), builders.group(1, trajectories=tuple(builders.trajectory() for _ in range(4)))]
    plain, batch = step_of(groups), step_of([builders.with_experts(group, 2, version=3) for group in groups])
    assert batch.own.tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2
    assert batch.group_of.tolist() == [0] * 6 + [1] * 6
    assert batch.rewards[batch.own].tolist() == plain.rewards.tolist()
    assert batch.rewards[~batch.own].tolist() == [5.0, 6.0] * 2
    assert batch.signal_share == plain.signal_share == 0.5
    advantages = torch.cat([m.advantages for m in batch.micro_batches])
    assert advantages[batch.expert].tolist() == [0.0] * 10
    assert sorted(advantages[~batch.expert].tolist()) == sorted(plain.micro_batches[0].advantages.tolist())


def test_an_expert_s_tokens_are_told_from_the_policy_s_in_the_order_of_the_micro_batches() -> None:
    group = builders.with_experts(builders.group(0), 2, version=3)
    batch = step_of([group], micro_batch_tokens=14)
    assert len(batch.micro_batches) > 2
    sequence_of = torch.cat([m.sequence_of for m in batch.micro_batches])
    assert batch.expert.tolist() == [i in {4, 5} for i in sequence_of.tolist()]
    assert batch.trained_tokens == len(batch.expert) == 3 + 4 + 5 + 6 + 2 + 3
    assert (batch.versions[batch.expert.numpy()] == NO_VERSION).all()
    assert batch.staleness(lambda version: 7 - version).tolist() == [7] * 18, "an expert's tokens have none"


def test_shuffling_rewards_leaves_an_expert_its_own() -> None:
    groups = [builders.with_experts(builders.group(i), 1) for i in range(16)]
    shuffled = batch_rewards(groups, (0, 3))
    assert [rewards[4] for rewards in shuffled] == [5.0] * 16
    own = [rewards[:4] for rewards in batch_rewards([builders.group(i) for i in range(16)], (0, 3))]
    assert np.concatenate([rewards[:4] for rewards in shuffled]).tolist() == np.concatenate(own).tolist()

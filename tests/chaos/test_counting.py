"""The counting model under the learner's own step: what a scenario's verdict rests on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from learner.batch import batch_rewards, build_step
from learner.objectives import objectives_of
from learner.step import take_step
from services.load.groups import Shape, make_group
from shared.config import load_config
from tests.chaos.counting import CountingPolicy, CountingSGD

CONFIG = load_config(
    None,
    [
        "learner={objective: {name: reinforce}, advantage: group_mean, learning_rate: 1, groups_per_batch: 8}",
        "learner.max_grad_norm=1.0e+30",
    ],
    {},
).learner


@pytest.fixture
def policy() -> Iterator[CountingPolicy]:
    before, CountingPolicy.scale = CountingPolicy.scale, 4.0 * CONFIG.groups_per_batch
    yield CountingPolicy(1000)
    CountingPolicy.scale = before


def apply(policy: CountingPolicy, indices: list[int], shape: Shape) -> None:
    optimizer = CountingSGD(policy.named_parameters().values(), lr=1.0)
    groups = [make_group("run", index, 0, "load0", shape, 1.0) for index in indices]
    batch = build_step(groups, batch_rewards(groups), CONFIG.advantage, CONFIG.micro_batch_tokens)
    outcome = take_step(policy, optimizer, batch, objectives_of(CONFIG), CONFIG, 1)
    assert outcome.skipped == ""


@pytest.mark.parametrize("shape", [Shape(2, 8), Shape(4, 512)])
def test_every_group_adds_exactly_one_to_its_own_counter(policy: CountingPolicy, shape: Shape) -> None:
    indices = [0, 3, 255, 256, 511, 512, 777, 999]
    for _ in range(3):
        apply(policy, indices, shape)
    expected = torch.zeros(1000)
    expected[indices] = 3.0
    assert torch.equal(policy.module.counters.detach(), expected)


def test_a_group_that_is_applied_twice_shows(policy: CountingPolicy) -> None:
    apply(policy, list(range(8)), Shape(2, 8))
    apply(policy, list(range(7, 15)), Shape(2, 8))
    assert policy.module.counters.detach()[:15].tolist() == [1.0] * 7 + [2.0] + [1.0] * 7

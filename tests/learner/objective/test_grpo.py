"""GRPO and DAPO: PPO's clip by autograd, which tokens it cuts, which groups count."""

import dataclasses

import pytest
import torch
from torch import Tensor

from learner.objective import evaluate
from learner.objective.core import Step
from learner.objective.dapo import dapo
from learner.objective.grpo import grpo
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, mean_of_means, on_policy, random_step


def clip_loss(policy: Tensor, step: Step, low: float, high: float) -> Tensor:
    ratio = torch.exp(policy - step.behavior_logprobs)
    return -torch.min(ratio * step.advantages, torch.clamp(ratio, 1 - low, 1 + high) * step.advantages)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 1, 6])
def test_grpo_is_the_clipped_surrogate_averaged_by_completion(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, grpo(step), lambda policy: mean_of_means(clip_loss(policy, step, 0.2, 0.2), step))
    by_token = grpo(step, eps_low=0.1, eps_high=0.5, aggregation="token_mean")
    assert_matches(step, by_token, lambda policy: clip_loss(policy, step, 0.1, 0.5).mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_dapo_averages_over_the_tokens_of_groups_with_unequal_rewards(seed: int) -> None:
    step = random_step(seed, rewards=torch.tensor([1.0, 1, 0, 1, 0, 0]))
    told = torch.isin(step.sequence_of, torch.tensor([2, 3]))
    assert_matches(step, dapo(step), lambda policy: clip_loss(policy, step, 0.2, 0.28)[told].mean())


def test_dapo_is_token_mean_grpo_where_every_group_has_signal() -> None:
    step = random_step(3)
    other = grpo(step, eps_high=0.28, aggregation="token_mean")
    torch.testing.assert_close(dapo(step).slope, other.slope, rtol=1e-12, atol=0)


def test_equal_rewards_everywhere_and_groups_of_one_give_dapo_nothing() -> None:
    for step in (random_step(0, rewards=torch.ones(6)), random_step(0, group=1)):
        token_loss = dapo(step)
        assert token_loss.loss == 0
        assert (token_loss.slope == 0).all()


@pytest.mark.parametrize("broken", [[torch.nan, 0, 1, 1], [torch.inf, torch.inf, 1, 0]])
def test_dapo_has_no_loss_where_it_is_not_known_which_groups_count(broken: list[float]) -> None:
    policy = -torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, advantages = torch.ones(4, 3, dtype=torch.bool), torch.tensor([1.0, -1, 1, -1]).double()
    step = (policy, policy, advantages, mask)
    for groups in ([0, 0, 0, 0], [0, 0, 1, 1]):
        result = evaluate("dapo", *step, rewards=torch.tensor(broken), group_of=torch.tensor(groups))
        assert result.loss.isnan()
        assert result.token_loss.slope.isnan().all()


def test_on_policy_both_are_reinforce() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(grpo(step).slope, reinforce(step, aggregation="sequence_mean").slope)
    torch.testing.assert_close(dapo(step).slope, reinforce(step).slope)


def test_cut_tokens_are_those_without_gradient() -> None:
    token_loss = grpo(random_step(2, spread=2))
    assert token_loss.cut.any()
    assert (~token_loss.cut).any()
    assert ((token_loss.slope == 0) == token_loss.cut).all()
    assert (token_loss.weight[token_loss.cut] == 0).all()


def test_an_empty_completion_is_not_counted() -> None:
    step = random_step(0, lengths=(3, 0, 4), group=3)
    without = dataclasses.replace(
        step,
        sequence_of=torch.tensor([0] * 3 + [1] * 4),
        group_of=torch.tensor([0, 0]),
        rewards=step.rewards[[0, 2]],
    )
    torch.testing.assert_close(grpo(step).slope, grpo(without).slope)
    assert torch.isfinite(dapo(step).loss)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(name: str, broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    token_loss = build(name)(step)
    assert not torch.isfinite(token_loss.loss)
    assert not torch.isfinite(token_loss.slope[2])


@pytest.mark.parametrize("name", ["grpo", "dapo"])
@pytest.mark.parametrize("knobs", [{"eps_low": -0.1}, {"eps_low": 1.1}, {"eps_high": -1}])
def test_bad_bounds_are_refused(name: str, knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number from"):
        build(name, knobs)

"""What each paper says of its gradient: what it differentiates, what is left without advantages and on fresh data.

Tables by name hold what differs; an objective that is not in them must do as most do.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learner.objective.aggregation import sequence_mean, token_mean
from learner.objective.core import Step, TokenLoss
from learner.objective.kl import kl_value_and_slope
from learner.objective.registry import OBJECTIVES, build
from tests.learner.objective.any_step import any_step, with_policy_everywhere

NAMES = sorted(OBJECTIVES)
every_objective = pytest.mark.parametrize("name", NAMES)
LENGTHS = [3, 1, 4, 7, 2, 5]

STOPPED = {"truncated_is", "cispo", "topr", "minpro", "vcpo", "minirl"}
IN_PART = {"p3o", "p4o", "chord"}  # a stopped weight on one term, not on the other: see their own test files


@pytest.mark.parametrize("name", sorted(set(NAMES) - IN_PART))
@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_the_derivative_of_the_value(name: str, seed: int) -> None:
    """By finite differences of the loss where the paper stops no gradient; else as a stopped weight on log policy."""
    objective, step = build(name), any_step(seed, LENGTHS)
    token_loss = objective(step)
    if name in STOPPED:
        torch.testing.assert_close(token_loss.value, token_loss.slope * step.policy_logprobs, rtol=1e-12, atol=0)
    else:
        numeric = numeric_slope(lambda moved: objective(moved).loss, step)
        torch.testing.assert_close(token_loss.slope, numeric, rtol=1e-6, atol=1e-7)


def numeric_slope(loss_of: Callable[[Step], Tensor], step: Step, h: float = 1e-6) -> Tensor:
    moves = h * torch.eye(step.tokens, dtype=torch.float64)
    ahead, behind = (
        torch.stack([loss_of(dataclasses.replace(step, policy_logprobs=step.policy_logprobs + m)) for m in signed])
        for signed in (moves, -moves)
    )
    return (ahead - behind) / (2 * h)


def nothing(step: Step, _: TokenLoss) -> Tensor:
    return torch.zeros_like(step.policy_logprobs)


def kl_pull(step: Step, token_loss: TokenLoss) -> Tensor:
    ess = token_loss.statistics["ess"]
    return token_mean(step) * (1 - ess) * kl_value_and_slope(step.log_ratio, "unbiased")[1]


WITHOUT_ADVANTAGE: dict[str, Callable[[Step, TokenLoss], Tensor]] = {
    "p3o": kl_pull,  # only the pull to the behavior policy is left
    "kimi_pmd": lambda step, _: token_mean(step) * 0.2 * step.log_ratio,  # only its restraint
    "asymre": lambda step, _: -token_mean(step) * 0.1,  # imitates, whatever the reward: its baseline is lower
}


@every_objective
def test_equal_rewards_and_advantages_of_zero_leave_what_the_paper_leaves(name: str) -> None:
    step = any_step(2, [0, *LENGTHS], reach=2, rewards="equal", experts=0)
    if name in {"p4o", "remix"}:  # what they are pulled to is where the policy is: nothing of that left either
        step = with_policy_everywhere(step)
    token_loss = build(name)(step)
    expected = WITHOUT_ADVANTAGE.get(name, nothing)(step, token_loss)
    torch.testing.assert_close(token_loss.slope, expected, rtol=1e-10, atol=1e-16)


def by_token(step: Step) -> Tensor:
    return -token_mean(step) * step.advantages


def by_completion(step: Step) -> Tensor:
    return -sequence_mean(step) * step.advantages


def above_vcpos_baseline(step: Step) -> Tensor:
    """Completions weigh by the sum of (1 - p)^2 over their tokens: fresh ratios are all 1."""
    squares = torch.zeros_like(step.rewards).index_add(0, step.sequence_of, (1 - step.policy_logprobs.exp()) ** 2)
    sums = [
        torch.zeros(3, dtype=torch.float64).index_add(0, step.group_of, s) for s in (squares * step.rewards, squares)
    ]
    return -sequence_mean(step) * (step.rewards - (sums[0] / sums[1])[step.group_of])[step.sequence_of]


ON_POLICY: dict[str, Callable[[Step], Tensor]] = {
    **dict.fromkeys(("grpo", "gspo", "topr", "sapo"), by_completion),
    "minirl": lambda step: -step.advantages / step.sequences,  # sums over a completion
    "opmd": lambda step: by_token(step) / 2,  # 1 / (1 + tau), tau 1
    "chord": lambda step: 0.9 * by_token(step),  # 1 - mu, and no expert here
    "asymre": lambda step: -token_mean(step) * (step.rewards - 0.5 * sums_of_pairs(step) + 0.1)[step.sequence_of],
    "vcpo": above_vcpos_baseline,
}


def sums_of_pairs(step: Step) -> Tensor:
    return step.rewards.reshape(-1, 2).sum(1).repeat_interleave(2)


@every_objective
def test_on_policy_the_gradient_is_reinforces_by_tokens_or_as_the_paper_aggregates(name: str) -> None:
    step = with_policy_everywhere(any_step(3, LENGTHS, experts=0))
    token_loss = build(name)(step)
    torch.testing.assert_close(token_loss.slope, ON_POLICY.get(name, by_token)(step), rtol=1e-10, atol=1e-16)
    assert float(token_loss.step_factor) == pytest.approx(1)
    assert not token_loss.cut.any()


@pytest.mark.parametrize("scale", [1e-30, 0.5, 1e30])
@pytest.mark.parametrize(("name", "statistic"), [("p3o", "ess"), ("p4o", "ess_behavior"), ("vcpo", "sequence_ess")])
def test_scaling_all_ratios_leaves_every_ess_as_it_is(name: str, statistic: str, scale: float) -> None:
    """Of completions it is their whole ratios that are scaled: every token's by its share."""
    step = any_step(4, LENGTHS)
    share = step.tokens_of[step.sequence_of] if name == "vcpo" else torch.ones_like(step.policy_logprobs)
    scaled = dataclasses.replace(step, behavior_logprobs=step.behavior_logprobs - math.log(scale) / share)
    one, other = (build(name)(s).statistics[statistic] for s in (step, scaled))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    assert one < 1

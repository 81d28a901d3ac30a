"""VCPO: the loss by autograd, the baseline that has the least variance, the step size."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.advantages import group_advantages
from learner.objective.core import Step
from learner.objective.p3o import p3o
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.vcpo import GradientProxy, vcpo
from tests.learner.objective.steps import SEEDS, assert_matches, completions, mean_of_means, on_policy, random_step

proxies = pytest.mark.parametrize("proxy", ["one_minus_prob", "length", "none"])


def squared_gradient(step: Step, tokens: Tensor, proxy: GradientProxy) -> float:
    p = step.policy_logprobs[tokens].exp()
    return {"one_minus_prob": ((1 - p) ** 2).sum().item(), "length": len(tokens), "none": 1.0}[proxy]


def advantages_by_hand(step: Step, proxy: GradientProxy) -> Tensor:
    """Reward minus baseline of every completion."""
    squares = [
        math.exp(2 * step.log_ratio[tokens].sum().item()) * squared_gradient(step, tokens, proxy)
        for tokens in completions(step)
    ]
    out = []
    for i in range(step.sequences):
        members = [j for j in range(step.sequences) if step.group_of[j] == step.group_of[i]]
        weighted = sum(squares[j] * step.rewards[j].item() for j in members)
        out.append(step.rewards[i].item() - weighted / sum(squares[j] for j in members))
    return torch.tensor(out, dtype=torch.float64)


@proxies
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.2, 1, 4])
def test_it_is_truncated_importance_sampling_above_its_baseline(seed: int, spread: float, proxy: GradientProxy) -> None:
    step = random_step(seed, spread=spread, group=3)
    advantages = advantages_by_hand(step, proxy)
    w = torch.stack([step.log_ratio[tokens].sum().exp() for tokens in completions(step)]).clamp(max=3)

    def loss(policy: Tensor) -> Tensor:
        return mean_of_means(-(w * advantages)[step.sequence_of] * policy, step)

    assert_matches(step, vcpo(step, cap=3, gradient_proxy=proxy), loss)
    by_token = vcpo(step, cap=3, gradient_proxy=proxy, aggregation="token_mean")
    assert_matches(step, by_token, lambda policy: -((w * advantages)[step.sequence_of] * policy).mean())


def test_dividing_by_the_standard_deviation_scales_every_group() -> None:
    step = random_step(1, group=3, rewards=torch.tensor([1.0, 0, 0, 1, 1, 1], dtype=torch.float64))
    plain, scaled = vcpo(step), vcpo(step, divide_by_std=True)
    first = step.sequence_of < 3
    torch.testing.assert_close(scaled.slope[first], plain.slope[first] / math.sqrt(2 / 9))
    torch.testing.assert_close(scaled.slope[~first], plain.slope[~first])


def test_on_policy_without_a_proxy_it_is_reinforce_above_the_mean() -> None:
    step = on_policy(random_step(1))
    advantages = group_advantages(step.rewards, step.group_of, "group_mean")[step.sequence_of]
    expected = reinforce(dataclasses.replace(step, advantages=advantages), aggregation="sequence_mean")
    token_loss = vcpo(step, gradient_proxy="none")
    torch.testing.assert_close(token_loss.slope, expected.slope)
    assert float(token_loss.step_factor) == pytest.approx(1)


def test_the_baseline_has_the_least_sum_of_squared_gradients() -> None:
    """Of sum_i (w_i g_i (R_i - b))^2, the part of the estimator's variance that b changes."""
    step = random_step(2, group=6)
    w = torch.stack([step.log_ratio[tokens].sum().exp() for tokens in completions(step)])
    b = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([len(tokens) for tokens in completions(step)])
    spread = (w**2 * lengths * (step.rewards - b) ** 2).sum()
    baseline = vcpo(step, gradient_proxy="length").statistics["baseline"]
    (slope,) = torch.autograd.grad(spread, b)
    curvature = 2 * (w**2 * lengths).sum()
    torch.testing.assert_close(baseline, (b - slope / curvature).detach())


def test_the_step_is_as_long_as_the_root_of_the_ess_against_fresh_datas() -> None:
    step = random_step(3)
    root = float(p3o(step, step_scale="sqrt_sequence_ess").step_factor)
    assert root < 1
    assert float(vcpo(step).step_factor) == pytest.approx(root)
    assert float(vcpo(step, on_policy_ess=0.5).step_factor) == pytest.approx(min(1, root / math.sqrt(0.5)))
    assert float(vcpo(step, on_policy_ess=0.001).step_factor) == 1


@proxies
def test_groups_of_one_learn_nothing_and_empty_completions_do_no_harm(proxy: GradientProxy) -> None:
    alone = vcpo(random_step(0, group=1), gradient_proxy=proxy)
    torch.testing.assert_close(alone.slope, torch.zeros_like(alone.slope))
    for lengths in ((2, 0, 3, 4), (0, 0, 3, 4)):
        step = random_step(1, lengths=lengths)
        assert vcpo(step, gradient_proxy=proxy).slope.isfinite().all()
    certain = dataclasses.replace(on_policy(random_step(1)), policy_logprobs=torch.zeros(22, dtype=torch.float64))
    assert vcpo(certain, gradient_proxy=proxy).loss.isfinite()


def test_long_completions_far_away_neither_overflow_nor_vanish() -> None:
    step = random_step(0, lengths=(400, 400, 400, 400), spread=3)
    token_loss = vcpo(step)
    assert token_loss.slope.isfinite().all()
    assert torch.as_tensor(token_loss.step_factor).isfinite()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_makes_loss_or_step_not_finite(broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not vcpo(step).loss.isfinite()


def test_bad_knobs_are_refused() -> None:
    for knob in ({"cap": 0}, {"gradient_proxy": "guess"}, {"on_policy_ess": 0}, {"divide_by_std": 1}):
        with pytest.raises(ValueError, match=next(iter(knob))):
            build("vcpo", knob)

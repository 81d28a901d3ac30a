"""Truncated importance sampling and CISPO: a capped, stopped weight, by autograd, and each as a case of the other."""

import pytest
import torch
from torch import Tensor

from learner.objective.cispo import cispo
from learner.objective.core import Step
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.truncated_is import truncated_is
from tests.learner.objective.steps import (
    SEEDS,
    assert_matches,
    assert_same,
    mean_of_means,
    on_policy,
    one_token_each,
    random_step,
)


def weighted(policy: Tensor, step: Step, low: float, high: float) -> Tensor:
    ratio = torch.exp(policy - step.behavior_logprobs)
    return -torch.clamp(ratio, low, high).detach() * step.advantages * policy


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.2, 2, 6])
def test_truncated_is_caps_the_weight_from_above(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, truncated_is(step), lambda policy: weighted(policy, step, 0, 2).mean())
    by_completion = truncated_is(step, cap=10, aggregation="sequence_mean")
    assert_matches(step, by_completion, lambda policy: mean_of_means(weighted(policy, step, 0, 10), step))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.2, 2, 6])
def test_cispo_clips_the_weight_on_both_sides(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    both = cispo(step, eps_low=0.3, eps_high=0.6)
    assert_matches(step, both, lambda policy: weighted(policy, step, 0.7, 1.6).mean())
    assert_matches(step, cispo(step), lambda policy: weighted(policy, step, 0, 5).mean())


def test_with_a_cap_out_of_reach_it_is_the_importance_weighted_policy_gradient() -> None:
    """Without a cap, the gradient of - r A log pi with r stopped is that of - r A."""
    step = random_step(4, spread=2)
    policy = step.policy_logprobs.clone().requires_grad_()
    loss = -(torch.exp(policy - step.behavior_logprobs) * step.advantages).mean()
    (gradient,) = torch.autograd.grad(loss, policy)
    torch.testing.assert_close(truncated_is(step, cap=1e12).slope, gradient, rtol=1e-10, atol=0)


def test_cispo_without_a_lower_bound_is_truncated_is() -> None:
    step = random_step(5, spread=2)
    assert_same(cispo(step, eps_high=1), truncated_is(step, cap=2))


def test_cispo_with_no_room_at_all_is_reinforce_off_policy_too() -> None:
    step = random_step(5, spread=2)
    torch.testing.assert_close(cispo(step, eps_low=0, eps_high=0).slope, reinforce(step).slope)


def test_clipped_tokens_keep_their_gradient() -> None:
    token_loss = cispo(random_step(6, spread=3), eps_low=0.5, eps_high=0.5)
    assert token_loss.cut.any()
    assert (token_loss.slope != 0).all()
    assert set(token_loss.weight[token_loss.cut].tolist()) == {0.5, 1.5}


def test_a_log_ratio_that_would_overflow_is_only_a_capped_token() -> None:
    step = one_token_each(random_step(0))
    step.policy_logprobs[0] += 5000
    for token_loss in (truncated_is(step), cispo(step)):
        assert torch.isfinite(token_loss.loss)
        assert token_loss.cut[0]


@pytest.mark.parametrize("name", ["truncated_is", "cispo"])
def test_on_policy_it_is_reinforce(name: str) -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(build(name)(step).slope, reinforce(step).slope)


@pytest.mark.parametrize("name", ["truncated_is", "cispo"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(name: str, broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not torch.isfinite(build(name)(step).loss)


def test_aipo_is_another_name_of_it() -> None:
    assert build("aipo", {"cap": 3}).name == "truncated_is"


@pytest.mark.parametrize(
    ("name", "knobs"), [("aipo", {"cap": 0}), ("cispo", {"eps_low": 1.5}), ("cispo", {"eps_high": -0.1})]
)
def test_bad_bounds_are_refused(name: str, knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number from"):
        build(name, knobs)

"""GSPO: the sequence's own loss by autograd, its token variant, and PPO's clip on completions of one token."""

import pytest
import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.grpo import grpo
from learner.objective.gspo import gspo
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import (
    SEEDS,
    assert_matches,
    assert_same,
    completions,
    mean_of_means,
    on_policy,
    one_token_each,
    random_step,
)


def clip_loss(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def of_sequences(policy: Tensor, step: Step, low: float, high: float) -> Tensor:
    """Equation 5: one ratio and one advantage a completion, nothing stopped."""
    losses = []
    for tokens in completions(step):
        s = torch.exp((policy[tokens] - step.behavior_logprobs[tokens]).mean())
        losses.append(clip_loss(s, step.advantages[tokens[0]], low, high))
    return torch.stack(losses).mean()


def of_tokens(policy: Tensor, step: Step, low: float, high: float) -> Tensor:
    """Equations 13 and 14: the sequence's ratio as a value, the token's log-prob as the gradient."""
    losses = torch.zeros_like(policy)
    for tokens in completions(step):
        s = torch.exp((policy[tokens] - step.behavior_logprobs[tokens]).mean()).detach()
        ratio = s * torch.exp(policy[tokens] - policy[tokens].detach())
        losses[tokens] = clip_loss(ratio, step.advantages[tokens], low, high)
    return mean_of_means(losses, step)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("spread", "low", "high"), [(1e-3, 3e-4, 4e-4), (1, 0.2, 0.3), (5, 0.2, 0.3)])
def test_value_and_gradient_are_those_of_the_sequence_loss(seed: int, spread: float, low: float, high: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, gspo(step, eps_low=low, eps_high=high), lambda policy: of_sequences(policy, step, low, high))


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_that_differ_within_a_completion_make_it_gspo_token(seed: int) -> None:
    step = random_step(seed)
    step.advantages.copy_(torch.randn(step.tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    assert_matches(step, gspo(step, eps_low=0.2), lambda policy: of_tokens(policy, step, 0.2, 4e-4))


def test_on_completions_of_one_token_it_is_grpo() -> None:
    step = one_token_each(random_step(2))
    assert_same(gspo(step, eps_low=0.2, eps_high=0.2), grpo(step))


def test_the_default_clip_is_the_papers() -> None:
    step = random_step(3, spread=1e-3)
    assert_same(gspo(step), gspo(step, eps_low=3e-4, eps_high=4e-4))


def test_a_clipped_completion_is_cut_as_a_whole() -> None:
    step = random_step(4)
    token_loss = gspo(step)
    assert token_loss.cut.any()
    for tokens in completions(step):
        assert len(set(token_loss.cut[tokens].tolist())) == 1


def test_on_policy_it_is_reinforce_by_completion() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(gspo(step).slope, reinforce(step, aggregation="sequence_mean").slope)


def test_an_empty_completion_changes_nothing() -> None:
    step = random_step(0, lengths=(3, 0, 4, 0), spread=0.3)
    assert_matches(step, gspo(step, eps_low=0.2, eps_high=0.2), lambda policy: of_sequences(policy, step, 0.2, 0.2))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not torch.isfinite(gspo(step).loss)


@pytest.mark.parametrize("knobs", [{"eps_low": -1e-4}, {"eps_low": 2}, {"eps_high": -1e-4}])
def test_bad_bounds_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number from"):
        build("gspo", knobs)

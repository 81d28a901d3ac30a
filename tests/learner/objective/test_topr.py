"""TOPR: the tapered weight of what was bad, none for what was good, by autograd."""

import pytest
import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.topr import topr
from learner.objective.truncated_is import truncated_is
from tests.learner.objective.steps import (
    SEEDS,
    assert_matches,
    completions,
    on_policy,
    one_token_each,
    random_step,
)


def paper(policy: Tensor, step: Step) -> Tensor:
    """Trajectory by trajectory; each log pi(tau) over its length."""
    losses = []
    for tokens in completions(step):
        log_pi, advantage = policy[tokens].sum(), step.advantages[tokens[0]]
        ratio = torch.exp(log_pi - step.behavior_logprobs[tokens].sum()).detach()
        taper = torch.clamp(ratio, 0, 1) if advantage < 0 else torch.ones(())
        losses.append(-taper * advantage * log_pi / len(tokens))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 1, 6])
def test_value_and_gradient_are_those_of_the_paper(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, topr(step), lambda policy: paper(policy, step))


def test_good_completions_are_learned_as_reinforce_learns_them() -> None:
    step = random_step(0, spread=3)
    step.advantages.abs_()
    torch.testing.assert_close(topr(step).slope, reinforce(step, aggregation="sequence_mean").slope)
    assert not topr(step).cut.any()


def test_bad_completions_of_one_token_are_truncated_importance_sampling_with_cap_1() -> None:
    step = one_token_each(random_step(0, spread=3))
    step.advantages.abs_().neg_()
    torch.testing.assert_close(topr(step, aggregation="token_mean").slope, truncated_is(step, cap=1).slope)


def test_on_policy_it_is_reinforce_by_completion() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(topr(step).slope, reinforce(step, aggregation="sequence_mean").slope)


def test_a_long_completion_that_became_much_likelier_does_not_overflow() -> None:
    step = random_step(0, lengths=(2000, 3), spread=0)
    step.policy_logprobs.add_(1)
    step.advantages.fill_(-1)
    token_loss = topr(step)
    assert (token_loss.weight == 1).all()
    assert token_loss.cut.all()


def test_empty_completions_do_not_count() -> None:
    step = random_step(0, lengths=(3, 0, 4), group=1)
    assert_matches(step, topr(step), lambda policy: paper(policy, step))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(broken: float, sign: int) -> None:
    step = random_step(0)
    step.advantages.fill_(sign)
    step.behavior_logprobs[2] = broken
    assert not torch.isfinite(topr(step).loss)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation must be one of"):
        build("topr", {"aggregation": "sum"})

"""M2PO: the mask by greedy removal, the masked surrogate by autograd."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.aggregation import sequence_mean
from learner.objective.core import Step
from learner.objective.m2po import m2po
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, on_policy, random_step


def removed(step: Step, limit: float) -> set[int]:
    """Take the largest away, one at a time, until the mean of the others is small."""
    log_ratio, advantages = step.log_ratio.tolist(), step.advantages.tolist()
    region = [t for t, (d, a) in enumerate(zip(log_ratio, advantages, strict=True)) if d * a > 0]
    gone: set[int] = set()
    while left := [t for t in region if t not in gone]:
        if sum(log_ratio[t] ** 2 for t in left) / len(left) <= limit:
            break
        gone.add(max(left, key=lambda t: log_ratio[t] ** 2))
    return gone


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("spread", "limit"), [(0.3, 0.04), (1, 0.04), (4, 0.5), (1, 1000), (1, 0)])
def test_it_is_the_importance_weighted_surrogate_of_the_tokens_left(seed: int, spread: float, limit: float) -> None:
    step = random_step(seed, spread=spread)
    gone = removed(step, limit)
    kept = torch.tensor([t not in gone for t in range(step.tokens)])

    def loss(policy: Tensor) -> Tensor:
        return -(torch.exp(policy - step.behavior_logprobs) * step.advantages)[kept].sum() / step.tokens

    token_loss = m2po(step, second_moment=limit)
    assert token_loss.cut.tolist() == (~kept).tolist()
    assert_matches(step, token_loss, loss)


def test_by_completions_the_same_tokens_go_and_the_others_weigh_as_their_completion_does() -> None:
    step = random_step(0)
    by_token, by_completion = m2po(step), m2po(step, aggregation="sequence_mean")
    torch.testing.assert_close(by_completion.slope, step.tokens * sequence_mean(step) * by_token.slope)
    assert by_completion.cut.tolist() == by_token.cut.tolist()


def test_some_tokens_go_and_some_stay() -> None:
    cut = m2po(random_step(0)).cut
    assert cut.any()
    assert (~cut).any()


def test_a_token_that_clipping_would_not_touch_stays_however_far_it_is() -> None:
    step = random_step(0, spread=0)
    step.policy_logprobs[0] -= 5 * step.advantages[0].sign()
    assert not m2po(step).cut.any()
    step.policy_logprobs[0] += 10 * step.advantages[0].sign()
    assert m2po(step).cut.tolist() == [True] + [False] * (step.tokens - 1)


def test_on_policy_it_is_reinforce() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(m2po(step).slope, reinforce(step).slope)


def test_permutation_changes_nothing() -> None:
    step = random_step(4)
    order = torch.randperm(step.tokens, generator=torch.Generator().manual_seed(0))
    fields = ("policy_logprobs", "behavior_logprobs", "advantages", "sequence_of")
    shuffled = dataclasses.replace(step, **{name: getattr(step, name)[order] for name in fields})
    torch.testing.assert_close(m2po(shuffled).slope, m2po(step).slope[order], rtol=0, atol=0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_is_not_masked_away(broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not m2po(step).loss.isfinite()


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match="second_moment"):
        build("m2po", {"second_moment": -0.1})

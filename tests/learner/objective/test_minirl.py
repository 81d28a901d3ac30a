"""MiniRL: the loss by autograd, its mask and its cap, REINFORCE where nothing is stale."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.minirl import minirl
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, completions, on_policy, random_step


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.2, 1, 6])
@pytest.mark.parametrize("knobs", [{}, {"eps_low": 0.5, "eps_high": 1.0, "cap": 1.5}])
def test_it_is_the_mean_over_completions_of_summed_tokens(seed: int, spread: float, knobs: dict[str, float]) -> None:
    step = random_step(seed, spread=spread)
    low, high, cap = knobs.get("eps_low", 0.2), knobs.get("eps_high", 0.27), knobs.get("cap", 5.0)
    assert step.proximal_logprobs is not None
    proximal = step.proximal_logprobs

    def loss(policy: Tensor) -> Tensor:
        q = (policy - proximal).exp().detach()
        ratio = (policy - step.behavior_logprobs).exp().detach()
        mask = torch.tensor(
            [not ((a > 0 and x > 1 + high) or (a < 0 and x < 1 - low)) for a, x in zip(step.advantages, q, strict=True)]
        )
        terms = mask * ratio.clamp(max=cap) * step.advantages * policy
        return -torch.stack([terms[tokens].sum() for tokens in completions(step)]).mean()

    assert_matches(step, minirl(step, **knobs), loss)


def test_on_policy_it_is_reinforce_with_summed_completions() -> None:
    step = on_policy(random_step(1))
    expected = reinforce(step).slope * step.tokens / step.sequences
    torch.testing.assert_close(minirl(step).slope, expected)


def test_far_behind_a_fresh_snapshot_only_the_cap_cuts() -> None:
    step = random_step(2, spread=3)
    fresh = dataclasses.replace(step, proximal_logprobs=step.policy_logprobs)
    token_loss = minirl(fresh)
    assert token_loss.cut.tolist() == (step.log_ratio.exp() > 5).tolist()
    torch.testing.assert_close(token_loss.weight, step.log_ratio.exp().clamp(max=5))


@pytest.mark.parametrize("field", ["behavior_logprobs", "proximal_logprobs"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_is_not_masked_away(field: str, broken: float) -> None:
    step = random_step(0)
    getattr(step, field)[2] = broken
    assert not minirl(step).loss.isfinite()


def test_it_needs_the_snapshot_and_sane_knobs() -> None:
    assert build("minirl").needs == {"proximal_logprobs"}
    for knob in ({"eps_low": 1.5}, {"eps_high": -0.1}, {"cap": 0}):
        with pytest.raises(ValueError, match=next(iter(knob))):
            build("minirl", knob)

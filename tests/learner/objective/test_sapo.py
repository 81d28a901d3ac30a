"""SAPO: the soft gate by autograd, its two limits, and what overflow may not do."""

import pytest
import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.sapo import sapo
from learner.objective.truncated_is import truncated_is
from tests.learner.objective.steps import SEEDS, assert_matches, mean_of_means, on_policy, random_step


def gated(policy: Tensor, step: Step, positive: float, negative: float) -> Tensor:
    ratio = torch.exp(policy - step.behavior_logprobs)
    tau = torch.tensor([positive if a > 0 else negative for a in step.advantages.tolist()], dtype=ratio.dtype)
    return -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * step.advantages


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 1, 2.5])
def test_value_and_gradient_are_those_of_the_paper(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, sapo(step), lambda policy: mean_of_means(gated(policy, step, 1.0, 1.05), step))
    other = sapo(step, tau_positive=0.5, tau_negative=3, aggregation="token_mean")
    assert_matches(step, other, lambda policy: gated(policy, step, 0.5, 3).mean())


def test_on_policy_it_is_reinforce_by_completion() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(sapo(step).slope, reinforce(step, aggregation="sequence_mean").slope)
    torch.testing.assert_close(sapo(step).weight, torch.ones(step.tokens, dtype=torch.float64))


def test_a_gate_that_never_closes_is_importance_sampling() -> None:
    """tau -> 0: f(r) = 2 / tau + (r - 1) + O(tau^2), so the gradient is that of r."""
    step = random_step(2)
    open_gate = sapo(step, tau_positive=1e-6, tau_negative=1e-6, aggregation="token_mean")
    torch.testing.assert_close(open_gate.slope, truncated_is(step, cap=1e12).slope, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [5, 50, 800, 5000])
def test_far_away_the_gradient_fades_to_zero_even_where_the_ratio_overflows(far: float, dtype: torch.dtype) -> None:
    for sign in (1, -1):
        step = Step(
            torch.tensor([sign * float(far)], dtype=dtype),
            torch.zeros(1, dtype=dtype),
            torch.ones(1, dtype=dtype),
            torch.zeros(1).long(),
            torch.zeros(1).long(),
            torch.ones(1, dtype=dtype),
        )
        token_loss = sapo(step)
        assert 0 <= token_loss.weight.item() < 0.03
        assert torch.isfinite(token_loss.loss)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_log_prob_makes_value_and_slope_non_finite(broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    token_loss = sapo(step)
    assert not torch.isfinite(token_loss.value[2])
    assert not torch.isfinite(token_loss.slope[2])


@pytest.mark.parametrize("knobs", [{"tau_positive": 0}, {"tau_negative": -1}])
def test_bad_temperatures_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number from"):
        build("sapo", knobs)

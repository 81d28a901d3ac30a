"""P4O: the public code's loss by autograd, P3O where the snapshot is the behavior policy."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.kl import KlEstimator, kl_to
from learner.objective.p3o import p3o
from learner.objective.p4o import p4o
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, on_policy, random_step

estimators = pytest.mark.parametrize("estimator", ["unbiased", "k3"])


def ess_of(ratio: Tensor) -> float:
    return (ratio.sum() ** 2 / ((ratio**2).sum() * len(ratio))).item()


@estimators
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 1, 2])
def test_it_is_the_capped_score_and_the_pull_to_the_mixture(seed: int, spread: float, estimator: KlEstimator) -> None:
    step = random_step(seed, spread=spread)
    assert step.proximal_logprobs is not None
    behavior, proximal = step.behavior_logprobs, step.proximal_logprobs
    ess_b = ess_of((step.policy_logprobs - behavior).exp())
    ess_p = ess_of((step.policy_logprobs - proximal).exp())
    ess = min(ess_b, ess_p)
    mixture = ((1 - ess_b) * behavior.exp() + (1 - ess_p) * proximal.exp()) / (2 - ess_b - ess_p)

    def loss(policy: Tensor) -> Tensor:
        ratio = (policy - behavior).exp()
        if estimator == "k3":
            kl = policy - mixture.log() + mixture / policy.exp() - 1
        else:
            kl = ratio * (policy - mixture.log()) - ratio + mixture / behavior.exp()
        return (-ratio.detach().clamp(max=ess) * step.advantages * policy + (1 - ess) * kl).mean()

    assert_matches(step, p4o(step, kl_estimator=estimator), loss)


@estimators
@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_behavior_policy_as_snapshot_it_is_p3o(seed: int, estimator: KlEstimator) -> None:
    step = random_step(seed)
    step = dataclasses.replace(step, proximal_logprobs=step.behavior_logprobs)
    assert_same(p4o(step, kl_estimator=estimator), p3o(step, kl_estimator=estimator))


@estimators
def test_a_fresh_snapshot_leaves_the_mixture_to_the_behavior_policy(estimator: KlEstimator) -> None:
    step = random_step(3)
    step = dataclasses.replace(step, proximal_logprobs=step.policy_logprobs)
    assert_same(p4o(step, kl_estimator=estimator), p3o(step, kl_estimator=estimator))


@estimators
def test_on_policy_it_is_reinforce(estimator: KlEstimator) -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(p4o(step, kl_estimator=estimator).slope, reinforce(step).slope)


def test_the_unbiased_estimate_has_the_kl_to_the_mixture_as_its_mean() -> None:
    """Every token of a small vocabulary once, weighted by the behavior policy."""
    generator = torch.Generator().manual_seed(0)
    policy, behavior, mixture = (torch.rand(7, generator=generator, dtype=torch.float64) for _ in range(3))
    policy, behavior, mixture = policy / policy.sum(), behavior / behavior.sum(), mixture / mixture.sum()
    value, slope = kl_to((policy / behavior).log(), (policy / mixture).log(), "unbiased")
    assert (value >= 0).all()
    logits = policy.log().requires_grad_()
    log_policy = logits.log_softmax(0)
    kl = (log_policy.exp() * (log_policy - mixture.log())).sum()
    torch.testing.assert_close((behavior * value).sum(), kl.detach())
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (estimated,) = torch.autograd.grad((behavior * slope * log_policy).sum(), logits)
    torch.testing.assert_close(estimated, exact)


@pytest.mark.parametrize("field", ["behavior_logprobs", "proximal_logprobs"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_makes_the_loss_not_finite(field: str, broken: float) -> None:
    step = random_step(0)
    getattr(step, field)[2] = broken
    assert not p4o(step).loss.isfinite()


def test_it_needs_the_snapshot_and_a_known_estimator() -> None:
    assert build("p4o").needs == {"proximal_logprobs"}
    with pytest.raises(ValueError, match="kl_estimator"):
        build("p4o", {"kl_estimator": "k7"})

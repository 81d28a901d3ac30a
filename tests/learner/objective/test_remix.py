"""ReMix: the clip around where the batch began, and the two anchors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.grpo import grpo
from learner.objective.kl import KlEstimator
from learner.objective.registry import build
from learner.objective.remix import remix
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, random_step


def written_from_the_notes(step: Step, policy: Tensor, share: float, estimator: KlEstimator) -> Tensor:
    """Mix-PPG's clip and the KL-convex constraint with autograd; eps .2, kl_weight .5."""
    assert step.proximal_logprobs is not None
    assert step.ref_logprobs is not None
    assert step.preceding_logprobs is not None
    ratio = (policy - step.behavior_logprobs).exp()
    centre = (step.proximal_logprobs - step.behavior_logprobs).exp()
    clipped = torch.minimum(torch.maximum(ratio, centre - 0.2), centre + 0.2)
    surrogate = -torch.minimum(ratio * step.advantages, clipped * step.advantages)
    kls = []
    for other in (step.ref_logprobs, step.preceding_logprobs):
        d = policy - other
        if estimator == "k3":
            kls.append(d + (-d).exp() - 1)
        else:  # r (d - 1) + other / behavior, whose derivative by the log-prob is r d
            kls.append(ratio * (d - 1) + (other - step.behavior_logprobs).exp())
    return (surrogate + 0.5 * (share * kls[0] + (1 - share) * kls[1])).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("estimator", ["unbiased", "k3"])
def test_value_and_gradient_are_those_of_autograd(seed: int, share: float, estimator: KlEstimator) -> None:
    step = random_step(seed, spread=0.4)
    token_loss = remix(step, kl_weight=0.5, base_share=share, kl_estimator=estimator)
    assert token_loss.cut.any()
    assert_matches(step, token_loss, lambda policy: written_from_the_notes(step, policy, share, estimator))


def test_two_tokens_by_hand() -> None:
    """behavior .5; proximal .6 (centre 1.2); policy .75 (ratio 1.5) is beyond 1.2 + .2 = 1.4.

    A = 2: value -1.4 * 2 and no slope. A = -2: value +1.5 * 2, slope -1.5 * -2. Mean over two tokens.
    """
    log = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    step = random_step(
        0,
        lengths=(1, 1),
        policy_logprobs=torch.tensor([0.75, 0.75], dtype=torch.float64).log(),
        behavior_logprobs=log,
        proximal_logprobs=torch.tensor([0.6, 0.6], dtype=torch.float64).log(),
        advantages=torch.tensor([2.0, -2.0], dtype=torch.float64),
    )
    token_loss = remix(step, kl_weight=0.0)
    assert token_loss.value.tolist() == pytest.approx([-1.4, 1.5])
    assert token_loss.slope.tolist() == pytest.approx([0.0, 1.5])
    assert token_loss.cut.tolist() == [True, False]


def test_on_fresh_tokens_it_is_ppo() -> None:
    step = random_step(1, spread=0.4)
    fresh = dataclasses.replace(step, proximal_logprobs=step.behavior_logprobs)
    ours, ppo = remix(fresh, kl_weight=0.0), grpo(fresh, aggregation="token_mean")
    torch.testing.assert_close(ours.value, ppo.value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.slope, ppo.slope, rtol=1e-12, atol=1e-14)


def test_old_data_is_not_cut_before_the_batch_has_moved_the_policy() -> None:
    step = random_step(2, spread=2.0)
    unmoved = dataclasses.replace(step, proximal_logprobs=step.policy_logprobs)
    assert not remix(unmoved).cut.any()
    assert grpo(unmoved).cut.any()


@pytest.mark.parametrize(
    ("knobs", "anchors"),
    [
        ({}, {"ref_logprobs", "preceding_logprobs"}),
        ({"base_share": 1}, {"ref_logprobs"}),
        ({"base_share": 0}, {"preceding_logprobs"}),
        ({"kl_weight": 0}, set()),
        ({"kl_weight": 0, "base_share": 1}, set()),
    ],
)
def test_only_anchors_with_a_share_are_asked_for_and_looked_at(knobs: dict[str, float], anchors: set[str]) -> None:
    """An anchor without a share may hold anything, or be missing."""
    objective = build("remix", knobs)
    assert objective.needs == {"proximal_logprobs"} | anchors
    step = random_step(0)
    whole = objective(step)
    for name in {"ref_logprobs", "preceding_logprobs"} - anchors:
        for anything in (None, torch.full_like(step.advantages, torch.nan)):
            fields: dict[str, Any] = {name: anything}
            assert_same(objective(dataclasses.replace(step, **fields)), whole)
    assert ("kl" in whole.statistics) == bool(anchors)

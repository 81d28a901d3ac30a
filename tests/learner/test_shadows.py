"""Shadow objectives say what others would have done, and change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learner.head
from learner.model import PolicyModel
from learner.objective.core import Step, TokenLoss
from learner.objective.registry import Objective, build
from learner.objective.reinforce import reinforce
from learner.objectives import Objectives
from learner.shadows import shadow_outcome
from learner.step import StepOutcome
from shared.config.learner import LearnerConfig
from shared.types import Group
from tests.learner import stale
from tests.learner.objective.steps import random_step

pytestmark = pytest.mark.system

COMPARED = stale.STILL.model_copy(update={"shadow_gradients_every": 1})
MOVING = COMPARED.model_copy(update={"learning_rate": 1e-2})
CUTS = [stale.ALL_IN_ONE, stale.IN_THREE]
ALL = tuple(stale.CASES.values())


@pytest.fixture(scope="module")
def groups(tiny_folder: Path) -> list[Group]:
    return stale.stale_groups(stale.load(tiny_folder))


def outcome_of(
    folder: Path,
    groups: list[Group],
    objectives: Objectives,
    config: LearnerConfig = COMPARED,
    tokens: int = stale.IN_THREE,
) -> tuple[PolicyModel, StepOutcome]:
    policy, batch = stale.load(folder), stale.cut_into(groups, tokens)
    outcome = stale.take(policy, batch, objectives, config=config, given=stale.beyond(batch))
    assert not outcome.skipped
    return policy, outcome


def opposite(step: Step) -> TokenLoss:
    return reinforce(replace(step, advantages=-step.advantages))


@pytest.mark.parametrize("micro_batch_tokens", CUTS)
def test_a_shadow_says_what_its_objective_says_when_it_is_trained(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int
) -> None:
    objectives = Objectives(build("reinforce"), ALL)
    _, outcome = outcome_of(tiny_folder, groups, objectives, tokens=micro_batch_tokens)
    assert outcome.own.expert is not None
    own = ~outcome.own.expert
    assert 0 < own.sum() < len(own)
    for shadow, objective in zip(outcome.shadows, ALL, strict=True):
        _, trained = outcome_of(tiny_folder, groups, Objectives(objective), tokens=micro_batch_tokens)
        assert shadow.objective == objective.label
        assert shadow.loss == pytest.approx(trained.loss, rel=1e-5)
        assert shadow.cut_share == pytest.approx(trained.cut[own].double().mean().item())
        assert shadow.weight_mean == pytest.approx(trained.weight[own].double().mean().item(), rel=1e-5)
        assert shadow.weight_max == pytest.approx(trained.weight[own].max().item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", CUTS)
def test_the_cosine_is_that_of_the_two_gradients_when_each_is_trained(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int
) -> None:
    policy, outcome = outcome_of(tiny_folder, groups, Objectives(build("p3o"), ALL), tokens=micro_batch_tokens)
    taken = stale.gradient_of(policy).double()
    for shadow, objective in zip(outcome.shadows, ALL, strict=True):
        policy, _ = outcome_of(tiny_folder, groups, Objectives(objective), tokens=micro_batch_tokens)
        other = stale.gradient_of(policy).double()
        expected = (taken @ other / (taken.norm() * other.norm())).item()
        assert shadow.cosine == pytest.approx(expected, abs=1e-5)
    assert len({round(shadow.cosine or 0, 3) for shadow in outcome.shadows}) > 5


@pytest.mark.parametrize("micro_batch_tokens", CUTS)
def test_the_trained_objective_as_its_own_shadow_has_cosine_1_and_its_opposite_has_minus_1(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int
) -> None:
    shadows = (build("reinforce"), Objective("opposite", {}, frozenset(), opposite))
    clipped = COMPARED.model_copy(update={"max_grad_norm": 1e-3})
    objectives = Objectives(build("reinforce"), shadows)
    _, outcome = outcome_of(tiny_folder, groups, objectives, clipped, micro_batch_tokens)
    assert [shadow.cosine for shadow in outcome.shadows] == pytest.approx([1.0, -1.0], abs=1e-6)


@pytest.mark.parametrize("micro_batch_tokens", CUTS)
def test_weights_and_gradient_are_bit_for_bit_those_without_shadows(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int
) -> None:
    found = []
    for shadows in ((), ALL):
        objectives = Objectives(build("p3o"), shadows)
        policy, outcome = outcome_of(tiny_folder, groups, objectives, MOVING, micro_batch_tokens)
        found.append((stale.weights_of(policy), stale.gradient_of(policy), outcome))
    (weights, gradient, alone), (weights_too, gradient_too, beside) = found
    assert torch.equal(weights, weights_too)
    assert torch.equal(gradient, gradient_too)
    assert (alone.loss, alone.grad_norm, alone.learning_rate) == (beside.loss, beside.grad_norm, beside.learning_rate)
    assert not torch.equal(weights, stale.weights_of(stale.load(tiny_folder)))


def test_a_step_has_what_its_objectives_need_together() -> None:
    objectives = Objectives(build("p4o"), (build("chord"), build("p3o", {"entropy_weight": 0.1}), build("grpo")))
    assert objectives.needs == {"proximal_logprobs", "expert", "entropy"}


@pytest.mark.parametrize("micro_batch_tokens", CUTS)
def test_entropy_may_be_needed_by_a_shadow_alone(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int
) -> None:
    shadow = build("p3o", {"entropy_weight": 0.5})
    policy, outcome = outcome_of(tiny_folder, groups, Objectives(build("p3o"), (shadow,)), COMPARED, micro_batch_tokens)
    assert outcome.own.entropy is not None
    assert outcome.shadows[0].loss == pytest.approx(outcome.loss - 0.5 * outcome.own.entropy.mean().item(), rel=1e-5)
    taken = stale.gradient_of(policy).double()
    policy, _ = outcome_of(tiny_folder, groups, Objectives(shadow), COMPARED, micro_batch_tokens)
    other = stale.gradient_of(policy).double()
    cosine = (taken @ other / (taken.norm() * other.norm())).item()
    assert cosine < 0.99
    assert outcome.shadows[0].cosine == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(("micro_batch_tokens", "passes"), [(stale.ALL_IN_ONE, 1), (stale.IN_THREE, 5)])
def test_one_forward_pass_serves_all(
    tiny_folder: Path, groups: list[Group], micro_batch_tokens: int, passes: int
) -> None:
    policy = stale.load(tiny_folder)
    seen: list[Any] = []
    policy.module.base_model.register_forward_hook(lambda *_: seen.append(1))
    batch = stale.cut_into(groups, micro_batch_tokens)
    stale.take(policy, batch, Objectives(build("p3o"), ALL), config=COMPARED)
    assert len(seen) == passes


def test_gradients_are_compared_through_a_head_in_pieces(
    tiny_folder: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = Objectives(build("p3o"), ALL)
    _, whole = outcome_of(tiny_folder, groups, objectives)
    monkeypatch.setitem(learner.head.PIECE, "cpu", (5, 100))
    _, pieces = outcome_of(tiny_folder, groups, objectives)
    assert [s.cosine for s in pieces.shadows] == pytest.approx([s.cosine for s in whole.shadows], abs=1e-5)


def test_gradients_are_compared_as_often_as_asked_for(tiny_folder: Path, groups: list[Group]) -> None:
    objectives = Objectives(build("p3o"), (build("grpo"),))
    for every, compared in ((0, False), (1, True), (2, False)):
        config = COMPARED.model_copy(update={"shadow_gradients_every": every})
        _, outcome = outcome_of(tiny_folder, groups, objectives, config)
        assert (outcome.shadows[0].cosine is not None) == compared


def test_a_shadow_that_is_not_finite_does_not_skip_the_step(tiny_folder: Path, groups: list[Group]) -> None:
    def broken(step: Step) -> TokenLoss:
        return replace(reinforce(step), value=torch.full_like(step.policy_logprobs, math.nan))

    objectives = Objectives(build("p3o"), (Objective("broken", {}, frozenset(), broken), build("p3o")))
    _, outcome = outcome_of(tiny_folder, groups, objectives)
    assert math.isnan(outcome.shadows[0].loss)
    assert outcome.shadows[1].cosine == pytest.approx(1.0)


def token_loss(weight: Tensor) -> TokenLoss:
    loss = reinforce(random_step(0, lengths=(len(weight),)))
    return replace(loss, weight=weight, cut=weight > 0.9, step_factor=torch.tensor(0.25))


def test_what_a_shadow_tells_of_its_weights() -> None:
    weight = torch.arange(101, dtype=torch.float64)[torch.randperm(101)] / 100
    found = shadow_outcome(build("p3o", {"kl_estimator": "k3"}), token_loss(weight), 0.5)
    assert found.objective == "p3o(kl_estimator=k3)"
    assert (found.weight_p1, found.weight_p50, found.weight_p99, found.weight_max) == (0.01, 0.5, 0.99, 1.0)
    assert found.weight_mean == pytest.approx(0.5)
    assert found.zero_weight_share == pytest.approx(1 / 101)
    assert found.cut_share == pytest.approx(10 / 101)
    assert found.weight_ess == pytest.approx(weight.sum().item() ** 2 / (101 * weight.square().sum().item()))
    assert (found.step_factor, found.cosine) == (0.25, 0.5)


def test_weights_that_are_all_zero_have_no_ess() -> None:
    assert math.isnan(shadow_outcome(build("p3o"), token_loss(torch.zeros(5)), None).weight_ess)

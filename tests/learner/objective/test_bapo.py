"""BAPO: the search by plain loops, PPO's clip under what it found, and where it stops."""

import dataclasses
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.objective.bapo import bapo
from learner.objective.core import Step
from learner.objective.grpo import grpo
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.surrogates import Surrogate, clipped_surrogate
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, mean_of_means, on_policy, random_step


def share(step: Step, low: float, high: float) -> float:
    """Positive tokens' share of the surrogate, weighted by the behavior's probability, token by token."""
    positive = total = 0.0
    fields = (step.policy_logprobs, step.behavior_logprobs, step.advantages)
    for policy, behavior, a in zip(*(field.tolist() for field in fields), strict=True):
        ratio = math.exp(policy - behavior)
        pull = math.exp(behavior) * abs(min(ratio * a, min(max(ratio, low), high) * a))
        total += pull
        positive += pull if a > 0 else 0.0
    return positive / total


def search(step: Step, target: float, end: float = 3.0, stride: float = 0.05) -> tuple[float, float]:
    """The paper's inner loop: the upper bound moves first, c_high up to `end` by `stride`."""
    low, high = 0.6, 1.2
    while share(step, low, high) < target:
        if high + stride <= end + 1e-9:
            high += stride
        elif low + 0.02 <= 0.9 + 1e-9:
            low += 0.02
        else:
            break
    return low, high


def clip_loss(policy: Tensor, step: Step, low: float, high: float) -> Tensor:
    ratio = torch.exp(policy - step.behavior_logprobs)
    return -torch.min(ratio * step.advantages, torch.clamp(ratio, low, high) * step.advantages)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("target", [0.3, 0.4, 0.5, 0.6, 0.9])
def test_it_is_the_clip_under_the_first_bounds_that_balance(seed: int, target: float) -> None:
    step = random_step(seed, spread=1.5)
    low, high = search(step, target)
    token_loss = bapo(step, target_share=target)
    assert token_loss.statistics["clip_low"].item() == pytest.approx(low)
    assert token_loss.statistics["clip_high"].item() == pytest.approx(high)
    assert_matches(step, token_loss, lambda policy: clip_loss(policy, step, low, high).mean())
    by_completion = bapo(step, target_share=target, aggregation="sequence_mean")
    assert_matches(step, by_completion, lambda policy: mean_of_means(clip_loss(policy, step, low, high), step))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("end", "stride"), [(1.2, 1.0), (1.9, 0.7), (2.1, 0.3), (8.0, 0.013)])
def test_halving_finds_what_going_step_by_step_finds(seed: int, end: float, stride: float) -> None:
    step = random_step(seed, spread=2)
    for target in (0.3, 0.5, 0.7):
        low, high = search(step, target, end, stride)
        found = bapo(step, target_share=target, high_end=end, high_step=stride).statistics
        assert found["clip_low"].item() == pytest.approx(low)
        assert found["clip_high"].item() == pytest.approx(high)


def test_a_million_steps_are_not_gone_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of every step that is tried: twenty halvings and the loss itself."""
    module = importlib.import_module("learner.objective.bapo")
    tried = []

    def counted(*args: Any) -> Surrogate:
        tried.append(args)
        return clipped_surrogate(*args)

    monkeypatch.setattr(module, "clipped_surrogate", counted)
    build("bapo", {"target_share": 0.9, "high_end": 1000, "high_step": 0.001})(random_step(0))
    assert len(tried) == 21


def test_the_upper_bound_stops_anywhere_and_the_lower_one_only_at_its_ends() -> None:
    """A negative token below c_low counts with c_low |A|: raising c_low cannot raise the positive tokens' share."""
    found = {search(random_step(seed, spread=1.5), target) for seed in range(12) for target in (0.4, 0.5, 0.6)}
    assert any(high == 1.2 for _, high in found)
    assert any(1.21 < high < 2.99 for _, high in found)
    assert {round(low, 9) for low, _ in found} == {0.6, 0.9}
    assert all(share(random_step(seed), 0.9, 3) <= share(random_step(seed), 0.6, 3) for seed in SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_nothing_to_move_it_is_the_plain_clip(seed: int) -> None:
    step = random_step(seed)
    fixed = bapo(step, low_start=0.8, low_end=0.8, high_start=1.2, high_end=1.2)
    assert_same(fixed, grpo(step, aggregation="token_mean"))
    assert_same(bapo(step, target_share=0, low_start=0.8), grpo(step, aggregation="token_mean"))


def test_on_policy_it_is_reinforce() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(bapo(step).slope, reinforce(step).slope)


def test_without_any_advantage_the_bounds_stay_and_nothing_is_learned() -> None:
    step = random_step(0)
    token_loss = bapo(dataclasses.replace(step, advantages=torch.zeros_like(step.advantages)))
    assert token_loss.statistics["clip_high"].item() == pytest.approx(1.2)
    assert (token_loss.slope == 0).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_is_not_clipped_away(broken: float) -> None:
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not bapo(step).loss.isfinite()


def test_bad_knobs_are_refused() -> None:
    for knob in ({"target_share": 1.1}, {"low_end": 1.5}, {"high_start": 0.9}, {"high_step": 0.0}, {"low_step": -1}):
        with pytest.raises(ValueError, match=next(iter(knob))):
            build("bapo", knob)

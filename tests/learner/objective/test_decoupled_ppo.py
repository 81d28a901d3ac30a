"""Decoupled PPO: the snapshot's clip under the behavior's weight, by autograd; GRPO where the two are one."""

import dataclasses

import pytest
import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.decoupled_ppo import OverCap, decoupled_ppo
from learner.objective.grpo import grpo
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, on_policy, random_step


def paper(policy: Tensor, step: Step, cap: float, over_cap: OverCap) -> Tensor:
    assert step.proximal_logprobs is not None
    w = torch.exp(step.proximal_logprobs - step.behavior_logprobs)
    w = torch.clamp(w, max=cap) if over_cap == "truncate" else w * (w <= cap)
    q = torch.exp(policy - step.proximal_logprobs)
    return (-w * torch.min(q * step.advantages, torch.clamp(q, 0.8, 1.2) * step.advantages)).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("over_cap", ["truncate", "drop"])
@pytest.mark.parametrize("spread", [0.2, 3])
def test_value_and_gradient_are_those_of_the_paper(seed: int, over_cap: OverCap, spread: float) -> None:
    step = random_step(seed, spread=spread)
    token_loss = decoupled_ppo(step, cap=1.5, over_cap=over_cap)
    assert_matches(step, token_loss, lambda policy: paper(policy, step, 1.5, over_cap))


def test_it_is_token_mean_grpo_where_the_snapshot_drew_the_tokens() -> None:
    step = random_step(1)
    step = dataclasses.replace(step, proximal_logprobs=step.behavior_logprobs)
    assert_same(decoupled_ppo(step), grpo(step, aggregation="token_mean"))


def test_with_a_cap_out_of_reach_it_is_the_papers_uncapped_equation() -> None:
    step = random_step(2, spread=2)
    assert_matches(step, decoupled_ppo(step, cap=1e9), lambda policy: paper(policy, step, 1e9, "truncate"))


def test_on_policy_it_is_reinforce() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(decoupled_ppo(step).slope, reinforce(step).slope)


def test_tokens_over_the_cap_are_cut() -> None:
    step = random_step(3, spread=2)
    step = dataclasses.replace(step, proximal_logprobs=step.policy_logprobs)
    token_loss = decoupled_ppo(step, cap=2)
    assert token_loss.cut.any()
    torch.testing.assert_close(token_loss.weight, step.log_ratio.exp().clamp(max=2))


@pytest.mark.parametrize("field", ["behavior_logprobs", "proximal_logprobs", "policy_logprobs"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(field: str, broken: float) -> None:
    step = random_step(0)
    getattr(step, field)[2] = broken
    for over_cap in ("truncate", "drop"):
        assert not torch.isfinite(build("decoupled_ppo", {"over_cap": over_cap})(step).loss)


def test_without_a_snapshot_it_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs proximal_logprobs"):
        build("decoupled_ppo")(random_step(0, proximal_logprobs=None))


@pytest.mark.parametrize("knobs", [{"cap": 0.5}, {"over_cap": "ignore"}, {"eps_low": 2}, {"eps_high": -1}])
def test_bad_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        build("decoupled_ppo", knobs)

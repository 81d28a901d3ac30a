"""OPMD, AsymRE, Kimi's policy mirror descent: by autograd, and what each becomes without its restraint."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.advantages import group_advantages
from learner.objective.aggregation import Aggregation
from learner.objective.core import Step
from learner.objective.opmd import asymre, kimi_pmd, opmd
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, completions, mean_of_means, random_step

seeds = pytest.mark.parametrize("seed", SEEDS)
aggregations = pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])


def aggregate(values: Tensor, step: Step, aggregation: Aggregation) -> Tensor:
    if aggregation == "sequence_mean":
        return mean_of_means(values, step)
    return values.sum() / (step.tokens if aggregation == "token_mean" else step.sequences)


@seeds
@aggregations
def test_opmd_is_reinforce_at_a_part_of_its_strength(seed: int, aggregation: Aggregation) -> None:
    step = random_step(seed)
    token_loss = opmd(step, tau=0.5, aggregation=aggregation)
    assert_matches(step, token_loss, lambda policy: aggregate(-step.advantages * policy / 1.5, step, aggregation))
    assert_same(opmd(step, tau=0), reinforce(step))
    torch.testing.assert_close(opmd(step).slope, reinforce(step).slope / 2)


@seeds
@aggregations
def test_asymre_is_reinforce_above_a_lowered_baseline(seed: int, aggregation: Aggregation) -> None:
    step = random_step(seed, group=3)
    rewards = step.rewards.tolist()

    def loss(policy: Tensor) -> Tensor:
        score = []
        for i in step.sequence_of.tolist():
            members = [r for r, g in zip(rewards, step.group_of, strict=True) if g == step.group_of[i]]
            score.append(rewards[i] - (sum(members) / len(members) - 0.3))
        return aggregate(-policy * torch.tensor(score, dtype=torch.float64), step, aggregation)

    assert_matches(step, asymre(step, baseline_shift=-0.3, aggregation=aggregation), loss)


@seeds
def test_asymre_is_reinforce_and_imitation_of_the_behavior_policy(seed: int) -> None:
    step = random_step(seed)
    advantages = group_advantages(step.rewards, step.group_of, "group_mean")[step.sequence_of]
    step = dataclasses.replace(step, advantages=advantages)
    torch.testing.assert_close(asymre(step, baseline_shift=0).slope, reinforce(step).slope)
    torch.testing.assert_close(asymre(step).slope, reinforce(step).slope - 0.1 / step.tokens)


def test_asymre_still_imitates_a_group_of_one_and_of_equal_rewards() -> None:
    for step in (random_step(0, group=1), random_step(0, rewards=torch.ones(6, dtype=torch.float64))):
        torch.testing.assert_close(asymre(step).slope, torch.full_like(step.advantages, -0.1 / step.tokens))


@seeds
@aggregations
@pytest.mark.parametrize("spread", [0.3, 6])
def test_kimi_pmd_squares_the_log_ratio_of_tokens(seed: int, aggregation: Aggregation, spread: float) -> None:
    step = random_step(seed, spread=spread)

    def loss(policy: Tensor) -> Tensor:
        values = -step.advantages * policy + 0.25 * (policy - step.behavior_logprobs) ** 2
        return aggregate(values, step, aggregation)

    assert_matches(step, kimi_pmd(step, coefficient=0.25, aggregation=aggregation), loss)


@seeds
def test_kimi_pmd_by_completions_squares_their_whole_log_ratio(seed: int) -> None:
    step = random_step(seed, spread=2)

    def loss(policy: Tensor) -> Tensor:
        each = [
            -(step.advantages * policy)[tokens].sum() + 0.25 * (policy - step.behavior_logprobs)[tokens].sum() ** 2
            for tokens in completions(step)
        ]
        return torch.stack(each).sum() / step.sequences

    token_loss = kimi_pmd(step, coefficient=0.25, departure="sequence", aggregation="sequence_sum")
    assert_matches(step, token_loss, loss)


def test_kimi_pmd_without_restraint_or_departure_is_reinforce_and_both_departures_are_one_on_single_tokens() -> None:
    step = random_step(3)
    torch.testing.assert_close(kimi_pmd(step, coefficient=0).slope, reinforce(step).slope)
    fresh = dataclasses.replace(step, behavior_logprobs=step.policy_logprobs)
    torch.testing.assert_close(kimi_pmd(fresh).slope, reinforce(fresh).slope)
    single = random_step(3, lengths=(1,) * 8)
    assert_same(kimi_pmd(single, departure="sequence"), kimi_pmd(single))


def test_empty_completions_count_only_where_completions_are_summed() -> None:
    step = random_step(1, lengths=(2, 0, 3, 4))
    for aggregation in ("token_mean", "sequence_mean", "sequence_sum"):
        assert opmd(step, aggregation=aggregation).loss.isfinite()
    expected = reinforce(step).slope * step.tokens / 4
    torch.testing.assert_close(opmd(step, tau=0, aggregation="sequence_sum").slope, expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_not_finite_makes_the_loss_not_finite(broken: float) -> None:
    step = random_step(0)
    step.policy_logprobs[2] = broken
    for function in (opmd, asymre, kimi_pmd):
        assert not function(step).loss.isfinite()
    step = random_step(0)
    step.behavior_logprobs[2] = broken
    assert not kimi_pmd(step).loss.isfinite()


def test_bad_knobs_are_refused() -> None:
    bad: dict[str, dict[str, float | str]] = {
        "opmd": {"tau": -1},
        "asymre": {"baseline_shift": math.inf},
        "kimi_pmd": {"departure": "group"},
    }
    for name, knob in bad.items():
        with pytest.raises(ValueError, match=next(iter(knob))):
            build(name, knob)
    with pytest.raises(ValueError, match="coefficient"):
        build("kimi_pmd", {"coefficient": -0.1})

"""CHORD: both halves by autograd, each alone, and what is never read."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.objective.chord import chord
from learner.objective.core import Step
from learner.objective.grpo import grpo
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, on_policy, random_step


def mixed(seed: int, spread: float = 1.0) -> Step:
    """Completions 1 and 4 are an expert's."""
    step = random_step(seed, spread=spread)
    expert = torch.isin(step.sequence_of, torch.tensor([1, 4]))
    return dataclasses.replace(step, expert=expert, policy_logprobs=step.policy_logprobs.clamp(max=-1e-3))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.2, 1, 6])
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("expert_weight", ["undecided", "one"])
def test_it_is_grpo_and_supervised_learning_in_these_parts(
    seed: int, spread: float, mu: float, expert_weight: str
) -> None:
    step = mixed(seed, spread)
    assert step.expert is not None
    expert = step.expert

    def loss(policy: Tensor) -> Tensor:
        ratio = torch.exp(policy - step.behavior_logprobs)[~expert]
        a = step.advantages[~expert]
        own = -torch.min(ratio * a, torch.clamp(ratio, 0.7, 1.4) * a).mean()
        p = policy[expert].exp().detach()
        factor = p * (1 - p) if expert_weight == "undecided" else torch.ones_like(p)
        return (1 - mu) * own - mu * (factor * policy[expert]).mean()

    knobs = {"mu": mu, "eps_low": 0.3, "eps_high": 0.4, "expert_weight": expert_weight}
    assert_matches(step, build("chord", knobs)(step), loss)


def test_without_an_expert_it_is_grpo_by_tokens() -> None:
    step = random_step(2)
    step = dataclasses.replace(step, expert=torch.zeros(step.tokens, dtype=torch.bool))
    torch.testing.assert_close(chord(step, mu=0).slope, grpo(step, aggregation="token_mean").slope)
    torch.testing.assert_close(chord(step).slope, 0.9 * grpo(step, aggregation="token_mean").slope)
    torch.testing.assert_close(chord(on_policy(step), mu=0).slope, reinforce(on_policy(step)).slope)


def test_an_expert_alone_is_supervised_learning_most_of_all_where_the_policy_is_undecided() -> None:
    step = random_step(2)
    logprobs = torch.linspace(-8, -0.01, step.tokens, dtype=torch.float64)
    step = dataclasses.replace(step, policy_logprobs=logprobs, expert=torch.ones(step.tokens, dtype=torch.bool))
    slope = chord(step, mu=1).slope
    assert (slope < 0).all()
    assert logprobs[slope.argmin()].exp().item() == pytest.approx(0.5, abs=0.15)
    torch.testing.assert_close(
        chord(step, mu=1, expert_weight="one").slope, torch.full_like(logprobs, -1 / step.tokens)
    )


def test_an_experts_behavior_log_probs_and_advantages_are_not_read() -> None:
    step = mixed(0)
    assert step.expert is not None
    clean = chord(step)
    step.behavior_logprobs[step.expert] = math.nan
    step.advantages[step.expert] = math.nan
    assert chord(step).loss == clean.loss
    step.policy_logprobs[step.expert.nonzero()[0]] = math.nan
    assert not chord(step).loss.isfinite()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_own_log_prob_that_is_not_finite_makes_the_loss_not_finite(broken: float) -> None:
    step = mixed(0)
    step.behavior_logprobs[0] = broken
    assert not chord(step).loss.isfinite()


def test_it_needs_to_know_the_expert_and_sane_knobs() -> None:
    assert build("chord").needs == {"expert"}
    for knob in ({"mu": 1.5}, {"eps_low": 2}, {"eps_high": -1}, {"expert_weight": "all"}):
        with pytest.raises(ValueError, match=next(iter(knob))):
            build("chord", knob)

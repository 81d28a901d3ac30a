"""REINFORCE: its loss by autograd, and blind to who drew the tokens."""

import pytest
import torch

from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from tests.learner.objective.steps import SEEDS, assert_matches, assert_same, mean_of_means, on_policy, random_step


@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_are_those_of_the_policy_gradient(seed: int) -> None:
    step = random_step(seed, spread=3)
    assert_matches(step, reinforce(step), lambda policy: -(step.advantages * policy).mean())
    by_completion = reinforce(step, aggregation="sequence_mean")
    assert_matches(step, by_completion, lambda policy: mean_of_means(-step.advantages * policy, step))
    summed = reinforce(step, aggregation="sequence_sum")
    assert_matches(step, summed, lambda policy: -(step.advantages * policy).sum() / step.sequences)


def test_who_drew_the_tokens_does_not_matter() -> None:
    step = random_step(0)
    assert_same(reinforce(step), reinforce(on_policy(step)))


def test_every_token_has_weight_1_and_none_is_cut() -> None:
    token_loss = reinforce(random_step(0))
    assert (token_loss.weight == 1).all()
    assert not token_loss.cut.any()


def test_a_non_finite_policy_is_said() -> None:
    step = random_step(0)
    step.policy_logprobs[2] = torch.nan
    assert not torch.isfinite(reinforce(step).loss)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation must be one of token_mean, sequence_mean"):
        build("reinforce", {"aggregation": "sum"})

"""MinPRO: the smallest earlier ratio, by a plain loop; the weighted score, by autograd."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objective.core import Step
from learner.objective.minpro import least_before, minpro
from learner.objective.registry import build
from learner.objective.reinforce import reinforce
from learner.objective.truncated_is import truncated_is
from tests.learner.objective.steps import (
    SEEDS,
    assert_matches,
    assert_same,
    completions,
    on_policy,
    one_token_each,
    random_step,
)


def paper(policy: Tensor, step: Step, low: float = 1, high: float = 4) -> Tensor:
    losses = []
    for tokens in completions(step):
        ratios = torch.exp(policy[tokens] - step.behavior_logprobs[tokens])
        for t, token in enumerate(tokens):
            prefix = ratios[:t].min() if t else torch.ones(())
            weight = torch.clamp(prefix * ratios[t], 1 - low, 1 + high).detach()
            losses.append(-weight * step.advantages[token] * policy[token])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.1, 1, 6])
def test_value_and_gradient_are_those_of_the_weighted_score(seed: int, spread: float) -> None:
    step = random_step(seed, spread=spread)
    assert_matches(step, minpro(step), lambda policy: paper(policy, step))
    assert_matches(step, minpro(step, eps_low=0.4, eps_high=0.1), lambda policy: paper(policy, step, 0.4, 0.1))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), max_size=60))
def test_the_scan_is_the_loop_also_where_completions_are_interleaved(tokens: list[tuple[int, float]]) -> None:
    seen: dict[int, float] = {}
    expected = []
    for completion, value in tokens:
        expected.append(seen.get(completion, 0.0))
        seen[completion] = min(seen.get(completion, math.inf), value)
    values = torch.tensor([value for _, value in tokens], dtype=torch.float64)
    of = torch.tensor([completion for completion, _ in tokens], dtype=torch.int64)
    assert least_before(values, of).tolist() == expected


def test_on_completions_of_one_token_it_is_truncated_is() -> None:
    step = one_token_each(random_step(2, spread=2))
    assert_same(minpro(step, eps_high=1), truncated_is(step, cap=2))


def test_on_two_tokens_without_a_cap_it_is_the_exact_prefix_ratio() -> None:
    step = random_step(3, lengths=(2, 2, 2))
    by_hand = [step.log_ratio[: t + 1][step.sequence_of[: t + 1] == step.sequence_of[t]].sum() for t in range(6)]
    torch.testing.assert_close(minpro(step, eps_high=1e12).weight, torch.stack(by_hand).exp())


def test_on_policy_it_is_reinforce() -> None:
    step = on_policy(random_step(1))
    torch.testing.assert_close(minpro(step).slope, reinforce(step).slope)


def test_a_non_finite_log_prob_spoils_the_rest_of_its_completion_and_no_other() -> None:
    for broken in (torch.nan, torch.inf, -torch.inf):
        step = random_step(0, lengths=(3, 4))
        step.behavior_logprobs[1] = broken
        assert torch.isfinite(minpro(step).slope).tolist() == [True, False, False, True, True, True, True]


def test_empty_completions_and_empty_steps_work() -> None:
    step = random_step(0, lengths=(0, 3, 0, 2), group=1)
    assert_matches(step, minpro(step), lambda policy: paper(policy, step))
    none = dataclasses.replace(
        step,
        **{name: torch.zeros(0) for name in ("policy_logprobs", "behavior_logprobs", "advantages")},
        sequence_of=torch.zeros(0).long(),
    )
    assert minpro(none).loss == 0


@pytest.mark.parametrize("knobs", [{"eps_low": 1.1}, {"eps_high": -1}])
def test_bad_bounds_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a number from"):
        build("minpro", knobs)

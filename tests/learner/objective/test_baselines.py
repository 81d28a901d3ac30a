"""What holds for every baseline, whatever its formula."""

import dataclasses

import pytest
import torch

from learner.objective.core import Step
from learner.objective.registry import build
from tests.learner.objective.steps import random_step

NAMES = ("reinforce", "grpo", "dapo", "decoupled_ppo", "truncated_is", "cispo", "gspo", "topr", "sapo", "minpro")
every_baseline = pytest.mark.parametrize("name", NAMES)
OF_TOKENS = ("policy_logprobs", "behavior_logprobs", "proximal_logprobs", "advantages", "sequence_of")


def reordered(step: Step, order: torch.Tensor) -> Step:
    return dataclasses.replace(step, **{field: getattr(step, field)[order] for field in OF_TOKENS})


@every_baseline
def test_completions_may_stand_interleaved(name: str) -> None:
    """Only the order within a completion means anything."""
    step = random_step(0)
    position = torch.cat([torch.arange(n) for n in (3, 1, 4, 7, 2, 5)])
    order = position.argsort(stable=True)
    together, interleaved = build(name)(step), build(name)(reordered(step, order))
    torch.testing.assert_close(interleaved.value, together.value[order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(interleaved.slope, together.slope[order], rtol=1e-12, atol=1e-14)


@every_baseline
def test_float32_in_gives_float32_out_close_to_float64(name: str) -> None:
    step = random_step(1, spread=0.5)
    single = dataclasses.replace(step, **{field: getattr(step, field).float() for field in OF_TOKENS[:-1]})
    exact, token_loss = build(name)(step), build(name)(single)
    assert {t.dtype for t in (token_loss.value, token_loss.slope, token_loss.weight)} == {torch.float32}
    error = torch.linalg.norm(token_loss.slope.double() - exact.slope)
    assert error <= 1e-5 * torch.linalg.norm(exact.slope)


@every_baseline
def test_a_step_of_one_token_in_a_group_of_one_works(name: str) -> None:
    token_loss = build(name)(random_step(3, lengths=(1,)))
    assert torch.isfinite(token_loss.loss)
    assert token_loss.cut.dtype == torch.bool


@every_baseline
def test_an_advantage_of_zero_teaches_nothing(name: str) -> None:
    step = random_step(4)
    step.advantages.zero_()
    assert (build(name)(step).slope == 0).all()

"""What holds for BAPO, M2PO, VCPO, OPMD, AsymRE, Kimi's mirror descent, MiniRL, CHORD and P4O alike."""

import dataclasses

import pytest
import torch

from learner.objective.core import Step
from learner.objective.registry import build
from tests.learner.objective.steps import random_step

NAMES = ("bapo", "m2po", "vcpo", "opmd", "asymre", "kimi_pmd", "minirl", "chord", "p4o")
every_variant = pytest.mark.parametrize("name", NAMES)


def step_with_expert(seed: int, lengths: tuple[int, ...] = (3, 1, 4, 7, 2, 5), spread: float = 1.0) -> Step:
    step = random_step(seed, lengths=lengths, spread=spread)
    return dataclasses.replace(step, expert=step.sequence_of == 1)


@every_variant
def test_the_order_of_tokens_changes_no_token(name: str) -> None:
    step = step_with_expert(0)
    order = torch.randperm(step.tokens, generator=torch.Generator().manual_seed(1))
    of_tokens = ("policy_logprobs", "behavior_logprobs", "proximal_logprobs", "advantages", "sequence_of", "expert")
    shuffled = dataclasses.replace(step, **{field: getattr(step, field)[order] for field in of_tokens})
    one, other = build(name)(step), build(name)(shuffled)
    torch.testing.assert_close(other.value, one.value[order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other.slope, one.slope[order], rtol=1e-12, atol=1e-14)


@every_variant
@pytest.mark.parametrize("lengths", [(3, 1, 4, 7, 2, 5), (3, 0, 4, 2), (1,)])
def test_float32_in_gives_float32_out_close_to_float64(name: str, lengths: tuple[int, ...]) -> None:
    step = step_with_expert(1, lengths, spread=0.5)
    of_floats = ("policy_logprobs", "behavior_logprobs", "proximal_logprobs", "advantages", "rewards")
    single = dataclasses.replace(step, **{field: getattr(step, field).float() for field in of_floats})
    exact, token_loss = build(name)(step), build(name)(single)
    assert {t.dtype for t in (token_loss.value, token_loss.slope, token_loss.weight)} == {torch.float32}
    error = torch.linalg.norm(token_loss.slope.double() - exact.slope)
    assert error <= 1e-5 * torch.linalg.norm(exact.slope) + 1e-9
    assert token_loss.loss.isfinite()


@every_variant
def test_a_step_without_tokens_has_no_loss(name: str) -> None:
    assert build(name)(step_with_expert(0, (0, 0))).loss == 0


@every_variant
def test_what_it_needs_and_does_not_get_is_named(name: str) -> None:
    objective = build(name)
    bare = dataclasses.replace(random_step(0), proximal_logprobs=None)
    for field in objective.needs:
        with pytest.raises(ValueError, match=field):
            objective(bare)

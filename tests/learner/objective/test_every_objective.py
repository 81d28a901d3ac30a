"""What holds for every objective there is, on every step there can be."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.objective import evaluate
from learner.objective.core import Step, piece_loss
from learner.objective.registry import OBJECTIVES, build, knobs_of
from learner.objective.regularization import regularized
from tests.learner.objective.any_step import (
    EXTREME,
    any_step,
    any_steps,
    cast,
    choices_of,
    of_tokens,
    with_completions,
    with_tokens,
)

NAMES = sorted(OBJECTIVES)
every_objective = pytest.mark.parametrize("name", NAMES)
examples = settings(max_examples=12)
seeds = st.integers(0, 10_000)
LENGTHS = [3, 1, 4, 7, 2, 5]


def knobs(name: str) -> st.SearchStrategy[dict[str, object]]:
    return st.sampled_from(choices_of(name))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    """To this part of the greatest entry: sums over tokens of 1e30 leave nothing finer to compare."""
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


@every_objective
@examples
@given(data=st.data(), step=any_steps(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_finite_log_probs_give_a_finite_loss_and_slope_in_their_own_dtype(
    name: str, data: st.DataObject, step: Step, dtype: torch.dtype
) -> None:
    """Ratios of 1e-30 to 1e30 overflow in no objective: what a formula multiplies out is kept in log space."""
    token_loss = build(name, data.draw(knobs(name)))(cast(step, dtype))
    for values in (token_loss.value, token_loss.slope, token_loss.weight):
        assert values.isfinite().all()
        assert values.dtype == dtype
    assert token_loss.loss.isfinite()
    assert 0 <= float(token_loss.step_factor) <= 1
    assert token_loss.cut.dtype == torch.bool


@every_objective
@examples
@given(data=st.data(), step=any_steps())
def test_float32_differs_from_float64_by_rounding_alone(name: str, data: st.DataObject, step: Step) -> None:
    objective = build(name, data.draw(knobs(name)))
    single = cast(step, torch.float32)
    rounded, exact = objective(single), objective(cast(single, torch.float64))
    error = torch.linalg.norm(rounded.slope.double() - exact.slope)
    assert error <= 1e-4 * torch.linalg.norm(exact.slope) + 1e-12


@every_objective
@pytest.mark.parametrize("rewards", ["equal", "real"])
def test_it_does_so_too_where_the_policy_has_hardly_moved(name: str, rewards: str) -> None:
    """What is left without advantages is small there, a pull of d^3: nothing larger must hide its rounding."""
    for choice in choices_of(name):
        single = cast(any_step(1, LENGTHS, reach=1e-4, rewards=rewards, experts=0), torch.float32)
        rounded, exact = build(name, choice)(single), build(name, choice)(cast(single, torch.float64))
        error = torch.linalg.norm(rounded.slope.double() - exact.slope)
        assert error <= 1e-4 * torch.linalg.norm(exact.slope) + 1e-20, choice


OVERFLOWING = {
    "grpo", "dapo", "decoupled_ppo", "gspo", "chord", "bapo", "remix",  # PPO's clip has no bound above where A < 0
    "m2po",  # nor has its mask, which leaves such tokens in
    "p3o", "p4o",  # the pull to the behavior policy is ratio * log_ratio
}  # fmt: skip


def test_a_ratio_beyond_the_dtype_overflows_only_where_the_papers_loss_does_and_then_says_so() -> None:
    """A bad token of ratio e^100 or e^-100 in float32: loss and slope are float64's, or the loss is not finite."""
    overflowing = set()
    for name, choice, far in ((n, c, far) for n in NAMES for c in choices_of(n) for far in (100.0, -100.0)):
        step = any_step(0, [1, 1, 3], group=3, reach=0.1, experts=0)
        step.advantages[0] = -1.0
        for field in of_tokens(step):
            if field.endswith("_logprobs") and field != "policy_logprobs":
                getattr(step, field)[0] = step.policy_logprobs[0] - far
        exact, rounded = (build(name, choice)(cast(step, dtype)) for dtype in (torch.float64, torch.float32))
        if rounded.loss.isfinite():
            assert float(rounded.loss) == pytest.approx(float(exact.loss), rel=1e-5, abs=1e-6)
            torch.testing.assert_close(rounded.slope.double(), exact.slope, rtol=1e-4, atol=1e-7)
        else:
            overflowing.add(name)
    assert overflowing == OVERFLOWING


@every_objective
@examples
@given(data=st.data(), step=any_steps(), seed=seeds)
def test_pieces_of_any_tokens_add_up_to_the_whole_and_carry_the_slope(
    name: str, data: st.DataObject, step: Step, seed: int
) -> None:
    token_loss = build(name, data.draw(knobs(name)))(step)
    policy = step.policy_logprobs.clone().requires_grad_()
    piece_of = torch.randint(4, policy.shape, generator=torch.Generator().manual_seed(seed))
    pieces = [(piece_of == piece).nonzero().flatten() for piece in range(4)]  # empty ones included
    total = torch.stack([piece_loss(token_loss, tokens, policy[tokens]) for tokens in pieces]).sum()
    close(total.detach(), token_loss.loss)
    torch.testing.assert_close(torch.autograd.grad(total, policy)[0], token_loss.slope, rtol=1e-12, atol=0)


@every_objective
@examples
@given(data=st.data(), step=any_steps(), seed=seeds)
def test_neither_the_order_of_completions_nor_that_of_their_tokens_among_each_other_matters(
    name: str, data: st.DataObject, step: Step, seed: int
) -> None:
    """Completions get new numbers; their tokens are dealt out like shuffled cards, each completion's in order."""
    objective = build(name, data.draw(knobs(name)))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(step.tokens, generator=generator, dtype=torch.float64)
    for completion in range(step.sequences):
        mine = step.sequence_of == completion
        order[mine] = order[mine].sort().values
    dealt = order.argsort()
    other = with_tokens(with_completions(step, torch.randperm(step.sequences, generator=generator)), dealt)
    one, another = objective(step), objective(other)
    for field in ("value", "slope", "weight"):
        close(getattr(another, field), getattr(one, field)[dealt])
    assert float(another.step_factor) == pytest.approx(float(one.step_factor))


@every_objective
@examples
@given(step=any_steps(), seed=seeds)
def test_masked_positions_may_hold_anything_and_get_no_gradient(name: str, step: Step, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = int(step.tokens_of.max()) + 2
    columns = torch.rand(step.sequences, width, generator=generator).argsort(1)
    mask = columns < step.tokens_of[:, None]
    rubbish = torch.tensor([math.nan, math.inf, -math.inf, 1e308, -9999.0], dtype=torch.float64)

    def padded(values: Tensor) -> Tensor:
        noise = rubbish[torch.randint(5, mask.shape, generator=generator)]
        out = noise if values.is_floating_point() else noise > 0
        out[mask] = values
        return out

    optional = {field: padded(getattr(step, field)) for field in build(name).needs}
    policy = padded(step.policy_logprobs).requires_grad_()
    behavior, advantages = padded(step.behavior_logprobs), padded(step.advantages)
    groups = {"rewards": step.rewards, "group_of": step.group_of}
    result = evaluate(name, policy, behavior, advantages, mask, **groups, **optional)
    (gradient,) = torch.autograd.grad(result.loss, policy)
    flat = build(name)(step)
    close(result.loss.detach(), flat.loss)
    close(gradient[mask], flat.slope)
    assert (gradient[~mask] == 0).all()


NEVER_READ = {
    "behavior_logprobs": {"reinforce", "opmd", "asymre"},  # no ratio in them
    "advantages": {"vcpo", "asymre"},  # they make their own of the rewards
}


@every_objective
def test_every_knob_has_two_finite_ends_and_a_finite_loss_at_both(name: str) -> None:
    step = any_step(0, LENGTHS)
    for knob in [*knobs_of(OBJECTIVES[name]), *knobs_of(regularized)]:
        assert knob.kind in {float, bool, str}, knob.name
        assert (knob.bounds is not None) == (knob.kind is float), knob.name
        if knob.bounds is not None:
            assert math.isfinite(knob.bounds.least), knob.name
            assert math.isfinite(knob.bounds.most), knob.name
            assert isinstance(knob.default, float), knob.name
            assert knob.default in knob.bounds, knob.name
            for end in (knob.bounds.least, knob.bounds.most):
                token_loss = build(name, {knob.name: end})(cast(step, torch.float32))
                assert token_loss.loss.isfinite(), (knob.name, end)
                assert token_loss.slope.isfinite().all(), (knob.name, end)


@every_objective
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_a_token_shows_in_the_loss_of_everyone_who_reads_it(name: str, broken: float) -> None:
    """Nothing hides it, be the token good or bad: no clip, no mask, no weight of zero."""
    objective = build(name)
    fields = {"policy_logprobs", "behavior_logprobs", "advantages"} | objective.needs - {"expert"}
    for field in fields:
        step = any_step(0, LENGTHS, experts=0)
        values = getattr(step, field)
        for token in (int(step.advantages.argmax()), int(step.advantages.argmin())):
            spoiled = values.clone()
            spoiled[token] = broken
            loss = objective(dataclasses.replace(step, **{field: spoiled})).loss
            if name in NEVER_READ.get(field, ()):
                assert loss == objective(step).loss, field
            else:
                assert not loss.isfinite(), field


@every_objective
def test_a_step_without_tokens_has_no_loss_and_one_of_a_single_token_has_one(name: str) -> None:
    assert build(name)(any_step(0, [0, 0])).loss == 0
    assert build(name)(any_step(0, [1], reach=EXTREME)).loss.isfinite()


@every_objective
def test_what_it_needs_and_does_not_get_is_named(name: str) -> None:
    objective = build(name)
    for field in objective.needs:
        without: dict[str, Any] = {field: None}
        with pytest.raises(ValueError, match=field):
            objective(dataclasses.replace(any_step(0, LENGTHS), **without))

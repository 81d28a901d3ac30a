"""P3O: closed forms, identities, invariance to how a step is cut."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objective.aggregation import sequence_mean
from learner.objective.core import Step, piece_loss
from learner.objective.ess import weight_sums
from learner.objective.kl import KlEstimator
from learner.objective.p3o import p3o
from learner.objective.p4o import p4o
from learner.objective.registry import build
from tests.learner.objective.any_step import cast
from tests.learner.objective.steps import assert_matches, assert_same, on_policy, random_step

estimators = pytest.mark.parametrize("estimator", ["unbiased", "k3"])


def example(n: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    behavior = -3 * torch.rand(n, generator=generator, dtype=torch.float64)
    policy = behavior + spread * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), behavior, advantages


def step_of(policy: Tensor, behavior: Tensor, advantages: Tensor) -> Step:
    """One completion a token."""
    every = torch.arange(len(policy))
    return Step(policy.detach(), behavior, advantages, every, every, advantages)


def loss_and_gradient(
    policy: Tensor, behavior: Tensor, advantages: Tensor, estimator: KlEstimator = "unbiased"
) -> tuple[Tensor, Tensor]:
    token_loss = p3o(step_of(policy, behavior, advantages), kl_estimator=estimator)
    loss = piece_loss(token_loss, slice(None), policy)
    torch.testing.assert_close(loss, token_loss.loss, rtol=1e-12, atol=1e-12, equal_nan=True)
    return loss, torch.autograd.grad(loss, policy)[0]


@estimators
def test_value_and_gradient_of_two_tokens_by_hand(estimator: KlEstimator) -> None:
    """Ratios 2 and 1/2: sum 5/2, sum of squares 17/4, so ess = (25/4) / (2 * 17/4) = 25/34.

    Score weights: min(2, 25/34) = 25/34 and min(1/2, 25/34) = 1/2. KL weight 9/34.
    unbiased: values 2 ln 2 - 1 and 1/2 - (ln 2)/2; slopes 2 ln 2 and -(ln 2)/2.
    k3: values ln 2 - 1/2 and 1 - ln 2; slopes 1/2 and -1.
    """
    log2 = math.log(2)
    behavior = torch.tensor([-2.0, -1.0], dtype=torch.float64)
    policy = (behavior + torch.tensor([log2, -log2], dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([1.0, -3.0], dtype=torch.float64)
    values, slopes = {
        "unbiased": ((2 * log2 - 1, 0.5 - log2 / 2), (2 * log2, -log2 / 2)),
        "k3": ((log2 - 0.5, 1 - log2), (0.5, -1.0)),
    }[estimator]
    loss, gradient = loss_and_gradient(policy, behavior, advantages, estimator)
    lp = policy.tolist()
    expected = (-25 / 34 * 1 * lp[0] + 0.5 * 3 * lp[1] + 9 / 34 * sum(values)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert gradient[0].item() == pytest.approx((-25 / 34 + 9 / 34 * slopes[0]) / 2, rel=1e-12)
    assert gradient[1].item() == pytest.approx((1.5 + 9 / 34 * slopes[1]) / 2, rel=1e-12)


@estimators
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.1, 1, 2])
def test_value_and_gradient_are_those_of_the_papers_loss(seed: int, spread: float, estimator: KlEstimator) -> None:
    step = random_step(seed, spread=spread)
    behavior = step.behavior_logprobs

    def paper(policy: Tensor) -> Tensor:
        ratio = (policy - behavior).exp()
        ess = (ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())).detach()
        d = policy - behavior
        kl = ratio * d - ratio + 1 if estimator == "unbiased" else d + 1 / ratio - 1
        return (-torch.minimum(ratio, ess).detach() * step.advantages * policy + (1 - ess) * kl).mean()

    assert_matches(step, p3o(step, kl_estimator=estimator), paper)


@estimators
def test_on_policy_data_gives_the_reinforce_gradient(estimator: KlEstimator) -> None:
    policy, _, advantages = example(50)
    loss, gradient = loss_and_gradient(policy, policy.detach().clone(), advantages, estimator)
    torch.testing.assert_close(gradient, -advantages / 50, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, -(advantages * policy).mean(), rtol=1e-10, atol=0)


@estimators
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 1000))
def test_cutting_a_step_changes_neither_loss_nor_gradient(estimator: KlEstimator, cuts: list[int], seed: int) -> None:
    policy, behavior, advantages = example(60, seed)
    whole, gradient = loss_and_gradient(policy, behavior, advantages, estimator)
    bounds = [0, *sorted(cuts), 60]
    pieces = [slice(a, b) for a, b in pairwise(bounds)]  # empty ones included
    token_loss = p3o(step_of(policy, behavior, advantages), kl_estimator=estimator)
    losses = [piece_loss(token_loss, piece, policy[piece]) for piece in pieces]
    total = torch.stack(losses).sum()
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, policy)[0], gradient, rtol=1e-10, atol=1e-12)


def test_permutation_changes_nothing() -> None:
    policy, behavior, advantages = example(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    whole, gradient = loss_and_gradient(policy, behavior, advantages)
    shuffled = policy.detach()[order].requires_grad_()
    permuted, permuted_gradient = loss_and_gradient(shuffled, behavior[order], advantages[order])
    torch.testing.assert_close(permuted, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=1e-15)


def test_the_score_weight_of_a_high_ratio_token_is_ess_and_never_zero() -> None:
    behavior = torch.full((10,), -5.0, dtype=torch.float64)
    policy = behavior.clone()
    policy[0] += 4
    policy.requires_grad_()
    advantages = torch.zeros(10, dtype=torch.float64)
    _, without = loss_and_gradient(policy, behavior, advantages)
    advantages[0] = 1.0
    _, gradient = loss_and_gradient(policy, behavior, advantages)
    ess = weight_sums(policy - behavior).ess.item()
    assert (without[0] - gradient[0]).item() * 10 == pytest.approx(ess, rel=1e-10)


def test_masked_positions_may_hold_anything() -> None:
    """Flat trained tokens mean that masked positions never enter: selection gives them a gradient of zero."""
    policy, behavior, advantages = example(12)
    mask = torch.tensor([True, False] * 6)
    dirty_policy = torch.where(mask, policy.detach(), torch.nan).requires_grad_()
    dirty_behavior = torch.where(mask, behavior, -torch.inf)
    clean, _ = loss_and_gradient(policy[mask], behavior[mask], advantages[mask])
    dirty_step = step_of(dirty_policy[mask], dirty_behavior[mask], advantages[mask])
    dirty = piece_loss(p3o(dirty_step), slice(None), dirty_policy[mask])
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(dirty, dirty_policy)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


@estimators
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_non_finite_log_prob_makes_the_loss_non_finite(estimator: KlEstimator, broken: float) -> None:
    policy, behavior, advantages = example(8)
    behavior[3] = broken
    loss, _ = loss_and_gradient(policy, behavior, advantages, estimator)
    assert not torch.isfinite(loss)


def test_smaller_scopes_use_the_ess_of_their_own_tokens() -> None:
    policy, behavior, advantages = example(60)
    by_twenty = torch.arange(60) // 20
    step = Step(policy.detach(), behavior, advantages, by_twenty, torch.zeros(3).long(), torch.zeros(3), by_twenty)
    for scope in ("micro_batch", "completion"):
        weight = p3o(step, ess_scope=scope).weight
        for part in range(3):
            mine = by_twenty == part
            ess = weight_sums(step.log_ratio[mine]).ess
            torch.testing.assert_close(weight[mine], torch.minimum(step.log_ratio[mine].exp(), ess))


def test_the_step_scale_is_a_statistic_of_whole_completions_and_1_on_fresh_data() -> None:
    policy, behavior, advantages = example(60)
    of = torch.arange(60) // 20
    step = Step(policy.detach(), behavior, advantages, of, torch.zeros(3).long(), torch.zeros(3))
    ratios = torch.stack([step.log_ratio[of == i].sum().exp() for i in range(3)])
    ess = (ratios.sum() ** 2 / (3 * (ratios**2).sum())).item()
    assert float(p3o(step, step_scale="sequence_ess").step_factor) == pytest.approx(ess)
    root = p3o(step, step_scale="sqrt_sequence_ess").step_factor
    assert float(root) == pytest.approx(math.sqrt(ess))
    assert p3o(step).step_factor == 1.0
    fresh = Step(policy.detach(), policy.detach(), advantages, of, torch.zeros(3).long(), torch.zeros(3))
    assert float(p3o(fresh, step_scale="sequence_ess").step_factor) == pytest.approx(1)


@pytest.mark.parametrize("name", ["p3o", "p4o"])
@pytest.mark.parametrize("spread", [1e-5, 1e-4, 1e-2])
@estimators
def test_the_pull_keeps_its_digits_in_float32_where_the_policy_has_hardly_moved(
    name: str, spread: float, estimator: KlEstimator
) -> None:
    """1 - ess is about spread^2 there: 1e-8 is less than what float32 can tell from 1."""
    step = random_step(0, spread=spread)
    step = dataclasses.replace(step, advantages=torch.zeros_like(step.advantages))
    single, objective = cast(step, torch.float32), build(name, {"kl_estimator": estimator})
    rounded = objective(single)
    exact = objective(cast(single, torch.float64))
    assert rounded.slope.dtype == torch.float32
    assert (exact.slope != 0).any()
    torch.testing.assert_close(rounded.slope.double(), exact.slope, rtol=1e-5, atol=0)
    torch.testing.assert_close(rounded.value.double(), exact.value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["p3o", "p4o"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_on_policy_nothing_is_cut_however_many_tokens_there_are(name: str, dtype: torch.dtype) -> None:
    """The ESS of n ratios of 1 is 1 but for rounding, for n = 5, 7, 8 and others not exactly."""
    for n in range(1, 401):
        step = cast(on_policy(random_step(n, lengths=[n], group=1)), dtype)
        assert not build(name)(step).cut.any(), n


@pytest.mark.parametrize("name", ["p3o", "p4o"])
def test_a_token_is_cut_where_the_cap_took_more_than_a_millionth(name: str) -> None:
    """One ratio of e^d among 100 of 1 less d / 100: ess is 1 up to d^2, so the cap takes about d of the one."""
    for d, cut in ((1e-7, False), (1e-5, True)):
        step = on_policy(random_step(0, lengths=[100], group=1))
        step = dataclasses.replace(step, policy_logprobs=step.policy_logprobs.clone())
        step.policy_logprobs[7] += d
        token_loss = build(name)(step)
        assert token_loss.cut.tolist() == [i == 7 and cut for i in range(100)]


@pytest.mark.parametrize("name", ["p3o", "p4o"])
def test_another_aggregation_weighs_both_terms_and_leaves_the_ess(name: str) -> None:
    step, objective = random_step(3), {"p3o": p3o, "p4o": p4o}[name]
    by_token, by_completion = objective(step), objective(step, aggregation="sequence_mean")
    share = step.tokens * sequence_mean(step)
    assert_same(
        by_completion, dataclasses.replace(by_token, value=share * by_token.value, slope=share * by_token.slope)
    )
    assert by_completion.statistics.keys() == by_token.statistics.keys()

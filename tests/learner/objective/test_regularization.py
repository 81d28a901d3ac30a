"""Entropy and the pull to a reference: exact, of every objective, and nothing at all at weight 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.model import PolicyModel
from learner.objective.core import Step, TokenLoss, piece_loss
from learner.objective.kl import KlEstimator
from learner.objective.registry import OBJECTIVES, build
from learner.objective.regularization import regularized
from learner.objective.reinforce import reinforce
from learner.objectives import Objectives
from tests.learner import stale
from tests.learner.objective.any_step import any_step
from tests.learner.objective.steps import random_step
from tests.learner.one_by_one import logits_one_by_one

ESTIMATORS: tuple[KlEstimator, ...] = ("unbiased", "k3")


def naive_kl(policy: Tensor, behavior: Tensor, ref: Tensor, estimator: KlEstimator) -> Tensor:
    """Of each token, for autograd: the estimators as their formulas stand."""
    d = policy - ref
    if estimator == "k3":
        return d + (-d).exp() - 1
    ratio = (policy - behavior).exp()
    return ratio * d - ratio + (ref - behavior).exp()


def distributions(seed: int, tokens: int, vocabulary: int = 7) -> Tensor:
    """Logits of one distribution for each token."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)


def entropy_of(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("entropy_weight", "ref_kl_weight"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_value_and_gradient_are_those_of_autograd_through_the_whole_distribution(
    estimator: KlEstimator, entropy_weight: float, ref_kl_weight: float
) -> None:
    base = random_step(0)
    logits = distributions(1, base.tokens).requires_grad_()
    ref = torch.log_softmax(distributions(2, base.tokens), -1)[:, 3]
    log_p = torch.log_softmax(logits, -1)
    logprobs, entropy = log_p[:, 3], entropy_of(log_p)
    step = replace(base, policy_logprobs=logprobs.detach(), entropy=entropy.detach(), ref_logprobs=ref)

    score = -(base.advantages * logprobs).mean()
    pull = naive_kl(logprobs, base.behavior_logprobs, ref, estimator).mean()
    expected = score - entropy_weight * entropy.mean() + ref_kl_weight * pull
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)

    found = regularized(
        reinforce(step),
        step,
        entropy_weight=entropy_weight,
        ref_kl_weight=ref_kl_weight,
        ref_kl_estimator=estimator,
    )
    loss = piece_loss(found, slice(None), logprobs, entropy)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient, rtol=1e-10, atol=1e-12)


def every_action(logits: Tensor, behavior_logits: Tensor, ref_logits: Tensor) -> Step:
    """One token for each action of one categorical policy."""
    log_p, log_b, log_ref = (torch.log_softmax(x.detach(), -1) for x in (logits, behavior_logits, ref_logits))
    one = torch.zeros(len(log_p), dtype=torch.int64)
    step = random_step(0, lengths=(len(log_p),))
    return replace(
        step, policy_logprobs=log_p, behavior_logprobs=log_b, ref_logprobs=log_ref, sequence_of=one, group_of=one[:1]
    )


def pull_alone(step: Step, estimator: KlEstimator) -> TokenLoss:
    """Each token's share of the KL to the reference and of nothing else, times n."""
    nothing = torch.zeros_like(step.policy_logprobs)
    zero = TokenLoss(nothing, nothing, nothing, nothing.bool())
    return regularized(zero, step, ref_kl_weight=float(step.tokens), ref_kl_estimator=estimator)


@pytest.mark.parametrize("seed", range(5))
def test_the_unbiased_pull_is_in_expectation_the_kl_to_the_reference_and_its_gradient(seed: int) -> None:
    logits, behavior, ref = distributions(seed, 3)
    logits.requires_grad_()
    log_p, log_ref = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    kl = (log_p.exp() * (log_p - log_ref)).sum()
    (gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    step = every_action(logits, behavior, ref)
    found = pull_alone(step, "unbiased")
    chance = step.behavior_logprobs.exp()  # that this action is the token
    assert (chance * found.value).sum().item() == pytest.approx(kl.item(), rel=1e-10)
    (sampled,) = torch.autograd.grad((chance * found.slope * log_p).sum(), logits)
    torch.testing.assert_close(sampled, gradient, rtol=1e-10, atol=1e-12)


def test_k3_is_not_the_kl_to_the_reference_on_stale_tokens() -> None:
    logits, behavior, ref = distributions(0, 3)
    step = every_action(logits, behavior, ref)
    assert step.ref_logprobs is not None
    kl = (step.policy_logprobs.exp() * (step.policy_logprobs - step.ref_logprobs)).sum().item()
    found = (step.behavior_logprobs.exp() * pull_alone(step, "k3").value).sum().item()
    assert abs(found - kl) > 0.1 * kl


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_both_terms(name: str) -> None:
    step = any_step(0, [3, 1, 4, 2], experts=0.0)
    own = build(name)(step)
    found = build(name, {"entropy_weight": 0.2, "ref_kl_weight": 0.5})(step)
    assert step.entropy is not None
    assert step.ref_logprobs is not None
    kl = naive_kl(step.policy_logprobs, step.behavior_logprobs, step.ref_logprobs, "unbiased")
    expected = own.loss - 0.2 * step.entropy.mean() + 0.5 * kl.mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.weight, own.weight)
    assert torch.equal(found.cut, own.cut)
    added = {"entropy", "entropy_loss", "ref_kl", "kl_weight", "kl_loss"}
    assert found.statistics.keys() == own.statistics.keys() | added
    assert found.statistics["entropy_loss"].item() == pytest.approx(-0.2 * step.entropy.mean().item(), rel=1e-10)
    before = {key: float(own.statistics.get(key, 0)) for key in ("kl_weight", "kl_loss")}
    assert found.statistics["kl_weight"].item() == pytest.approx(before["kl_weight"] + 0.5, rel=1e-10)
    assert found.statistics["kl_loss"].item() == pytest.approx(before["kl_loss"] + 0.5 * kl.mean().item(), rel=1e-10)
    assert found.statistics["ref_kl"].item() == pytest.approx(kl.mean().item(), rel=1e-10)


def test_what_an_expert_wrote_is_no_estimate_of_the_kl() -> None:
    step = any_step(3, [3, 1, 4, 2])
    assert step.expert is not None
    assert 0 < step.expert.sum() < step.tokens
    of_an_expert = replace(step, behavior_logprobs=step.behavior_logprobs.masked_fill(step.expert, torch.nan))
    for estimator in ESTIMATORS:
        found, drawn = pull_alone(of_an_expert, estimator), pull_alone(replace(step, expert=None), estimator)
        for mine, theirs in ((found.value, drawn.value), (found.slope, drawn.slope)):
            assert torch.equal(mine, theirs.masked_fill(step.expert, 0.0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_weight_0_an_objective_is_bit_for_bit_itself_and_needs_nothing_more(name: str) -> None:
    plain, zero = build(name), build(name, {"entropy_weight": 0.0, "ref_kl_weight": 0})
    assert zero.needs == plain.needs
    step = replace(any_step(0, [3, 1, 4, 2]), entropy=None)
    if "ref_logprobs" not in plain.needs:
        step = replace(step, ref_logprobs=None)
    one, other = plain(step), zero(step)
    for field in ("value", "slope", "weight", "cut"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert other.entropy_slope is None
    assert one.statistics.keys() == other.statistics.keys()


@pytest.mark.parametrize(
    ("knobs", "field"),
    [({"entropy_weight": 0.1}, "entropy"), ({"ref_kl_weight": 0.1}, "ref_logprobs")],
)
def test_a_weight_needs_its_field(knobs: dict[str, Any], field: str) -> None:
    objective = build("p3o", knobs)
    assert objective.needs == {field}
    with pytest.raises(ValueError, match=f"needs {field}"):
        objective(replace(random_step(0), entropy=None, ref_logprobs=None))


@pytest.mark.parametrize("knobs", [{"entropy_weight": -0.1}, {"ref_kl_weight": -1}, {"ref_kl_estimator": "k1"}])
def test_what_makes_no_sense_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must be"):
        build("p3o", knobs)


def naive_gradient(policy: PolicyModel, groups: list[Any], estimator: KlEstimator) -> Tensor:
    """Of REINFORCE with entropy .3 and a pull of .2, from the logits of every completion by itself."""
    batch = stale.cut_into(groups, stale.EACH_ALONE)
    given = stale.beyond(batch, torch.float64)
    sizes = [m.trained_tokens for m in batch.micro_batches]
    terms = []
    for m, ref in zip(batch.micro_batches, given["ref_logprobs"].split(sizes), strict=True):
        log_p = torch.log_softmax(logits_one_by_one(policy, m), -1)
        logprobs = log_p.gather(1, m.tokens[:, None])[:, 0]
        kl = naive_kl(logprobs, m.behavior_logprobs, ref, estimator)
        terms.append(-m.advantages * logprobs - 0.3 * entropy_of(log_p) + 0.2 * kl)
    policy.module.zero_grad()
    torch.cat(terms).mean().backward()
    return stale.gradient_of(policy)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("micro_batch_tokens", "pieces"), [(stale.ALL_IN_ONE, 1), (stale.IN_THREE, 3)])
def test_a_models_gradient_is_that_of_the_loss_written_out(
    tiny_folder: Path, estimator: KlEstimator, micro_batch_tokens: int, pieces: int
) -> None:
    groups = stale.stale_groups(stale.load(tiny_folder))
    policy = stale.load(tiny_folder, torch.float64)
    expected = naive_gradient(policy, groups, estimator)
    knobs = {"entropy_weight": 0.3, "ref_kl_weight": 0.2, "ref_kl_estimator": estimator}
    batch = stale.cut_into(groups, micro_batch_tokens)
    assert len(batch.micro_batches) == pieces
    stale.take(policy, batch, Objectives(build("reinforce", knobs)))
    assert (stale.gradient_of(policy) - expected).norm() < 1e-10 * expected.norm()

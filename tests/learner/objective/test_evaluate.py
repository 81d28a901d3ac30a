"""The one call on padded tensors, against the flat functions."""

import math

import pytest
import torch

from learner.objective import evaluate
from learner.objective.core import Step
from learner.objective.p3o import p3o
from learner.objective.registry import OBJECTIVES, build


def padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three completions of 4, 2 and 3 trained tokens; the rest is rubbish."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    policy, behavior = -torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    policy = torch.where(mask, policy, math.nan).requires_grad_()
    return policy, torch.where(mask, behavior, -math.inf), torch.tensor([1.0, -1.0, 0.5]).double(), mask


def test_it_is_the_flat_objective_and_masked_positions_get_no_gradient() -> None:
    policy, behavior, advantages, mask = padded()
    result = evaluate("p3o", policy, behavior, advantages, mask, kl_estimator="k3")
    rows = mask.nonzero()[:, 0]
    step = Step(policy.detach()[mask], behavior[mask], advantages[rows], rows, torch.zeros(3).long(), advantages)
    flat = p3o(step, kl_estimator="k3")
    torch.testing.assert_close(result.loss, flat.loss, rtol=1e-12, atol=1e-12)
    assert 1 / 9 <= result.token_ess <= 1
    assert 1 / 3 <= result.sequence_ess <= 1
    result.loss.backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad[mask], flat.slope, rtol=1e-12, atol=1e-12)
    assert (policy.grad[~mask] == 0).all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_can_be_called_so(name: str) -> None:
    policy, behavior, advantages, mask = padded()
    given = {
        "proximal_logprobs": torch.where(mask, behavior + 0.1, math.nan),
        "preceding_logprobs": torch.where(mask, behavior + 0.2, math.nan),
        "ref_logprobs": torch.where(mask, behavior - 0.1, math.nan),
        "expert": torch.zeros_like(mask),
    }
    result = evaluate(name, policy, behavior, advantages, mask, **given)
    assert torch.isfinite(result.loss)
    (gradient,) = torch.autograd.grad(result.loss, policy)
    assert torch.isfinite(gradient).all()
    assert gradient[mask].abs().sum() > 0


def test_what_does_not_fit_is_refused() -> None:
    policy, behavior, advantages, mask = padded()
    with pytest.raises(ValueError, match=r"must have one shape, \[B, T\]"):
        evaluate("p3o", policy, behavior[:2], advantages, mask)
    with pytest.raises(ValueError, match=r"advantages must be \[B, T\] or \[B\]"):
        evaluate("p3o", policy, behavior, advantages.expand(2, 3), mask)
    with pytest.raises(ValueError, match="no trained token"):
        evaluate("p3o", policy, behavior, advantages, mask & False)
    with pytest.raises(ValueError, match="needs proximal_logprobs, which this step does not have"):
        evaluate("decoupled_ppo", policy, behavior, advantages, mask)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("p4oo", {}, "did you mean p4o"),
        ("zebra", {}, "known: .*cispo.*p3o"),
        ("p3o", {"clip": 0.2}, "has no knob 'clip'; it has: kl_estimator, ess_scope, step_scale"),
        ("p3o", {"kl_estimator": "k9"}, "kl_estimator must be one of unbiased, k3, not 'k9'"),
        ("grpo", {"eps_low": -1}, "eps_low must be float in .*, not -1"),
        ("grpo", {"eps_low": True}, "eps_low must be float in .*, not True"),
        ("grpo", {"eps_low": float("nan")}, "eps_low must be float in .*, not nan"),
    ],
)
def test_unknown_names_and_knobs_are_refused_with_what_is_allowed(
    name: str, knobs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, knobs)

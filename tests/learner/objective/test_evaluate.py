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


def test_groups_may_be_any_integers_and_rewards_any_dtype() -> None:
    policy, behavior, advantages, mask = padded()
    rewards = torch.tensor([1, 0, 3])
    numbered = evaluate("vcpo", policy, behavior, advantages, mask, rewards=rewards, group_of=torch.tensor([0, 0, 1]))
    for groups in (torch.tensor([70, 70, -5]), torch.tensor([9, 9, 2], dtype=torch.int32)):
        other = evaluate("vcpo", policy, behavior, advantages, mask, rewards=rewards.float(), group_of=groups)
        torch.testing.assert_close(other.loss, numbered.loss, rtol=0, atol=0)
    assert numbered.loss.dtype == policy.dtype
    single = evaluate("asymre", policy.float(), behavior.float(), advantages, mask, rewards=rewards.double())
    assert single.token_loss.slope.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_masks_may_be_bool_or_zeros_and_ones(dtype: torch.dtype) -> None:
    policy, behavior, advantages, mask = padded()
    expert = torch.zeros_like(mask)
    expert[2] = True
    result = evaluate("chord", policy, behavior, advantages, mask.to(dtype), expert=expert.to(dtype))
    expected = evaluate("chord", policy, behavior, advantages, mask, expert=expert)
    torch.testing.assert_close(result.loss, expected.loss, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_row_without_a_trained_token_is_fine(name: str) -> None:
    policy, behavior, advantages, mask = padded()
    mask[1] = False
    given = dict.fromkeys(("proximal_logprobs", "preceding_logprobs", "ref_logprobs"), behavior)
    result = evaluate(name, policy, behavior, advantages, mask, **given, expert=torch.zeros_like(mask))
    (gradient,) = torch.autograd.grad(result.loss, policy)
    assert result.loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    policy, behavior, advantages, mask = padded()
    whole = (policy, behavior, advantages, mask)
    with pytest.raises(ValueError, match=r"policy_logprobs must be \[B, T\], not \[3\]"):
        evaluate("p3o", policy[:, 0], behavior, advantages, mask)
    with pytest.raises(ValueError, match=r"behavior_logprobs must have shape \[3, 5\], not \[2, 5\]"):
        evaluate("p3o", policy, behavior[:2], advantages, mask)
    for wrong in (advantages.expand(2, 3), advantages[:2], advantages[0]):
        with pytest.raises(ValueError, match=r"advantages must have shape \[3(, 5)?\], not"):
            evaluate("p3o", policy, behavior, wrong, mask)
    for wrong in (mask * 2, mask * 0.5, torch.where(mask, torch.nan, 0.0)):
        with pytest.raises(ValueError, match="loss_mask must be bool, or 0 and 1 alone"):
            evaluate("p3o", policy, behavior, advantages, wrong)
    for wrong in (torch.zeros(2), torch.zeros(3, 5), torch.zeros(())):
        with pytest.raises(ValueError, match=r"rewards must have shape \[3\], not"):
            evaluate("dapo", *whole, rewards=wrong)
        with pytest.raises(ValueError, match=r"group_of must have shape \[3\], not"):
            evaluate("dapo", *whole, group_of=wrong.long())
    with pytest.raises(ValueError, match=r"group_of must be integers, not torch\.float32"):
        evaluate("dapo", *whole, group_of=torch.zeros(3))
    for name in ("proximal_logprobs", "preceding_logprobs", "ref_logprobs", "entropy", "expert", "replayed"):
        with pytest.raises(ValueError, match=rf"{name} must have shape \[3, 5\], not \[3, 4\]"):
            evaluate("p3o", *whole, **{name: behavior[:, 1:]})
    with pytest.raises(ValueError, match="expert must be bool, or 0 and 1 alone"):
        evaluate("chord", *whole, expert=mask * 3)
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
        ("grpo", {"eps_low": -1}, "eps_low must be a number from 0 to 1, not -1"),
        ("grpo", {"eps_low": True}, "eps_low must be a number from 0 to 1, not True"),
        ("grpo", {"eps_low": float("nan")}, "eps_low must be a number from 0 to 1, not nan"),
    ],
)
def test_unknown_names_and_knobs_are_refused_with_what_is_allowed(
    name: str, knobs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, knobs)

"""Per-token estimators of KL(policy || behavior) from tokens that the behavior policy drew.

With d = policy_logprobs - behavior_logprobs and r = exp(d):

    unbiased   r d - r + 1        gradient  r d       * grad log policy     expectation: KL(policy || behavior)
    k3         d + exp(-d) - 1    gradient  (1 - 1/r) * grad log policy     expectation: chi2(b || pi) - KL(b || pi)

Both are zero at d = 0, convex there with the same curvature, and never negative. They part where it matters: for
r -> infinity the unbiased pull grows as r d while k3's is at most 1; for r -> 0 k3's grows as 1/r without bound
while the unbiased one is at most 1/e.

Source: Schulman, "Approximating KL divergence" (2020) for k1 to k3; the unbiased form is k3 of the reversed pair
under importance weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["unbiased", "k3"]

K3_LINEAR_BELOW = -10.0
"""Below this log ratio k3 goes on along its tangent, so that value and slope stay finite. Clamping the exponent
instead would drop its part of the slope, -1/r, and leave +1: the pull would change its sign."""


def kl_value_and_slope(log_ratio: Tensor, estimator: KlEstimator) -> tuple[Tensor, Tensor]:
    """The estimate and its derivative with respect to policy_logprobs, both detached.

    Args:
        log_ratio: [N], nats, float32 or better.
        estimator: "unbiased" or "k3".

    Returns:
        value [N] in nats and slope [N], so that the gradient is slope * grad policy_logprobs; dtype of log_ratio.
        Within they are float64: near d = 0 the terms of a value cancel but for d^2 / 2.

    Raises:
        ValueError: unknown estimator.
    """
    dtype = log_ratio.dtype
    d = log_ratio.detach().double()
    if estimator == "unbiased":
        ratio = d.exp()
        return (ratio * d - torch.expm1(d)).to(dtype), (ratio * d).to(dtype)
    if estimator == "k3":
        near = d.clamp(min=K3_LINEAR_BELOW)
        slope = -torch.expm1(-near)
        value = near + torch.expm1(-near) + slope * (d - near)
        return value.to(dtype), slope.to(dtype)
    raise ValueError(f"kl_estimator {estimator!r} is none of 'unbiased', 'k3'")


def kl_to(log_ratio: Tensor, d: Tensor, estimator: KlEstimator) -> tuple[Tensor, Tensor]:
    """Estimate of KL(policy || other) from tokens that the behavior policy drew, and its derivative.

        unbiased   r (d - 1) + r exp(-d)     gradient  r d           * grad log policy
        k3         d + exp(-d) - 1           gradient  (1 - exp(-d)) * grad log policy

    with d = policy_logprobs - log other and r = policy / behavior, which weighs the unbiased estimate. With the
    behavior policy as the other one it is `kl_value_and_slope`.

    Args:
        log_ratio: [N], policy - behavior, nats.
        d: [N], policy - other, nats.
        estimator: "unbiased" or "k3".

    Returns:
        value and slope, [N], dtype of log_ratio; within they are float64.

    Raises:
        ValueError: unknown estimator.

    """
    dtype = log_ratio.dtype
    if estimator != "unbiased":
        value, slope = kl_value_and_slope(d, estimator)
        return value.to(dtype), slope.to(dtype)
    log_ratio, d = log_ratio.detach().double(), d.detach().double()
    ratio = log_ratio.exp()
    near = ratio * (d + torch.expm1(-d))  # exp(-d) overflows far from 0, where the ratio may be 0
    far = ratio * (d - 1) + (log_ratio - d).exp()  # cancels near 0
    return torch.where(d.abs() < 1, near, far).to(dtype), (ratio * d).to(dtype)

"""The two forms that most objectives take, for one token each and before aggregation.

weighted score       - sg(weight) A log pi                        slope - weight A
clipped surrogate    - min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)    slope - r A, 0 where clipped

The second is PPO's, arXiv 1707.06347, eq. 7, with its two bounds apart (DAPO, arXiv 2503.14476, eq. 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.core import Step, TokenLoss


@dataclass(frozen=True)
class Surrogate:
    """Of each token, before aggregation; all [n]."""

    value: Tensor
    slope: Tensor  # d value / d log ratio
    weight: Tensor  # what multiplies A * grad log policy
    cut: Tensor  # bool


def finite_or_nan(log_ratio: Tensor) -> Tensor:
    """NaN for what is not finite: a clip would turn an infinite ratio into a number that looks trustworthy."""
    return torch.where(log_ratio.isfinite(), log_ratio, torch.nan)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, eps_low: Tensor | float, eps_high: Tensor | float
) -> Surrogate:
    """PPO's pessimistic clip. log_ratio, advantages: [n]; eps_low, eps_high: numbers or []."""
    ratio = finite_or_nan(log_ratio).exp()
    low, high = (  # in the ratio's dtype from the start: by way of float32, 1.2 would be off by 5e-8
        torch.as_tensor(bound, dtype=ratio.dtype, device=ratio.device) for bound in (1 - eps_low, 1 + eps_high)
    )
    clipped = ratio.clamp(low, high)
    cut = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    weight = torch.where(cut, 0.0, ratio)
    return Surrogate(
        value=-torch.minimum(ratio * advantages, clipped * advantages),
        slope=-weight * advantages,
        weight=weight,
        cut=cut,
    )


def aggregated(surrogate: Surrogate, token_weights: Tensor) -> TokenLoss:
    """The step's loss: the surrogates' sum under these weights, [n]."""
    return TokenLoss(
        value=token_weights * surrogate.value,
        slope=token_weights * surrogate.slope,
        weight=surrogate.weight,
        cut=surrogate.cut,
    )


def weighted_score(step: Step, weight: Tensor, cut: Tensor, token_weights: Tensor) -> TokenLoss:
    """- sg(weight) A log pi, summed under token_weights; all [n]."""
    slope = -token_weights * weight * step.advantages
    return TokenLoss(value=slope * step.policy_logprobs, slope=slope, weight=weight, cut=cut)

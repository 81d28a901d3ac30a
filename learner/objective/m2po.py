"""M2PO: of the tokens that PPO could clip, the largest log ratios are left out until the rest's second moment is small.

    trust region: tokens with (A_t > 0 and ratio_t > 1) or (A_t < 0 and ratio_t < 1)
    M_t  = 0 for the fewest tokens of it, largest log_ratio_t^2 first, that leave
           mean of log_ratio_t^2 over its others <= second_moment;      M_t = 1 for every other token
    loss = -(1/n) sum_t M_t ratio_t A_t

over all n tokens, left out or not; the gradient goes through the ratio, M carries none. Of equal ones the later in
the step goes first.

Source: Zheng et al., "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?",
arXiv 2510.01161, algorithm 1 and its objective; threshold .04. The public code turns the mask into clip bounds, from a
capped instead of a masked mean and never tighter than .3 and .5; the paper's text is what is done here. A log ratio
that is not finite gives NaN: the mask must not hide it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import finite_or_nan


def m2po(
    step: Step,
    *,
    second_moment: Annotated[float, Bounds(0, 1000)] = 0.04,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The M2PO loss of a step.

    Args:
        step: the step's tokens.
        second_moment: the mean of log_ratio^2 that the trust region's tokens may keep, nats^2.
        aggregation: how tokens are averaged: the paper's, or another.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    cut = beyond_second_moment(log_ratio, step.advantages, second_moment)
    weight = torch.where(cut, 0.0, log_ratio.exp())
    surrogate = -token_weights(step, aggregation) * weight * step.advantages
    return TokenLoss(value=surrogate, slope=surrogate, weight=weight, cut=cut)


def beyond_second_moment(log_ratio: Tensor, advantages: Tensor, limit: float) -> Tensor:
    """Which tokens are left out: [n], bool."""
    trust_region = log_ratio * advantages > 0
    squares = torch.where(trust_region, log_ratio.double() ** 2, torch.inf)
    order = squares.argsort(stable=True)  # the trust region first, ascending
    rank = torch.arange(1, len(squares) + 1, device=squares.device)
    kept = squares[order].cumsum(0) / rank <= limit  # running means of ascending values: true, then false
    beyond = torch.empty_like(trust_region)
    beyond[order] = ~kept
    return beyond & trust_region

"""MinPRO: a token's ratio times the smallest ratio before it, in place of the product of the whole prefix.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    m_t  = min of r_u over the tokens u of the same completion before t; 1 for the first
    loss = - (1/n) sum_t sg(clip(m_t r_t, 1 - eps_low, 1 + eps_high)) A_t policy_logprobs_t

Source: Lei, Cheng, Tao, "A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization", arXiv 2601.22718, its
objective: CISPO's stopped and clipped weight, with m_t r_t in the place of the token's ratio. The paper's own text
could not be read; the equation is that of a public survey which writes it out. Its eps were not found: the defaults
are CISPO's here, no lower bound (one would lift again what the prefix has lowered) and a weight of at most 5.
Deviation: the equation divides by the tokens of each prompt's group, here the step's tokens are averaged.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import finite_or_nan, weighted_score


def minpro(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 1.0,
    eps_high: Annotated[float, Bounds(0, 1000)] = 4.0,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The MinPRO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        eps_low: the smallest weight of a token is 1 - eps_low.
        eps_high: the largest weight of a token is 1 + eps_high.
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    log_weight = log_ratio + least_before(log_ratio, step.sequence_of)
    weight = log_weight.clamp(max=math.log1p(eps_high)).exp()
    cut = (log_weight > math.log1p(eps_high)) | (weight < 1 - eps_low)
    return weighted_score(step, weight.clamp(min=1 - eps_low), cut, token_weights(step, aggregation))


def least_before(values: Tensor, sequence_of: Tensor) -> Tensor:
    """The smallest value among the earlier tokens of the same completion, [n]; 0 for the first, NaN after a NaN.

    A scan that doubles its reach: log2(n) passes over all completions at once, whatever their lengths.
    """
    order = sequence_of.argsort(stable=True)
    of = sequence_of[order]
    first = torch.ones_like(of, dtype=torch.bool)
    first[1:] = of[1:] != of[:-1]
    least = torch.where(first, torch.inf, values[order].roll(1))
    reach = 1
    while reach < len(values):
        earlier = torch.where(of[reach:] == of[:-reach], least[:-reach], torch.inf)
        least = torch.cat([least[:reach], torch.minimum(least[reach:], earlier)])
        reach *= 2
    return torch.empty_like(values).index_copy(0, order, torch.where(first, 0.0, least))

"""MinPRO: a token's ratio times the smallest ratio before it, in place of the product of the whole prefix.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    m_t  = min of r_u over the tokens u of the same completion before t; 1 for the first
    loss = - (1/n) sum_t sg(min(m_t r_t, cap)) A_t policy_logprobs_t

Source: "A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization", arXiv 2601.22718, for m_t r_t as the
stand-in for the prefix ratio (its abstract, and public descriptions of the method). Unconfirmed: the paper's full
objective could not be read. The stopped weight, the cap and the mean over tokens are CISPO's, with which it compares;
one public description puts m_t r_t in the place of r_t in GRPO's clipped surrogate.
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
    cap: Annotated[float, Bounds(0, exclusive=True)] = 5.0,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The MinPRO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        cap: the largest weight of a token.
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    log_weight = log_ratio + least_before(log_ratio, step.sequence_of)
    weight = log_weight.clamp(max=math.log(cap)).exp()
    return weighted_score(step, weight, log_weight > math.log(cap), token_weights(step, aggregation))


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

"""CISPO: the importance weight is clipped and stopped, so that no token loses its gradient.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    loss = - (1/n) sum_t sg(clip(r_t, 1 - eps_low, 1 + eps_high)) A_t policy_logprobs_t

Source: MiniMax-M1, arXiv 2506.13585, eq. 4 and 5; ScaleRL, arXiv 2510.13786 (upper side only: truncated importance
sampling under another name). MiniMax sets eps_low so large that there is no lower bound, hence eps_low = 1. It tunes
eps_high; its value was not found, and 4, a weight of at most 5, is a choice made here. Deviation: the
equation divides by the tokens of each prompt's group, here (and in public code) the step's tokens are averaged.
"""

from __future__ import annotations

import math
from typing import Annotated

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import finite_or_nan, weighted_score


def cispo(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 1.0,
    eps_high: Annotated[float, Bounds(0, 1000)] = 4.0,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The CISPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        eps_low: the smallest weight of a token is 1 - eps_low.
        eps_high: the largest weight of a token is 1 + eps_high.
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    ratio = log_ratio.clamp(max=math.log1p(eps_high)).exp()
    cut = (log_ratio > math.log1p(eps_high)) | (ratio < 1 - eps_low)
    return weighted_score(step, ratio.clamp(min=1 - eps_low), cut, token_weights(step, aggregation))

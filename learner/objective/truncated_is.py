"""Truncated importance sampling, AIPO: the policy gradient with its token ratios capped, no other trust region.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    loss = - (1/n) sum_t sg(min(r_t, cap)) A_t policy_logprobs_t

Source: LlamaRL, arXiv 2505.24034, section on AIPO (cap 2 to 10); the truncation is Ionides' (2008) and IMPALA's,
arXiv 1802.01561. Deviation: the paper sums over a completion's tokens (`aggregation: sequence_sum`), here they are
averaged over the step: smaller by n / B of the step. Its baseline is the group's mean: the advantage `group_mean`.
"""

from __future__ import annotations

import math
from typing import Annotated

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import finite_or_nan, weighted_score


def truncated_is(
    step: Step,
    *,
    cap: Annotated[float, Bounds(0.001, 1000)] = 2.0,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The truncated importance sampling loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        cap: the largest weight of a token.
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    weight = log_ratio.clamp(max=math.log(cap)).exp()
    return weighted_score(step, weight, log_ratio > math.log(cap), token_weights(step, aggregation))

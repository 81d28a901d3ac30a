"""TOPR: what was good is learned as it stands, what was bad only as far as the policy would still do it.

    r_i  = exp(sum_{t in o_i} (policy_logprobs_t - behavior_logprobs_t))      the whole completion's ratio
    a_t  = min(r_i, 1) where A_t < 0, else 1
    loss = - (1/B) sum_i (1/|o_i|) sum_{t in o_i} sg(a_t) A_t policy_logprobs_t

Source: Tapered Off-Policy REINFORCE, arXiv 2503.14286, eq. 7 and 8 with the canonical limits (a- = 0, others 1);
divided by the completion's length as in its section 4.1. Deviation: the paper's sign is that of the reward minus a
fixed baseline, here that of the advantage. verl's version takes the geometric mean of the ratios; the paper's is
their product.
"""

from __future__ import annotations

import torch

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Step, TokenLoss, sequence_sum
from learner.objective.surrogates import finite_or_nan, weighted_score


def topr(step: Step, *, aggregation: Aggregation = "sequence_mean") -> TokenLoss:
    """The TOPR loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        aggregation: the paper's experiments', or another; its equations sum over a completion.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = sequence_sum(finite_or_nan(step.log_ratio), step)[step.sequence_of]
    negative = step.advantages < 0
    log_taper = torch.where(negative, log_ratio.clamp(max=0), 0 * log_ratio)  # 0 * NaN stays NaN
    return weighted_score(step, log_taper.exp(), negative & (log_ratio > 0), token_weights(step, aggregation))

"""GSPO: PPO's clip on one ratio for a whole completion, the geometric mean of its tokens' ratios.

    s_i  = exp((1/|o_i|) sum_{t in o_i} (policy_logprobs_t - behavior_logprobs_t))
    loss = (1/B) sum_i (1/|o_i|) sum_{t in o_i} - min(s_i A_t, clip(s_i, 1 - eps_low, 1 + eps_high) A_t)

A token's slope is that of GSPO-token (eq. 13 and 14: s_i as a value, the token's own log-prob as the gradient),

    - s_i A_t / (B |o_i|),  0 where clipped,

which for one advantage per completion is GSPO itself (eq. 5 to 7): there d s_i / d policy_logprobs_t = s_i / |o_i|.

Source: arXiv 2507.18071; eps 3e-4 and 4e-4 from its experiments.
"""

from __future__ import annotations

from typing import Annotated

from learner.objective.aggregation import sequence_mean
from learner.objective.core import Bounds, Step, TokenLoss, sequence_sum
from learner.objective.surrogates import aggregated, clipped_surrogate


def gspo(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 3e-4,
    eps_high: Annotated[float, Bounds(0, 1000)] = 4e-4,
) -> TokenLoss:
    """The GSPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions, empty ones left out of B.
        eps_low: a completion's ratio below 1 - eps_low has no gradient where A < 0.
        eps_high: a completion's ratio above 1 + eps_high has no gradient where A > 0.

    """
    mean_log_ratio = (sequence_sum(step.log_ratio, step) / step.tokens_of)[step.sequence_of]
    surrogate = clipped_surrogate(mean_log_ratio, step.advantages, eps_low, eps_high)
    return aggregated(surrogate, sequence_mean(step))

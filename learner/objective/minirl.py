"""MiniRL: REINFORCE weighted by the ratio to the behavior policy, masked by the ratio to the proximal one.

    ratio_t = exp(policy_logprobs_t - behavior_logprobs_t),  q_t = exp(policy_logprobs_t - proximal_logprobs_t)
    M_t     = 0 where (A_t > 0 and q_t > 1 + eps_high) or (A_t < 0 and q_t < 1 - eps_low), else 1
    loss    = -(1/B) sum_t M_t sg(min(ratio_t, cap)) A_t policy_logprobs_t

over B completions: their tokens are summed, not averaged, since dividing by a length breaks the first-order
approximation that the method rests on. A = reward - mean of the group (advantage `group_mean`).

Source: Zheng et al., "Stabilizing Reinforcement Learning with LLMs: Formulation and Practices", arXiv 2512.01374,
section 3 (objective and mask); eps .2 and .27, ratio truncated at 5. The weight is the whole ratio, mismatch of the
engines times staleness, not proximal over behavior alone. A log-prob that is not finite gives NaN.
"""

from __future__ import annotations

from typing import Annotated

import torch

from learner.objective.aggregation import fixed_length
from learner.objective.core import Bounds, Step, TokenLoss, needs
from learner.objective.surrogates import finite_or_nan, weighted_score


@needs("proximal_logprobs")
def minirl(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 0.2,
    eps_high: Annotated[float, Bounds(0, 1000)] = 0.27,
    cap: Annotated[float, Bounds(0.001, 1000)] = 5.0,
) -> TokenLoss:
    """The MiniRL loss of a step.

    Args:
        step: the step's tokens.
        eps_low: how far below 1 the ratio to the proximal policy may be where the advantage is negative.
        eps_high: how far above 1 it may be where the advantage is positive.
        cap: the greatest weight of a token.

    """
    assert step.proximal_logprobs is not None, "declared as needed"
    q = finite_or_nan(step.policy_logprobs - step.proximal_logprobs).exp()
    ratio = finite_or_nan(step.log_ratio).exp()
    masked = ((step.advantages > 0) & (q > 1 + eps_high)) | ((step.advantages < 0) & (q < 1 - eps_low))
    weight = torch.where(masked & ~ratio.isnan(), 0.0, ratio.clamp(max=cap))
    weight = torch.where(q.isnan(), torch.nan, weight)
    return weighted_score(step, weight, masked | (ratio > cap), fixed_length(step, 1))

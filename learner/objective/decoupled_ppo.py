"""Decoupled PPO: the trust region is around a recent policy, the correction for old data apart from it.

    w_t  = exp(proximal_logprobs_t - behavior_logprobs_t)      a constant: the snapshot is frozen
    q_t  = exp(policy_logprobs_t - proximal_logprobs_t)
    loss = (1/n) sum_t - min(w_t, cap) min(q_t A_t, clip(q_t, 1 - eps_low, 1 + eps_high) A_t)

Source: Hilton, Cobbe, Schulman, "Batch size-invariance for policy optimization", arXiv 2110.00641; for
language models AReaL, arXiv 2505.24298. Deviation: neither equation has a cap; AReaL's code has one of 5 and, unless
told otherwise, drops the tokens above it (`over_cap: drop`); its other mode truncates them, as here by default.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss, needs
from learner.objective.surrogates import Surrogate, aggregated, clipped_surrogate, finite_or_nan

OverCap = Literal["truncate", "drop"]


@needs("proximal_logprobs")
def decoupled_ppo(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 0.2,
    eps_high: Annotated[float, Bounds(0, 1000)] = 0.2,
    cap: Annotated[float, Bounds(1, 1000)] = 5.0,
    over_cap: OverCap = "truncate",
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The decoupled PPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions; needs proximal_logprobs.
        eps_low: a ratio to the snapshot below 1 - eps_low has no gradient where A < 0.
        eps_high: a ratio to the snapshot above 1 + eps_high has no gradient where A > 0.
        cap: the largest ratio of snapshot to behavior policy.
        over_cap: what becomes of a token above it: weight `cap`, or none (it still counts in the mean).
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: an unknown choice.

    """
    assert step.proximal_logprobs is not None, "declared as needed"
    log_w = finite_or_nan(step.proximal_logprobs - step.behavior_logprobs)
    over = log_w > math.log(cap)
    w = log_w.clamp(max=math.log(cap)).exp()
    if over_cap == "drop":
        w = torch.where(over, 0.0, w)
    elif over_cap != "truncate":
        raise ValueError(f"over_cap {over_cap!r} is none of 'truncate', 'drop'")
    inner = clipped_surrogate(step.policy_logprobs - step.proximal_logprobs, step.advantages, eps_low, eps_high)
    outer = Surrogate(w * inner.value, w * inner.slope, w * inner.weight, inner.cut | over)
    return aggregated(outer, token_weights(step, aggregation))

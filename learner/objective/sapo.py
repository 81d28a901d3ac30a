"""SAPO: a soft gate instead of a clip; far from the behavior policy the gradient fades and never stops at an edge.

    r_t   = exp(policy_logprobs_t - behavior_logprobs_t)
    f_t   = (4 / tau) sigmoid(tau (r_t - 1)),   tau = tau_positive where A_t > 0, else tau_negative
    loss  = - (1/B) sum_i (1/|o_i|) sum_{t in o_i} f_t A_t
    slope = - 4 p_t (1 - p_t) r_t A_t / (B |o_i|),   p_t = sigmoid(tau (r_t - 1)):  at r = 1 exactly REINFORCE's

Source: Soft Adaptive Policy Optimization, arXiv 2511.20347, eq. 5 and 6; tau 1.0 and 1.05 from its experiments.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch.nn.functional import logsigmoid

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import Surrogate, aggregated, finite_or_nan


def sapo(
    step: Step,
    *,
    tau_positive: Annotated[float, Bounds(0.001, 100)] = 1.0,
    tau_negative: Annotated[float, Bounds(0.001, 100)] = 1.05,
    aggregation: Aggregation = "sequence_mean",
) -> TokenLoss:
    """The SAPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        tau_positive: how sharply the gate closes where A > 0.
        tau_negative: the same where A <= 0.
        aggregation: the paper's, or another; see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    log_ratio = finite_or_nan(step.log_ratio)
    tau = torch.full_like(log_ratio, tau_negative).masked_fill(step.advantages > 0, tau_positive)
    gate = tau * torch.expm1(log_ratio)
    # In log space: p (1 - p) r is 0 * inf where r overflows, its limit 0.
    weight = (math.log(4) + logsigmoid(gate) + logsigmoid(-gate) + log_ratio).exp()
    value = -4 / tau * gate.sigmoid() * step.advantages
    surrogate = Surrogate(value, -weight * step.advantages, weight, torch.zeros_like(weight, dtype=torch.bool))
    return aggregated(surrogate, token_weights(step, aggregation))

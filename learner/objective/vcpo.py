"""VCPO: truncated importance sampling of completions, a least-variance baseline, a step as long as the ESS allows.

    w_i    = exp(sum of completion i's log ratios)
    b_G    = sum_{i in G} w_i^2 g_i^2 R_i / sum_{i in G} w_i^2 g_i^2          for every group G, w untruncated
    loss   = - aggregate_t sg(min(w_i, cap)) (R_i - b_G) policy_logprobs_t
    factor = sqrt(min(1, ess / on_policy_ess)),  ess = ESS of the untruncated w over the step's completions

g_i is the norm of grad log policy(completion i), which only a backward pass of its own per completion could tell. It
is replaced by a declared proxy:

    one_minus_prob   g_i^2 = sum_t (1 - p_t)^2, p_t = exp(policy_logprobs_t): the logit of the token that was drawn
    length           g_i^2 = tokens: every token's gradient of one size, and uncorrelated
    none             g_i^2 = 1

Where a group's weights are all zero (no tokens, or every token certain) its baseline is the mean reward.

Source: Huang et al., "Stable Asynchrony: Variance-Controlled Off-Policy RL for LLMs", arXiv 2602.17616: step size
eq. 5, baseline section 3.3, truncation at 8 section 3.5; aggregation as in the public code's scripts (completions
alike), which also divide by the group's standard deviation of rewards (n in its denominator): `divide_by_std`.
Deviation: the proxy. Groups of one have advantage 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss, sequence_sum
from learner.objective.ess import sequence_log_ratios, weight_sums
from learner.objective.surrogates import finite_or_nan

GradientProxy = Literal["one_minus_prob", "length", "none"]


def vcpo(
    step: Step,
    *,
    cap: Annotated[float, Bounds(0.001, 1000)] = 8.0,
    gradient_proxy: GradientProxy = "one_minus_prob",
    on_policy_ess: Annotated[float, Bounds(0.001, 1)] = 1.0,
    divide_by_std: bool = False,
    aggregation: Aggregation = "sequence_mean",
) -> TokenLoss:
    """The VCPO loss of a step, from its rewards: the step's advantages are not read.

    Args:
        step: the step's tokens.
        cap: the greatest weight of a completion.
        gradient_proxy: what stands for the norm of a completion's gradient.
        on_policy_ess: the ESS, as a share of the completions, that fresh data has: the step is whole from there on.
        divide_by_std: whether R - b is divided by the standard deviation of the group's rewards, where not 0.
        aggregation: how tokens are averaged.

    Raises:
        ValueError: an unknown proxy.

    """
    log_w = sequence_log_ratios(finite_or_nan(step.log_ratio), step.sequence_of, step.sequences)
    baseline = group_baseline(step, 2 * log_w + log_squared_gradient(step, gradient_proxy))
    advantages = step.rewards.double() - baseline[step.group_of]
    if divide_by_std:
        std = _group_std(step)[step.group_of]
        advantages = advantages / torch.where(std > 1e-8, std, 1.0)
    ratio = log_w.exp()
    weight = ratio.clamp(max=cap)
    dtype = step.policy_logprobs.dtype
    ess = weight_sums(log_w).ess
    slope = -token_weights(step, aggregation) * (weight * advantages).to(dtype)[step.sequence_of]
    return TokenLoss(
        value=slope * step.policy_logprobs,
        slope=slope,
        weight=weight.to(dtype)[step.sequence_of],
        cut=(ratio > cap)[step.sequence_of],
        step_factor=(ess / on_policy_ess).clamp(max=1.0).sqrt(),
        statistics={"sequence_ess": ess, "baseline": baseline[step.group_of].mean()},
    )


def log_squared_gradient(step: Step, proxy: GradientProxy) -> Tensor:
    """Log of what stands for the squared norm of each completion's gradient: [B], float64."""
    if proxy == "none":
        return step.rewards.new_zeros(step.sequences, dtype=torch.float64)
    if proxy == "length":
        return step.tokens_of.double().log()
    if proxy == "one_minus_prob":
        return sequence_sum(torch.expm1(step.policy_logprobs.double()) ** 2, step).log()
    raise ValueError(f"gradient_proxy {proxy!r} is none of 'one_minus_prob', 'length', 'none'")


def group_baseline(step: Step, log_weights: Tensor) -> Tensor:
    """The weighted mean reward of each group: [B], float64, of which the first ones are groups.

    Args:
        step: the step.
        log_weights: [B], nats; -inf is a weight of zero.

    """
    zeros = log_weights.new_zeros(step.sequences)
    greatest = (zeros - torch.inf).scatter_reduce(0, step.group_of, log_weights, "amax")[step.group_of]
    weights = torch.where(greatest == -torch.inf, 0.0, log_weights - greatest).exp()
    total = zeros.index_add(0, step.group_of, weights)
    return zeros.index_add(0, step.group_of, weights * step.rewards.double()) / total


def _group_std(step: Step) -> Tensor:
    """Standard deviation of each group's rewards, n in the denominator: [B], float64."""
    rewards = step.rewards.double()
    zeros = torch.zeros_like(rewards)
    size = zeros.index_add(0, step.group_of, torch.ones_like(rewards))
    mean = zeros.index_add(0, step.group_of, rewards) / size
    centered = rewards - mean[step.group_of]
    return (zeros.index_add(0, step.group_of, centered**2) / size).sqrt()

"""OPMD, AsymRE and Kimi's policy mirror descent: REINFORCE on the behavior's tokens, no ratio, and a term of restraint.

    opmd       -A_t policy_logprobs_t / (1 + tau)
    asymre     -(reward - mean of the group - shift) policy_logprobs_t              shift < 0: a lower baseline
    kimi_pmd   -A_t policy_logprobs_t + coefficient * departure_t^2

each aggregated over tokens; A = reward - mean of the group (advantage `group_mean`). The departure is the token's
log_ratio_t or, where `departure` is "sequence", its completion's L_i = sum of log_ratio_t: L_i^2 once per completion,
of which a token's share is L_i log_ratio_t. All that is written is differentiated. A lower baseline is the same as
adding shift * policy_logprobs_t: imitation of the behavior policy, whatever the reward.

Sources: opmd: Pan et al., "Trinity-RFT", arXiv 2505.17826 (its one-step simplification of online mirror
descent), tau 1. asymre: Arnal et al., "Asymmetric REINFORCE for off-Policy Reinforcement Learning", arXiv 2506.20520,
section 5, baseline shift -.1. kimi_pmd: Kimi k1.5, arXiv 2501.12599 (per completion; coefficient tau / 2),
and Yao et al., arXiv 2509.24203, whose public code squares the token's log ratio, coefficient .1, and reads all three
as regularized REINFORCE. That code averages over tokens, which is the default; the papers' log policy(y) is a
completion's sum: aggregation `sequence_sum`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss, sequence_sum
from learner.objective.surrogates import weighted_score

Departure = Literal["token", "sequence"]


def opmd(
    step: Step,
    *,
    tau: Annotated[float, Bounds(0, 1000)] = 1.0,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The OPMD loss of a step.

    Args:
        step: the step's tokens.
        tau: strength of the mirror descent's KL; 0 is REINFORCE.
        aggregation: how tokens are averaged.

    """
    weight = torch.full_like(step.policy_logprobs, 1 / (1 + tau))
    uncut = torch.zeros_like(weight, dtype=torch.bool)
    return weighted_score(step, weight, uncut, token_weights(step, aggregation))


def asymre(
    step: Step,
    *,
    baseline_shift: Annotated[float, Bounds(-100, 100)] = -0.1,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The AsymRE loss of a step, from its rewards: the step's advantages are not read.

    Args:
        step: the step's tokens.
        baseline_shift: added to the mean reward of the group, in units of reward.
        aggregation: how tokens are averaged.

    """
    zeros = step.rewards.new_zeros(step.sequences)
    size = zeros.index_add(0, step.group_of, torch.ones_like(step.rewards))
    mean = zeros.index_add(0, step.group_of, step.rewards) / size
    advantages = (step.rewards - mean[step.group_of] - baseline_shift)[step.sequence_of]
    advantages = advantages.to(step.policy_logprobs.dtype)
    slope = -token_weights(step, aggregation) * advantages
    ones = torch.ones_like(slope)
    return TokenLoss(slope * step.policy_logprobs, slope, ones, torch.zeros_like(ones, dtype=torch.bool))


def kimi_pmd(
    step: Step,
    *,
    coefficient: Annotated[float, Bounds(0, 100)] = 0.1,
    departure: Departure = "token",
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The loss of a step under Kimi's policy mirror descent.

    Args:
        step: the step's tokens.
        coefficient: of the squared departure from the behavior policy.
        departure: whose log ratio is squared, the token's or its completion's.
        aggregation: how tokens are averaged.

    Raises:
        ValueError: an unknown departure.

    """
    if departure not in {"token", "sequence"}:
        raise ValueError(f"departure {departure!r} is none of 'token', 'sequence'")
    log_ratio = step.log_ratio
    departed = sequence_sum(log_ratio, step)[step.sequence_of] if departure == "sequence" else log_ratio
    mean = token_weights(step, aggregation)
    ones = torch.ones_like(log_ratio)
    return TokenLoss(
        value=mean * (-step.advantages * step.policy_logprobs + coefficient * departed * log_ratio),
        slope=mean * (-step.advantages + 2 * coefficient * departed),
        weight=ones,
        cut=torch.zeros_like(ones, dtype=torch.bool),
        statistics={"departure": (departed * log_ratio).mean()},
    )

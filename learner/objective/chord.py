"""CHORD: GRPO on the policy's own completions and supervised learning on an expert's, in one loss.

    grpo   = -(1/n_own)    sum_{own t}    min(ratio_t A_t, clip(ratio_t, 1 - eps_low, 1 + eps_high) A_t)
    expert = -(1/n_expert) sum_{expert t} sg(p_t (1 - p_t)) policy_logprobs_t,       p_t = exp(policy_logprobs_t)
    loss   = (1 - mu) grpo + mu expert

The factor p (1 - p) is greatest where the policy is undecided: what it already says and what it would never say
move it least. A kind of token that the step does not have contributes nothing; expert tokens' advantages and behavior
log-probs are not read.

Source: Zhang et al., "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement
Learning via Dynamic Weighting", arXiv 2508.11408 (CHORD-phi), mu .1, eps .2; the sg on the factor is the
public code's (Trinity-RFT). CHORD-mu's decay of mu over training is the caller's: a schedule of this knob. A log
ratio of an own token that is not finite gives NaN.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from learner.objective.core import Bounds, Step, TokenLoss, needs
from learner.objective.surrogates import clipped_surrogate


@needs("expert")
def chord(
    step: Step,
    *,
    mu: Annotated[float, Bounds(0, 1)] = 0.1,
    eps_low: Annotated[float, Bounds(0, 1)] = 0.2,
    eps_high: Annotated[float, Bounds(0, 1000)] = 0.2,
    expert_weight: Literal["undecided", "one"] = "undecided",
) -> TokenLoss:
    """The CHORD loss of a step.

    Args:
        step: the step's tokens.
        mu: the expert's part of the loss.
        eps_low: how far below 1 the ratio may be where the advantage is negative.
        eps_high: how far above 1 it may be where the advantage is positive.
        expert_weight: of an expert's token: p (1 - p), as in CHORD-phi, or 1, as in CHORD-mu.

    Raises:
        ValueError: an unknown weight.

    """
    assert step.expert is not None, "declared as needed"
    if expert_weight not in {"undecided", "one"}:
        raise ValueError(f"expert_weight {expert_weight!r} is none of 'undecided', 'one'")
    expert = step.expert
    log_ratio = torch.where(expert, 0.0, step.log_ratio)
    own = clipped_surrogate(log_ratio, torch.where(expert, 0.0, step.advantages), eps_low, eps_high)
    p = step.policy_logprobs.exp()
    imitation = -p * -torch.expm1(step.policy_logprobs) if expert_weight == "undecided" else -torch.ones_like(p)
    experts = expert.to(p.dtype).sum()
    own_mean = (1 - mu) / (step.tokens - experts).clamp(min=1)
    expert_mean = mu / experts.clamp(min=1)
    return TokenLoss(
        value=torch.where(expert, expert_mean * imitation * step.policy_logprobs, own_mean * own.value),
        slope=torch.where(expert, expert_mean * imitation, own_mean * own.slope),
        weight=torch.where(expert, 0.0, own.weight),
        cut=own.cut & ~expert,
        statistics={"expert_tokens": experts},
    )

"""P3O: the batch's effective sample size caps the score weight and sets the pull to the behavior policy.

    log_ratio_t = policy_logprobs_t - behavior_logprobs_t,  ratio_t = exp(log_ratio_t)
    ess         = (sum_t ratio_t)^2 / (n sum_t ratio_t^2)
    loss        = (1/n) sum_t [ - sg(min(ratio_t, ess)) A_t policy_logprobs_t + (1 - ess) KL_t(policy || behavior) ]

over the n trained tokens of one optimizer step; sg stops the gradient and ess carries none. On-policy data has
ess 1: the loss is REINFORCE's. There is no clip range and no KL coefficient.

Two phases: `prepare` sees the log ratios of the whole step and gives its ESS; `loss` is then a sum over any
piece of the step, and the pieces' losses and gradients add up to the whole.

Source: Fakoor, Aubry, Stranges, Smola, "Trust the Batch, On- or Off-Policy: Adaptive Policy Optimization for RL
Post-Training", arXiv 2605.12380 (2026). Deviations: the KL estimator is a choice (the paper's code uses k3), the
ESS always covers the whole step (the code's covers a micro-batch), and a non-finite ESS stays non-finite (the
code reads it as 1, fully trusted).
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objective.ess import WeightSums, weight_sums
from learner.objective.kl import KlEstimator, kl_value_and_slope, with_gradient


def prepare(log_ratio: Tensor) -> WeightSums:
    """The step's global statistic from log ratios [n]; merge those of pieces before taking `.ess`."""
    return weight_sums(log_ratio)


def loss(
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    ess: Tensor,
    total_tokens: int,
    kl_estimator: KlEstimator = "unbiased",
) -> Tensor:
    """The P3O loss of some of a step's trained tokens, divided by the number of all of them.

    Args:
        policy_logprobs: [N], nats, with gradient; at the temperature that the tokens were drawn at.
        behavior_logprobs: [N], nats, of the distribution that was sampled.
        advantages: [N].
        ess: [], of the whole step, in (0, 1].
        total_tokens: n, trained tokens of the whole step.
        kl_estimator: see `learner.objective.kl`.

    Returns:
        [], float32 or better; summed over the pieces of a step it is the step's loss.
    """
    logp = policy_logprobs.float() if policy_logprobs.dtype.itemsize < 4 else policy_logprobs
    log_ratio = (logp - behavior_logprobs).detach()
    cap = ess.detach().to(logp.dtype)
    weight = torch.minimum(log_ratio.exp(), cap)
    score = -weight * advantages * logp
    kl = with_gradient(*kl_value_and_slope(log_ratio, kl_estimator), logp)
    return (score + (1 - cap) * kl).sum() / total_tokens

"""P3O: the batch's effective sample size caps the score weight and sets the pull to the behavior policy.

    log_ratio_t = policy_logprobs_t - behavior_logprobs_t,  ratio_t = exp(log_ratio_t)
    ess         = (sum_t ratio_t)^2 / (n sum_t ratio_t^2)
    loss        = (1/n) sum_t [ - sg(min(ratio_t, ess)) A_t policy_logprobs_t + (1 - ess) KL_t(policy || behavior) ]

over the n trained tokens of one optimizer step; sg stops the gradient and ess carries none. On-policy data has
ess 1: the loss is REINFORCE's. There is no clip range and no KL coefficient. With another `aggregation` the 1/n before
the sum, of both terms, becomes that one's weight of the token; the ESS is of the tokens, each counted once, as ever.

1 - ess is taken in float64: in float32 it would be 0, or rounding alone, where the policy has hardly moved. A token is
`cut` where the cap takes more than a millionth of its weight: what rounding leaves of an ESS of 1 cuts nothing.

Source: Fakoor, Aubry, Stranges, Smola, "Trust the Batch, On- or Off-Policy: Adaptive Policy Optimization for RL
Post-Training", arXiv 2605.12380 (2026). Deviations: the KL estimator is a choice (the paper's code uses k3), the
ESS covers the whole step by default (the code's covers a micro-batch), and a non-finite ESS stays non-finite (the
code reads it as 1, fully trusted).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Step, TokenLoss, needs, pulled
from learner.objective.ess import segment_weight_sums, sequence_log_ratios, weight_sums
from learner.objective.kl import KlEstimator, kl_value_and_slope

EssScope = Literal["step", "micro_batch", "completion"]
StepScale = Literal["none", "sqrt_sequence_ess", "sequence_ess"]

CUT_FROM = 1e-6
"""The part of a weight that the cap must take for the token to count as cut."""


@needs("micro_batch_of", when=lambda knobs: knobs["ess_scope"] == "micro_batch")
def p3o(
    step: Step,
    *,
    kl_estimator: KlEstimator = "unbiased",
    ess_scope: EssScope = "step",
    step_scale: StepScale = "none",
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The P3O loss of a step.

    Args:
        step: the step's tokens.
        kl_estimator: see `learner.objective.kl`.
        ess_scope: whose ratios a token's ESS is of: all of the step's; its micro-batch's, as in the public code
            (then the same data is trusted more only because it was cut smaller); its completion's.
        step_scale: the learning rate of the step is multiplied by this statistic of it.
        aggregation: how tokens are averaged: the paper's, or another.

    Raises:
        ValueError: an unknown choice.

    """
    log_ratio = step.log_ratio
    ess = scoped_ess(step, log_ratio, ess_scope)
    weight, cut = capped(log_ratio.exp(), ess)
    pull = (1 - ess).to(log_ratio.dtype)
    kl, kl_slope = kl_value_and_slope(log_ratio, kl_estimator)
    mean = token_weights(step, aggregation)
    return TokenLoss(
        value=mean * (-weight * step.advantages * step.policy_logprobs + pull * kl),
        slope=mean * (-weight * step.advantages + pull * kl_slope),
        weight=weight,
        cut=cut,
        step_factor=scale_of(step, step_scale),
        statistics={"ess": ess.mean(), "kl": kl.mean(), **pulled(mean, pull, kl)},
    )


def capped(ratio: Tensor, ess: Tensor) -> tuple[Tensor, Tensor]:
    """min(ratio, ess) in the ratio's dtype, and where the cap took more than `CUT_FROM` of it: [n] each."""
    weight = torch.minimum(ratio, ess.to(ratio.dtype))
    return weight, weight < (1 - CUT_FROM) * ratio


def scoped_ess(step: Step, log_ratio: Tensor, scope: EssScope) -> Tensor:
    """The ESS that holds for each token: [] for the whole step, else [n]; float64."""
    if scope == "step":
        return weight_sums(log_ratio).ess
    if scope == "micro_batch":
        assert step.micro_batch_of is not None, "declared as needed"
        return _ess_by(log_ratio, step.micro_batch_of)
    if scope == "completion":
        return _ess_by(log_ratio, step.sequence_of)
    raise ValueError(f"ess_scope {scope!r} is none of 'step', 'micro_batch', 'completion'")


def scale_of(step: Step, scale: StepScale) -> Tensor | float:
    """The factor of the step's learning rate: 1 on fresh data, whatever the choice."""
    if scale == "none":
        return 1.0
    ess = weight_sums(sequence_log_ratios(step.log_ratio, step.sequence_of, step.sequences)).ess
    if scale == "sequence_ess":
        return ess
    if scale == "sqrt_sequence_ess":
        return ess.sqrt()
    raise ValueError(f"step_scale {scale!r} is none of 'none', 'sqrt_sequence_ess', 'sequence_ess'")


def _ess_by(log_ratio: Tensor, part_of: Tensor) -> Tensor:
    """The ESS of each token's own part, [n], float64."""
    parts = int(part_of.max()) + 1 if len(part_of) else 0
    return segment_weight_sums(log_ratio, part_of, parts).ess[part_of]

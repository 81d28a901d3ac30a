"""What an operator wants to know of a step's ratios; never part of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.ess import sequence_log_ratios, weight_sums
from learner.objective.kl import kl_value_and_slope


@dataclass(frozen=True)
class RatioStatistics:
    """Of the n trained tokens and B completions of one optimizer step; all [], float64."""

    token_ess: Tensor  # over tokens
    sequence_ess: Tensor  # over completions, each with the ratio of the whole completion
    ratio_min: Tensor
    ratio_max: Tensor
    log_ratio_abs_max: Tensor  # nats
    kl: Tensor  # nats per token, unbiased estimate of KL(policy || behavior)
    capped_share: Tensor  # of tokens with ratio >= ess: their score weight is the cap


def ratio_statistics(log_ratio: Tensor, sequence_of: Tensor, sequences: int) -> RatioStatistics:
    """Statistics of a whole step.

    Args:
        log_ratio: [n], nats, n >= 1.
        sequence_of: [n], int64, the completion that each token belongs to.
        sequences: B.
    """
    d = log_ratio.detach().double()
    token_ess = weight_sums(d).ess
    kl, _ = kl_value_and_slope(d, "unbiased")
    return RatioStatistics(
        token_ess=token_ess,
        sequence_ess=weight_sums(sequence_log_ratios(d, sequence_of, sequences)).ess,
        ratio_min=d.min().exp(),
        ratio_max=d.max().exp(),
        log_ratio_abs_max=d.abs().max(),
        kl=kl.mean(),
        capped_share=(d >= token_ess.log()).double().mean(),
    )

"""Effective sample size of importance weights, in log space and mergeable.

    ess = (sum_i w_i)^2 / (n * sum_i w_i^2)          in [1/n, 1]

Source: Kong, "A note on importance sampling using standardized weights", University of Chicago TR 348 (1992),
divided by n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightSums:
    """What the ESS of a set of weights needs, so that pieces merge to exactly the whole.

    ESS values themselves must never be averaged: the mean over pieces depends on how the data was cut.
    """

    log_sum: Tensor  # [], float64: log sum_i w_i
    log_sum_of_squares: Tensor  # [], float64: log sum_i w_i^2
    count: int  # n, zero weights included

    def merge(self, other: WeightSums) -> WeightSums:
        """The sums of the union of two disjoint sets: over micro-batches, over ranks."""
        return WeightSums(
            torch.logaddexp(self.log_sum, other.log_sum),
            torch.logaddexp(self.log_sum_of_squares, other.log_sum_of_squares),
            self.count + other.count,
        )

    @property
    def ess(self) -> Tensor:
        """Normalized effective sample size, [], float64.

        NaN where it is not defined: no weights at all, all of them zero, or one of them not finite. Callers
        must treat NaN as "not trusted"; nothing here turns it into a number.
        """
        if self.count == 0:
            return torch.full_like(self.log_sum, torch.nan)
        log_ess = 2 * self.log_sum - self.log_sum_of_squares
        return (log_ess.exp() / self.count).clamp(1 / self.count, 1.0)  # clamp of rounding; it keeps NaN


def weight_sums(log_weights: Tensor) -> WeightSums:
    """Sums of the weights exp(log_weights); carries no gradient.

    Args:
        log_weights: [n], nats. -inf is a weight of zero; +inf and NaN make the ESS NaN.
    """
    log_w = log_weights.detach().double()
    return WeightSums(torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0), log_w.numel())


def sequence_log_ratios(log_ratio: Tensor, sequence_of: Tensor, sequences: int) -> Tensor:
    """Log ratio of every whole completion: the sum over its trained tokens, [sequences], float64.

    Args:
        log_ratio: [n], nats.
        sequence_of: [n], int64, the completion that each token belongs to.
        sequences: how many completions there are; one without trained tokens has log ratio 0.
    """
    out = torch.zeros(sequences, dtype=torch.float64, device=log_ratio.device)
    return out.index_add(0, sequence_of, log_ratio.detach().double())

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
    """What the ESS of a set of weights needs, or of each of several sets, so that pieces merge to exactly the whole.

    ESS values themselves must never be averaged: the mean over pieces depends on how the data was cut.
    """

    log_sum: Tensor  # [] or [parts], float64: log sum_i w_i
    log_sum_of_squares: Tensor  # likewise: log sum_i w_i^2
    count: Tensor  # likewise: n, zero weights included

    def merge(self, other: WeightSums) -> WeightSums:
        """The sums of the union of two disjoint sets: over micro-batches, over ranks."""
        return WeightSums(
            torch.logaddexp(self.log_sum, other.log_sum),
            torch.logaddexp(self.log_sum_of_squares, other.log_sum_of_squares),
            self.count + other.count,
        )

    @property
    def ess(self) -> Tensor:
        """Normalized effective sample size, [] or [parts], float64.

        NaN where it is not defined: no weights at all, all of them zero, or one of them not finite. Callers
        must treat NaN as "not trusted"; nothing here turns it into a number.
        """
        log_ess = 2 * self.log_sum - self.log_sum_of_squares
        return (log_ess.exp() / self.count).clamp(1 / self.count, torch.ones_like(self.count))  # of rounding; keeps NaN


def weight_sums(log_weights: Tensor) -> WeightSums:
    """Sums of the weights exp(log_weights); carries no gradient.

    Args:
        log_weights: [n], nats. -inf is a weight of zero; +inf and NaN make the ESS NaN.
    """
    log_w = log_weights.detach().double()
    count = log_w.new_tensor(log_w.numel())
    return WeightSums(torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0), count)


def segment_weight_sums(log_weights: Tensor, part_of: Tensor, parts: int) -> WeightSums:
    """Sums of the weights exp(log_weights) of each part by itself, all parts at once; carries no gradient.

        log_sum_p = greatest_p + log sum_{i in p} exp(log_weights_i - greatest_p)

    What is not finite stays within its part: it makes that part's ESS NaN, and no other's.

    Args:
        log_weights: [n], nats; see `weight_sums`.
        part_of: [n], int64, the part of each weight, in [0, parts).
        parts: how many parts there are; one without weights has ESS NaN.

    Returns:
        Sums with fields [parts], which merge part by part.
    """
    log_w = log_weights.detach().double()
    count = log_w.new_zeros(parts).index_add(0, part_of, torch.ones_like(log_w))
    return WeightSums(_segment_logsumexp(log_w, part_of, parts), _segment_logsumexp(2 * log_w, part_of, parts), count)


def _segment_logsumexp(values: Tensor, part_of: Tensor, parts: int) -> Tensor:
    """Log of the sum of exp(values) over each part: [n] -> [parts]; -inf for a part without values."""
    greatest = values.new_full((parts,), -torch.inf).scatter_reduce(0, part_of, values, "amax")
    shift = torch.where(greatest.isfinite(), greatest, 0.0)  # infinity less infinity would hide what is there
    return shift + values.new_zeros(parts).index_add(0, part_of, (values - shift[part_of]).exp()).log()


def sequence_log_ratios(log_ratio: Tensor, sequence_of: Tensor, sequences: int) -> Tensor:
    """Log ratio of every whole completion: the sum over its trained tokens, [sequences], float64.

    Args:
        log_ratio: [n], nats.
        sequence_of: [n], int64, the completion that each token belongs to.
        sequences: how many completions there are; one without trained tokens has log ratio 0.
    """
    out = torch.zeros(sequences, dtype=torch.float64, device=log_ratio.device)
    return out.index_add(0, sequence_of, log_ratio.detach().double())

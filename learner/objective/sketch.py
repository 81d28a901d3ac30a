"""A sketch of a step's log ratios: counts and weights in fixed bins, so that pieces merge to exactly the whole.

    bin of d    sign(d) and the exponent and first 6 bits of the fraction of |d| as float64: 64 bins an octave
    kept of it  count = #{i: d_i in bin},  log_sum = log sum_{i in bin} exp(d_i)

Any value in a bin is within 1/128 (0.8 %) of the bin's middle, from 2^-27 (7.5e-9) to 2^10 nats on either side. What is
nearer to zero shares one bin with zero; what is farther away shares one bin a side. Bins are bits of the number, no
logarithm is rounded: the same value falls into the same bin in every piece, on every device.

Source: Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
arXiv 1908.10693 (2019). Deviations: bins cut each octave linearly instead of logarithmically, are fixed in number
instead of collapsing, and carry the sum of their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_OCTAVES = range(-27, 10)  # of |log ratio|, as powers of two
_BITS = 6  # of the fraction
_SHIFT = 52 - _BITS  # a float64 has 52 bits of fraction
_FIRST = (1023 + _OCTAVES.start) << _BITS  # the bits of the smallest |d| that has a bin of its own
_SIDE = len(_OCTAVES) << _BITS  # bins of either sign within range
_ZERO = _SIDE + 1  # index of the bin around zero; 0 and 2 _ZERO are those beyond the range
BINS = 2 * _ZERO + 1

RELATIVE_ACCURACY = 2.0 ** -(_BITS + 1)
"""Of a quantile of |log ratio|, within the range above."""


@dataclass(frozen=True)
class LogRatioSketch:
    """How many log ratios fell into each bin, from the lowest to the highest, and the sum of their ratios."""

    counts: Tensor  # [BINS], int64
    log_sums: Tensor  # [BINS], float64: log sum of exp(log_ratio); -inf where there is none

    def merge(self, other: LogRatioSketch) -> LogRatioSketch:
        """The sketch of the union of two disjoint sets: counts exactly, sums to rounding."""
        return LogRatioSketch(self.counts + other.counts, torch.logaddexp(self.log_sums, other.log_sums))

    def quantiles(self, shares: Sequence[float], least: Tensor, most: Tensor) -> Tensor:
        """The log ratios of rank floor(share (n - 1)) in ascending order, n >= 1.

        Each is the middle of the bin that holds that rank, so at most RELATIVE_ACCURACY of it away, or 2^-27 nats where
        it is nearer to zero than that. Beyond 2^10 nats it is `least` or `most`, and never outside of them.

        Args:
            shares: Q numbers in [0, 1].
            least: [], the exact minimum of the log ratios.
            most: [], their exact maximum.

        Returns:
            [Q], float64, nats.
        """
        up_to = self.counts.cumsum(0)
        ranks = (up_to[-1] - 1) * torch.tensor(shares, dtype=torch.float64, device=up_to.device)
        bins = torch.searchsorted(up_to, ranks.floor().long(), right=True)
        return torch.minimum(torch.maximum(_middle(bins), least), most)

    def counts_between(self, edges: Sequence[float]) -> Tensor:
        """How many log ratios are below the first edge, between any two in a row, and from the last on.

        Exact, since an edge is where a bin ends: a value on a positive edge counts above it, on a negative one below.

        Args:
            edges: E ascending log ratios, nats, each k / 64 of a power of two within the range, k in 64..127.

        Returns:
            [E + 1], int64.
        """
        at = torch.tensor(edges, dtype=torch.float64, device=self.counts.device)
        first = _bin_of(at) + (at < 0).long()  # the lowest bin above each edge
        up_to = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])
        return torch.cat([up_to[:1], up_to[first], up_to[-1:]]).diff()

    def log_mass_of_largest(self, count: int) -> Tensor:
        """Log of the sum of the `count` largest ratios, [], float64; the last bin in proportion to its count.

        Never above the truth, since the largest of a bin weigh at least its mean. Below it by at most the factor
        exp(width of the last bin), and that only in the last bin's part; the width is at most |log ratio| / 64.
        Beyond 2^10 nats, where bins have no width, the last bin's part may be low by any factor.
        """
        from_top = self.counts.flip(0)
        taken = (count - (from_top.cumsum(0) - from_top)).clamp(min=0).minimum(from_top)
        share = taken.double() / from_top.clamp(min=1)
        return torch.logsumexp(self.log_sums.flip(0) + share.log(), 0)


def sketch_of(log_ratio: Tensor) -> LogRatioSketch:
    """The sketch of a set of log ratios.

    Args:
        log_ratio: [n], float64, nats. -inf is a ratio of zero in the lowest bin; NaN and +inf are counted in the
            highest, whose sum they spoil.
    """
    bins = _bin_of(log_ratio)
    counts = torch.zeros(BINS, dtype=torch.int64, device=log_ratio.device)
    nothing = torch.full((BINS,), -torch.inf, dtype=torch.float64, device=log_ratio.device)
    peaks = nothing.scatter_reduce(0, bins, log_ratio, "amax")
    peaks = peaks.masked_fill(peaks == -torch.inf, 0.0)  # bins of zero ratios: -inf - -inf is not a number
    sums = torch.zeros_like(peaks).index_add(0, bins, (log_ratio - peaks[bins]).exp())
    return LogRatioSketch(counts.index_add(0, bins, torch.ones_like(bins)), sums.log() + peaks)


def _bin_of(log_ratio: Tensor) -> Tensor:
    magnitude = (log_ratio.abs().view(torch.int64) >> _SHIFT) - _FIRST + 1
    magnitude = magnitude.clamp(0, _ZERO)
    return torch.where(log_ratio < 0, _ZERO - magnitude, _ZERO + magnitude)


def _middle(bins: Tensor) -> Tensor:
    """The middle of each bin, nats: 0 of the one around zero, infinite beyond the range."""
    magnitude = (bins - _ZERO).abs()
    bits = magnitude + _FIRST - 1
    middle = ((bits << _SHIFT).view(torch.float64) + ((bits + 1) << _SHIFT).view(torch.float64)) / 2
    middle = middle.masked_fill(magnitude == 0, 0.0).masked_fill(magnitude == _ZERO, torch.inf)
    return torch.where(bins < _ZERO, -middle, middle)

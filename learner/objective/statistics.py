"""What an operator wants to know of a step's ratios, as one value that merges; never part of the loss.

    piece --ratio_statistics--> RatioStatistics --merge over micro-batches, ranks--> .summary() --> RatioSummary

Every number of the summary is of the whole step, however it was cut: sums and counts are merged, never the numbers made
from them. By key (staleness bucket, environment) the same value holds for a part of the tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.core import Step, TokenLoss
from learner.objective.ess import WeightSums, sequence_log_ratios, weight_sums
from learner.objective.kl import kl_value_and_slope
from learner.objective.sketch import BINS, LogRatioSketch, sketch_of

_SCALARS, _KL_SUMS = 11, 4
PACKED_SIZE = _SCALARS + _KL_SUMS + 2 * BINS
"""Numbers in a packed RatioStatistics, whatever it is of."""


@dataclass(frozen=True)
class RatioSummary:
    """Of the n trained tokens and B completions of one optimizer step, or of a part of them.

    w_i are the ratios, d_i their logs. NaN says that a number is not known: of nothing, of a ratio that is NaN or
    infinite (`kl` from 709 nats on, where it overflows), of flags that were not given. It never means trusted.
    """

    tokens: int  # n
    completions: int  # B
    token_ess: float  # (sum w)^2 / (n sum w^2), in [1/n, 1]
    sequence_ess: float  # the same over completions, each with the ratio of the whole completion
    log1m_token_ess: float  # log(1 - token_ess); rounding hides what is below -32, and -inf is an ESS of 1
    chi2: float  # n sum w^2 / (sum w)^2 - 1 = 1/token_ess - 1: chi2(policy || behavior), self-normalized, <= n - 1
    ratio_min: float
    ratio_p1: float  # quantiles: d within 0.8 % of itself, or within 7.5e-9 nats
    ratio_p50: float
    ratio_p99: float
    ratio_max: float
    log_ratio_abs_max: float  # nats
    largest_weight_share: float  # max w / sum w
    top_1_percent_mass: float  # sum of the ceil(n/100) largest w / sum w; never too high, see LogRatioSketch
    kl: float  # mean of w d - w + 1, nats per token; over tokens of the behavior policy: KL(policy || behavior)
    k1: float  # mean of -d; likewise: KL(behavior || policy)
    k2: float  # mean of d^2 / 2; either KL, to second order in d
    k3: float  # mean of d + exp(-d) - 1 (its tangent below -10); chi2(b || policy) - KL(b || policy), as `kl.py` has it
    capped_share: float  # of tokens that the objective clipped, capped or masked (TokenLoss.cut)
    weight_lost: float  # sum over those of max(0, w - the weight that it left them) / sum w
    zero_weight_share: float  # of tokens whose advantage the objective multiplies by zero (TokenLoss.weight)


@dataclass(frozen=True)
class RatioStatistics:
    """Sums, counts and extremes of a set of whole completions' ratios, so that pieces merge to exactly the whole.

    Merging is associative and commutative, with `empty()` for the neutral element: counts and extremes to the bit, sums
    to rounding. Tensors are [] and float64 where nothing else is said.
    """

    token_sums: WeightSums  # of n tokens
    sequence_sums: WeightSums  # of B completions
    least: Tensor  # nats; +inf of no token
    most: Tensor  # nats; -inf of no token
    kl_sums: Tensor  # [4], nats: sums of k1, k2, k3 and the unbiased estimate
    cut: Tensor  # tokens that the objective cut; NaN where a piece does not know
    zero_weight: Tensor  # tokens of weight zero; likewise
    log_lost: Tensor  # log sum of what the objective took off the ratios of the tokens that it cut; likewise
    sketch: LogRatioSketch

    @classmethod
    def empty(cls, device: torch.device | None = None) -> RatioStatistics:
        """Of nothing: merging it changes nothing."""
        nothing = torch.zeros(0, dtype=torch.float64, device=device)
        return _statistics(nothing, nothing, None, None)

    @property
    def token_ess(self) -> Tensor:
        """ESS over tokens, [], float64; see `WeightSums.ess`."""
        return self.token_sums.ess

    @property
    def sequence_ess(self) -> Tensor:
        """ESS over completions, each with the ratio of the whole completion, [], float64."""
        return self.sequence_sums.ess

    def merge(self, other: RatioStatistics) -> RatioStatistics:
        """The statistics of the union of two disjoint sets: over micro-batches, over ranks."""
        return RatioStatistics(
            self.token_sums.merge(other.token_sums),
            self.sequence_sums.merge(other.sequence_sums),
            torch.minimum(self.least, other.least),
            torch.maximum(self.most, other.most),
            self.kl_sums + other.kl_sums,
            self.cut + other.cut,
            self.zero_weight + other.zero_weight,
            torch.logaddexp(self.log_lost, other.log_lost),
            self.sketch.merge(other.sketch),
        )

    def pack(self) -> Tensor:
        """All of it as [PACKED_SIZE], float64, for one collective; counts are exact up to 2^53."""
        sums = [x for s in (self.token_sums, self.sequence_sums) for x in (s.log_sum, s.log_sum_of_squares, s.count)]
        scalars = torch.stack([*sums, self.least, self.most, self.cut, self.zero_weight, self.log_lost])
        return torch.cat([scalars, self.kl_sums, self.sketch.counts.double(), self.sketch.log_sums])

    @classmethod
    def unpack(cls, packed: Tensor) -> RatioStatistics:
        """The packed value, on the packed one's device.

        Raises:
            ValueError: not a packed value.
        """
        if packed.shape != (PACKED_SIZE,) or packed.dtype != torch.float64:
            raise ValueError(f"packed statistics are [{PACKED_SIZE}] float64, not {list(packed.shape)} {packed.dtype}")
        scalars, kl_sums, counts, log_sums = packed.split([_SCALARS, _KL_SUMS, BINS, BINS])
        least, most, cut, zero_weight, log_lost = scalars[6:]
        return cls(
            token_sums=WeightSums(*scalars[:3]),
            sequence_sums=WeightSums(*scalars[3:6]),
            least=least,
            most=most,
            kl_sums=kl_sums,
            cut=cut,
            zero_weight=zero_weight,
            log_lost=log_lost,
            sketch=LogRatioSketch(counts.long(), log_sums),
        )

    def weight_share(self, whole: RatioStatistics) -> float:
        """The part of the sum of all ratios that these tokens' ratios are, where they are part of those."""
        return (self.token_sums.log_sum - whole.token_sums.log_sum).exp().item()

    def summary(self) -> RatioSummary:
        """The numbers, read on the host: one transfer from a device."""
        if self.least.device.type != "cpu":
            return self.unpack(self.pack().cpu()).summary()
        n = int(self.token_sums.count)
        unknown = torch.full_like(self.least, torch.nan)
        known = n > 0 and not self.most.isnan()
        least, most, each = (self.least, self.most, 1 / n) if known else (unknown, unknown, math.nan)
        ess = self.token_ess
        p1, p50, p99 = self.sketch.quantiles((0.01, 0.5, 0.99), least, most).exp()
        largest = (most - self.token_sums.log_sum).exp()
        top = (self.sketch.log_mass_of_largest(math.ceil(n / 100)) - self.token_sums.log_sum).exp().clamp(max=1)
        k1, k2, k3, kl = self.kl_sums * each
        return RatioSummary(
            tokens=n,
            completions=int(self.sequence_sums.count),
            token_ess=ess.item(),
            sequence_ess=self.sequence_ess.item(),
            log1m_token_ess=(-ess).log1p().item(),
            chi2=(1 / ess - 1).item(),
            ratio_min=least.exp().item(),
            ratio_p1=p1.item(),
            ratio_p50=p50.item(),
            ratio_p99=p99.item(),
            ratio_max=most.exp().item(),
            log_ratio_abs_max=torch.maximum(least.abs(), most.abs()).item(),
            largest_weight_share=largest.item(),
            top_1_percent_mass=torch.maximum(top, largest).item(),
            kl=kl.item(),
            k1=k1.item(),
            k2=k2.item(),
            k3=k3.item(),
            capped_share=self.cut.item() * each,
            weight_lost=(self.log_lost - self.token_sums.log_sum).exp().item(),
            zero_weight_share=self.zero_weight.item() * each,
        )


def ratio_statistics(
    log_ratio: Tensor,
    sequence_of: Tensor,
    sequences: int,
    *,
    weight: Tensor | None = None,
    cut: Tensor | None = None,
) -> RatioStatistics:
    """Statistics of a step, or of a piece of it that holds whole completions.

    A completion that is cut over two pieces would count as two, each with the ratio of its part: pieces are disjoint
    sets of completions. Nothing here waits for a device.

    Args:
        log_ratio: [n], nats. -inf is a ratio of zero; NaN or +inf make NaN of all that depends on ratios.
        sequence_of: [n], int64, the completion that each token belongs to, in [0, B).
        sequences: B; a completion without trained tokens has ratio 1.
        weight: [n], the objective's `TokenLoss.weight`, if known.
        cut: [n], bool, the objective's `TokenLoss.cut`, if known.
    """
    d = _as_log_weights(log_ratio)
    return _statistics(d, sequence_log_ratios(d, sequence_of, sequences), weight, cut)


def step_statistics(step: Step, token_loss: TokenLoss) -> RatioStatistics:
    """Statistics of a whole step and of what an objective made of it; an expert's tokens have no part in them."""
    drawn = step.drawn()
    mine = slice(None) if step.expert is None else ~step.expert
    return ratio_statistics(
        drawn.log_ratio,
        drawn.sequence_of,
        drawn.sequences,
        weight=token_loss.weight[mine],
        cut=token_loss.cut[mine],
    )


def by_key(
    log_ratio: Tensor,
    sequence_of: Tensor,
    sequences: int,
    key_of: Tensor,
    *,
    weight: Tensor | None = None,
    cut: Tensor | None = None,
) -> dict[int, RatioStatistics]:
    """Statistics of each staleness bucket, environment or other part of a step, or of a piece of it.

    A completion, with its whole ratio, belongs to the largest key of its trained tokens: to its environment, or to the
    staleness bucket of its oldest token. One without trained tokens belongs to no key. So the tokens of all keys merge
    to those of `ratio_statistics`; a key may have tokens and no completion. Waits for a device, once for each key.

    Args:
        log_ratio: [n], as in `ratio_statistics`, like all that is not named here.
        sequence_of: [n].
        sequences: B.
        key_of: [n], int64, the key of each token.
        weight: [n].
        cut: [n].

    Returns:
        Of every key that a token has.
    """
    d = _as_log_weights(log_ratio)
    whole = sequence_log_ratios(d, sequence_of, sequences)
    no_key = key_of.new_full((sequences,), torch.iinfo(key_of.dtype).min)
    key_of_sequence = no_key.scatter_reduce(0, sequence_of, key_of, "amax")

    def of(key: int) -> RatioStatistics:
        mine = key_of == key
        flags = (None if values is None else values[mine] for values in (weight, cut))
        return _statistics(d[mine], whole[key_of_sequence == key], *flags)

    return {key: of(key) for key in key_of.unique().tolist()}


def _as_log_weights(log_ratio: Tensor) -> Tensor:
    """In float64, with NaN for +inf: one word for every ratio that nothing can be made of."""
    d = log_ratio.detach().double()
    return d.masked_fill(d == torch.inf, torch.nan)


def _statistics(d: Tensor, of_sequences: Tensor, weight: Tensor | None, cut: Tensor | None) -> RatioStatistics:
    k3, _ = kl_value_and_slope(d, "k3")
    unbiased, _ = kl_value_and_slope(d, "unbiased")
    unbiased = unbiased.masked_fill(d == -torch.inf, 1.0)  # the limit: ratio * log_ratio goes to 0
    return RatioStatistics(
        weight_sums(d),
        weight_sums(of_sequences),
        least=d.amin() if len(d) else d.new_full((), torch.inf),
        most=d.amax() if len(d) else d.new_full((), -torch.inf),
        kl_sums=torch.stack([-d.sum(), d.square().sum() / 2, k3.sum(), unbiased.sum()]),
        cut=_count(cut, d),
        zero_weight=_count(None if weight is None else weight == 0, d),
        log_lost=_log_lost(d, weight, cut),
        sketch=sketch_of(d),
    )


def _log_lost(d: Tensor, weight: Tensor | None, cut: Tensor | None) -> Tensor:
    """Log of the ratio that was cut away, [], float64: log sum_cut max(0, exp(d) - weight)."""
    if weight is None or cut is None:
        return d.new_full((), torch.nan if len(d) else -torch.inf)
    left = weight.double().clamp(min=0).log()
    lost = d + (-(left - d).exp().clamp(max=1)).log1p()
    return torch.logsumexp(torch.where(cut & (d != -torch.inf), lost, -torch.inf), 0)


def _count(flags: Tensor | None, d: Tensor) -> Tensor:
    """How many are set, [], float64; NaN where that is not known of any token."""
    if flags is None:
        return d.new_full((), torch.nan if len(d) else 0.0)
    return flags.sum().double()

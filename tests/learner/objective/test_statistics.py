"""The statistics that an operator sees: numbers made by hand, identities, merging, and what is not finite."""

import math
from dataclasses import asdict, dataclass
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.objective.staleness import staleness_bucket
from learner.objective.statistics import PACKED_SIZE, RatioStatistics, RatioSummary, by_key, ratio_statistics


@dataclass(frozen=True)
class Piece:
    """Whole completions, and what an objective made of their tokens."""

    completions: list[list[float]]  # log ratios

    @property
    def log_ratio(self) -> torch.Tensor:
        return torch.tensor([d for c in self.completions for d in c], dtype=torch.float64)

    @property
    def sequence_of(self) -> torch.Tensor:
        return torch.tensor([i for i, c in enumerate(self.completions) for _ in c], dtype=torch.int64)

    @property
    def statistics(self) -> RatioStatistics:
        d = self.log_ratio
        weight = torch.where(d < -1, 0.0, d.exp())
        return ratio_statistics(d, self.sequence_of, len(self.completions), weight=weight, cut=d > 0.5)


log_ratio = st.one_of(st.floats(-3, 3), st.floats(-69, 69), st.sampled_from([0.0, -math.inf]))  # ratios 1e-30 to 1e30
completions = st.lists(st.lists(log_ratio, max_size=8), max_size=5)  # of no token, no completion too
pieces = st.lists(completions.map(Piece), max_size=5)


def of(*log_ratios: float) -> RatioStatistics:
    """Of completions of one token each."""
    return Piece([[d] for d in log_ratios]).statistics


def same(a: RatioSummary, b: RatioSummary) -> None:
    """To rounding; what is counted and the extremes and quantiles to the bit."""
    for name, value in asdict(a).items():
        other = getattr(b, name)
        if name.startswith(("ratio_", "log_ratio_")) or isinstance(value, int):
            assert value == other or (math.isnan(value) and math.isnan(other)), name
        elif name == "log1m_token_ess":
            assert math.exp(value) == pytest.approx(math.exp(other), abs=1e-12, nan_ok=True)
        else:
            assert value == pytest.approx(other, rel=1e-9, abs=1e-11, nan_ok=True), name


def merged(parts: list[RatioStatistics]) -> RatioStatistics:
    total = RatioStatistics.empty()
    for part in parts:
        total = total.merge(part)
    return total


@given(pieces, st.randoms(use_true_random=False))
def test_merging_pieces_in_any_order_equals_the_whole(parts: list[Piece], random: Random) -> None:
    whole = Piece([c for part in parts for c in part.completions]).statistics
    random.shuffle(parts)
    total = merged([part.statistics for part in parts])
    same(total.summary(), whole.summary())
    assert torch.equal(total.sketch.counts, whole.sketch.counts)


@given(completions.map(Piece))
def test_merging_nothing_changes_nothing(piece: Piece) -> None:
    s, nothing = piece.statistics, RatioStatistics.empty()
    for total in (s.merge(nothing), nothing.merge(s)):
        np.testing.assert_array_equal(total.pack(), s.pack())


@given(completions.map(Piece))
def test_packing_and_unpacking_gives_the_same_value(piece: Piece) -> None:
    packed = piece.statistics.pack()
    assert packed.shape == (PACKED_SIZE,)
    back = RatioStatistics.unpack(packed)
    assert back.sketch.counts.dtype == torch.int64
    np.testing.assert_array_equal(back.pack(), packed)
    same(back.summary(), piece.statistics.summary())


def test_what_is_not_packed_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="packed statistics are"):
        RatioStatistics.unpack(torch.zeros(PACKED_SIZE - 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"not .* torch\.float32"):
        RatioStatistics.unpack(torch.zeros(PACKED_SIZE))


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=30), min_size=1, max_size=12))
def test_every_number_is_what_its_definition_says(of_completions: list[list[float]]) -> None:
    d = np.array([x for c in of_completions for x in c])
    w, whole = np.exp(d), np.exp([sum(c) for c in of_completions])
    s = Piece(of_completions).statistics.summary()
    assert (s.tokens, s.completions) == (len(d), len(of_completions))
    assert s.token_ess == pytest.approx(w.sum() ** 2 / len(d) / (w**2).sum())
    assert s.sequence_ess == pytest.approx(whole.sum() ** 2 / len(whole) / (whole**2).sum())
    assert math.exp(s.log1m_token_ess) == pytest.approx(1 - s.token_ess, abs=1e-12)
    assert s.chi2 == pytest.approx(w.var() / w.mean() ** 2, abs=1e-12)
    assert (s.ratio_min, s.ratio_max) == pytest.approx((w.min(), w.max()))
    assert s.log_ratio_abs_max == np.abs(d).max()
    for share, value in ((0.01, s.ratio_p1), (0.5, s.ratio_p50), (0.99, s.ratio_p99)):
        assert math.log(value) == pytest.approx(np.quantile(d, share, method="lower"), rel=0.01, abs=1e-8)
    assert s.largest_weight_share == pytest.approx(w.max() / w.sum())
    top = np.sort(w)[-math.ceil(len(w) / 100) :].sum() / w.sum()
    assert top * math.exp(-3 / 64) <= s.top_1_percent_mass * (1 + 1e-12) <= top * (1 + 1e-9)
    assert s.kl == pytest.approx((w * d - w + 1).mean(), abs=1e-12)
    assert s.k1 == pytest.approx(-d.mean(), abs=1e-12)
    assert s.k2 == pytest.approx((d**2).mean() / 2, abs=1e-12)
    assert s.k3 == pytest.approx((d + 1 / w - 1).mean(), abs=1e-12)
    assert s.capped_share == pytest.approx((d > 0.5).mean())
    assert s.zero_weight_share == pytest.approx((d < -1).mean())
    assert s.weight_lost == pytest.approx(0, abs=1e-12), "what was cut kept its whole weight here"


@pytest.mark.parametrize(("n", "largest"), [(2, 1), (99, 1), (100, 1), (101, 2), (150, 2)])
def test_the_top_percent_are_the_largest_of_which_one_in_a_hundred_is_begun(n: int, largest: int) -> None:
    """Up to 100 tokens it is the largest ratio, exactly, though others share its bin."""
    d = np.array([1.006, 1.005] + [1.004] * (n - 2))
    w = np.exp(d)
    s = of(*d).summary()
    assert s.top_1_percent_mass == pytest.approx(w[:largest].sum() / w.sum(), rel=1e-12 if largest == 1 else 2e-3)


def test_estimates_over_the_behavior_policy_itself_are_the_divergences() -> None:
    """Four tokens in exactly the behavior policy's proportions, so that every mean is its expectation."""
    behavior, policy = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    log = np.log(policy / behavior)
    s = of(log[0], log[0], log[1], log[2]).summary()
    backward = (behavior * np.log(behavior / policy)).sum()
    assert s.kl == pytest.approx((policy * np.log(policy / behavior)).sum())
    assert s.k1 == pytest.approx(backward)
    assert s.k2 == pytest.approx((behavior * log**2).sum() / 2)
    assert s.k3 == pytest.approx((behavior**2 / policy).sum() - 1 - backward)
    assert s.chi2 == pytest.approx((policy**2 / behavior).sum() - 1)


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_fresh_data_is_fully_trusted(n: int) -> None:
    s = of(*[0.0] * n).summary()
    assert (s.token_ess, s.sequence_ess) == pytest.approx((1, 1), abs=1e-14)
    assert s.log1m_token_ess < -32
    assert s.chi2 == pytest.approx(0, abs=1e-14)
    assert (s.kl, s.k1, s.k2, s.k3, s.log_ratio_abs_max) == (0, 0, 0, 0, 0)
    assert (s.ratio_min, s.ratio_p1, s.ratio_p50, s.ratio_p99, s.ratio_max) == (1, 1, 1, 1, 1)
    assert s.largest_weight_share == pytest.approx(1 / n)
    assert s.top_1_percent_mass == pytest.approx(math.ceil(n / 100) / n)
    assert (s.capped_share, s.zero_weight_share) == (0, 0)


@pytest.mark.parametrize(("n", "k"), [(8, 8), (8, 3), (1000, 1)])
def test_k_equal_and_n_minus_k_zero_weights_give_k_over_n(n: int, k: int) -> None:
    s = of(*[0.0] * k, *[-math.inf] * (n - k)).summary()
    assert (s.token_ess, s.sequence_ess, s.chi2) == pytest.approx((k / n, k / n, n / k - 1), abs=1e-12)
    assert s.kl == pytest.approx(1 - k / n)
    assert s.zero_weight_share == pytest.approx(1 - k / n)
    assert s.largest_weight_share == pytest.approx(1 / k)
    assert s.ratio_p1 == (0 if k < n else 1)


def test_extreme_ratios_neither_overflow_nor_vanish() -> None:
    d = math.log(1e30)
    s = of(d, d, -d, -d).summary()
    assert s.token_ess == pytest.approx(0.5, rel=1e-12)
    assert (s.ratio_min, s.ratio_max) == pytest.approx((1e-30, 1e30), rel=1e-12)
    assert (s.ratio_p1, s.ratio_p99) == pytest.approx((1e-30, 1e30), rel=math.expm1(d / 128))
    assert (s.largest_weight_share, s.top_1_percent_mass) == pytest.approx((0.5, 0.5), rel=1e-12)
    assert s.kl == pytest.approx(1e30 * (d - 1) / 2, rel=1e-12)
    far = of(690.0, 690.0, -690.0).summary()
    assert (far.token_ess, far.largest_weight_share) == pytest.approx((2 / 3, 0.5), rel=1e-12)


def test_sequence_ess_sees_what_token_ess_does_not() -> None:
    """300 tokens off by 0.005 nats are nearly equal tokens but a factor of 4.5 as one completion."""
    s = Piece([[0.005] * 300, [0.0] * 300]).statistics.summary()
    assert s.token_ess > 0.99999
    w = math.exp(1.5)
    assert s.sequence_ess == pytest.approx((w + 1) ** 2 / (2 * (w * w + 1)))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_ratio_that_is_not_finite_leaves_no_number_to_trust(broken: float) -> None:
    spoiled = of(0.0, broken)
    for s in (spoiled, spoiled.merge(of(0.1, 0.2)), of(0.1, 0.2).merge(spoiled)):
        numbers = asdict(s.summary())
        assert numbers.pop("tokens") == numbers.pop("completions") == int(s.token_sums.count)
        assert {name for name, value in numbers.items() if not math.isnan(value)} == set()


def test_of_no_token_nothing_is_known_but_that() -> None:
    numbers = asdict(RatioStatistics.empty().summary())
    assert (numbers.pop("tokens"), numbers.pop("completions")) == (0, 0)
    assert all(math.isnan(value) for value in numbers.values())


def test_shares_of_flags_that_a_piece_does_not_give_are_not_known() -> None:
    silent = ratio_statistics(torch.zeros(2), torch.tensor([0, 1]), 2)
    for s in (silent, silent.merge(of(0.0))):
        assert math.isnan(s.summary().capped_share)
        assert math.isnan(s.summary().zero_weight_share)
        assert s.summary().ratio_max == 1


keyed = st.lists(st.lists(st.tuples(log_ratio, st.integers(0, 40)), max_size=6), max_size=6)  # with staleness


@given(keyed)
def test_the_tokens_of_all_buckets_are_the_tokens_of_the_step(tokens: list[list[tuple[float, int]]]) -> None:
    piece = Piece([[d for d, _ in c] for c in tokens])
    staleness = torch.tensor([s for c in tokens for _, s in c], dtype=torch.int64)
    d = piece.log_ratio
    flags = {"weight": torch.where(d < -1, 0.0, d.exp()), "cut": d > 0.5}
    parts = by_key(d, piece.sequence_of, len(tokens), staleness_bucket(staleness), **flags)
    assert sorted(parts) == sorted(set(staleness_bucket(staleness).tolist()))
    total, whole = asdict(merged(list(parts.values())).summary()), asdict(piece.statistics.summary())
    written = sum(bool(c) for c in tokens)
    assert total.pop("completions") == written <= whole.pop("completions")
    for only_of_tokens in (total, whole):
        del only_of_tokens["sequence_ess"]
    same(RatioSummary(**total, completions=0, sequence_ess=0), RatioSummary(**whole, completions=0, sequence_ess=0))


def test_a_completion_belongs_whole_to_its_largest_key() -> None:
    """Completion 0 has tokens of keys 1 and 3, completion 1 only of key 1, completion 2 no token."""
    d = torch.tensor([0.5, 0.25, -1.0], dtype=torch.float64)
    parts = by_key(d, torch.tensor([0, 0, 1]), 3, torch.tensor([1, 3, 1]))
    assert {key: int(part.token_sums.count) for key, part in parts.items()} == {1: 2, 3: 1}
    assert {key: int(part.sequence_sums.count) for key, part in parts.items()} == {1: 1, 3: 1}
    assert parts[3].sequence_sums.log_sum.item() == pytest.approx(0.75)
    assert parts[1].sequence_sums.log_sum.item() == pytest.approx(-1.0)


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=8), min_size=1, max_size=8), st.floats(0.05, 3))
def test_what_a_cap_takes_is_what_the_ratios_lose_of_their_sum(of_completions: list[list[float]], cap: float) -> None:
    piece = Piece(of_completions)
    w = piece.log_ratio.exp()
    weight = w.clamp(max=cap)
    s = ratio_statistics(piece.log_ratio, piece.sequence_of, len(of_completions), weight=weight, cut=weight < w)
    assert s.summary().weight_lost == pytest.approx(((w - weight).sum() / w.sum()).item(), abs=1e-12)
    masked = ratio_statistics(piece.log_ratio, piece.sequence_of, len(of_completions), weight=0 * w, cut=w > 0)
    assert masked.summary().weight_lost == pytest.approx(1)


def test_a_weight_that_was_raised_is_no_loss_and_a_ratio_beyond_numbers_is_lost_whole() -> None:
    d, weight = torch.tensor([-2.0, 800.0]).double(), torch.tensor([0.5, 2.0])
    s = ratio_statistics(d, torch.tensor([0, 1]), 2, weight=weight, cut=torch.tensor([True, True]))
    assert s.summary().weight_lost == pytest.approx(1)
    raised = ratio_statistics(d[:1], torch.tensor([0]), 1, weight=weight[:1], cut=torch.tensor([True]))
    assert raised.summary().weight_lost == 0


@given(keyed)
def test_the_parts_share_the_whole_weight(tokens: list[list[tuple[float, int]]]) -> None:
    piece = Piece([[d for d, _ in c] for c in tokens])
    staleness = torch.tensor([s for c in tokens for _, s in c], dtype=torch.int64)
    parts = by_key(piece.log_ratio, piece.sequence_of, len(tokens), staleness)
    shares = [part.weight_share(piece.statistics) for part in parts.values()]
    if shares and not math.isnan(shares[0]):
        assert sum(shares) == pytest.approx(1)


def test_statistics_carry_no_gradient() -> None:
    s = ratio_statistics(torch.zeros(3, requires_grad=True), torch.tensor([0, 0, 1]), 2)
    assert not s.pack().requires_grad

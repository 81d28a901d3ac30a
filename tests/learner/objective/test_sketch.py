"""The sketch of log ratios: accuracy of its quantiles, bound of its top mass, exact merging."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from learner.objective.sketch import BINS, RELATIVE_ACCURACY, LogRatioSketch, sketch_of
from shared.histogram import LOG_RATIO_EDGES

NEAREST = 2.0**-27  # nats; what is nearer to zero counts as zero
log_ratios = st.lists(st.one_of(st.floats(-2, 2), st.floats(-700, 700), st.just(0.0)), min_size=1, max_size=400)


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def quantile(values: list[float], share: float) -> float:
    d = tensor(values)
    return sketch_of(d).quantiles([share], d.min(), d.max()).item()


@given(log_ratios, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_order_statistic(values: list[float], share: float) -> None:
    exact = np.quantile(values, share, method="lower")
    assert abs(quantile(values, share) - exact) <= RELATIVE_ACCURACY * abs(exact) + NEAREST
    assert RELATIVE_ACCURACY < 0.01


@given(st.floats(NEAREST, 1024, exclude_max=True), st.sampled_from([-1, 1]))
@example(NEAREST, 1)
@example(math.nextafter(1024, 0), -1)
@example(1.0, -1)
def test_every_value_is_near_the_middle_of_its_bin(size: float, sign: int) -> None:
    far = torch.tensor(torch.inf, dtype=torch.float64)
    middle = sketch_of(tensor([sign * size])).quantiles([0.5], -far, far).item()
    assert abs(middle - sign * size) <= RELATIVE_ACCURACY * size


@given(st.lists(st.floats(-2000, 2000), min_size=2, max_size=50, unique=True))
def test_bins_are_in_the_order_of_their_values(values: list[float]) -> None:
    bins = [int(sketch_of(tensor([v])).counts.argmax()) for v in sorted(values)]
    assert bins == sorted(bins)
    assert 0 <= bins[0] <= bins[-1] < BINS


def test_beyond_the_range_the_extremes_stand_for_the_rest() -> None:
    values = [-math.inf, -5000.0, 0.0, 3000.0, 4000.0]
    assert [quantile(values, share) for share in (0.25, 0.5, 0.75)] == [-math.inf, 0.0, 4000.0]


def exact_log_mass(values: list[float], count: int) -> tuple[float, float]:
    """Log of the sum of the largest ratios, and the smallest of their logs."""
    largest = sorted(values)[-count:]
    return float(np.logaddexp.reduce(largest)), largest[0]


@given(log_ratios, st.integers(1, 400))
def test_the_mass_of_the_largest_is_never_above_the_truth_and_below_by_no_more_than_the_bin_allows(
    values: list[float], count: int
) -> None:
    assume(count <= len(values))
    exact, last = exact_log_mass(values, count)
    estimate = sketch_of(tensor(values)).log_mass_of_largest(count).item()
    width = max(abs(last) / 64, 2 * NEAREST)
    assert exact - width - 1e-12 * (1 + abs(exact)) <= estimate <= exact + 1e-12 * (1 + abs(exact))


def test_the_mass_of_log_normal_ratios_is_within_a_fraction_of_a_percent() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, _ = exact_log_mass(values.tolist(), 500)
    assert math.exp(sketch_of(values).log_mass_of_largest(500).item() - exact) == pytest.approx(1, abs=2e-3)


def same(a: LogRatioSketch, b: LogRatioSketch) -> bool:
    return torch.equal(a.counts, b.counts) and torch.allclose(a.log_sums, b.log_sums, rtol=1e-12, atol=1e-12)


@given(log_ratios, log_ratios)
def test_merging_pieces_equals_the_whole(a: list[float], b: list[float]) -> None:
    parts, nothing = (sketch_of(tensor(a)), sketch_of(tensor(b))), sketch_of(tensor([]))
    whole = sketch_of(tensor(a + b))
    assert same(parts[0].merge(parts[1]), whole)
    assert same(parts[1].merge(nothing).merge(parts[0]), whole)
    assert int(whole.counts.sum()) == len(a + b)


def test_ratios_of_zero_are_counted_and_weigh_nothing() -> None:
    sketch = sketch_of(tensor([-math.inf, -math.inf, 0.0]))
    assert int(sketch.counts.sum()) == 3
    assert torch.logsumexp(sketch.log_sums, 0).item() == 0


@given(log_ratios)
def test_counts_between_edges_are_those_of_the_values_themselves(values: list[float]) -> None:
    """An edge is where a bin ends; what is on it counts away from zero."""
    edges = [-1.5, -0.25, -1 / 1024, 1 / 1024, 0.25, 1.5]
    found = sketch_of(tensor(values)).counts_between(edges).tolist()
    bounds = [-math.inf, *edges, math.inf]
    expected = [
        sum((low <= v if low > 0 else low < v) and (v < high if high > 0 else v <= high) for v in values)
        for low, high in pairwise(bounds)
    ]
    assert found == expected


def test_values_on_the_edges_of_the_history_s_bins_count_away_from_zero() -> None:
    values = [-4.0, -1 / 1024, 0.0, 1 / 1024, 4.0, math.nan]
    found = sketch_of(tensor(values)).counts_between(LOG_RATIO_EDGES).tolist()
    assert (len(found), sum(found)) == (41, 6)
    assert (found[0], found[19], found[20], found[21], found[40]) == (1, 1, 1, 1, 2), "NaN is in the last one"

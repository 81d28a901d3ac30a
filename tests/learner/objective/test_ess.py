"""ESS: definition, identities, merging, and what happens at the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.objective.ess import WeightSums, segment_weight_sums, sequence_log_ratios, weight_sums

log_weights = st.lists(st.floats(-69, 69), min_size=1, max_size=40)  # ratios of 1e-30 to 1e30


def ess_of(values: list[float]) -> float:
    return weight_sums(torch.tensor(values, dtype=torch.float64)).ess.item()


def merged(*pieces: list[float]) -> WeightSums:
    total = weight_sums(torch.tensor([], dtype=torch.float64))
    for piece in pieces:
        total = total.merge(weight_sums(torch.tensor(piece, dtype=torch.float64)))
    return total


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_ess_is_the_square_of_the_sum_over_n_times_the_sum_of_squares(values: list[float]) -> None:
    w = np.exp(np.array(values))
    assert ess_of(values) == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()), rel=1e-12)


@given(log_weights)
def test_ess_lies_between_one_over_n_and_one(values: list[float]) -> None:
    assert 1 / len(values) <= ess_of(values) <= 1


@given(log_weights, st.floats(-600, 600))
def test_scaling_all_ratios_leaves_ess_unchanged(values: list[float], shift: float) -> None:
    assert ess_of([v + shift for v in values]) == pytest.approx(ess_of(values), rel=1e-9)


@given(log_weights, st.randoms(use_true_random=False))
def test_order_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ess_of(shuffled) == pytest.approx(ess_of(values), rel=1e-12)


@given(log_weights, log_weights, log_weights)
def test_merging_pieces_equals_the_whole(a: list[float], b: list[float], c: list[float]) -> None:
    pieces = merged(a, b, c)
    assert pieces.count == len(a + b + c)
    assert pieces.ess.item() == pytest.approx(ess_of(a + b + c), rel=1e-12)
    assert merged(c, a, b).ess.item() == pytest.approx(pieces.ess.item(), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 8), (8, 3), (1000, 1)])
def test_k_equal_and_n_minus_k_zero_weights_give_k_over_n(n: int, k: int) -> None:
    assert ess_of([2.5] * k + [-math.inf] * (n - k)) == pytest.approx(k / n, rel=1e-12)


def test_smaller_pieces_would_be_trusted_more() -> None:
    """The reason for one ESS per step: averaging over pieces depends on how the data was cut."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = weight_sums(values).ess.item()
    by_64 = np.mean([weight_sums(piece).ess.item() for piece in torch.split(values, 64)])
    by_8 = np.mean([weight_sums(piece).ess.item() for piece in torch.split(values, 8)])
    assert whole < by_64 < by_8
    assert whole == pytest.approx(math.exp(-1), abs=0.05)


@pytest.mark.parametrize("values", [[], [math.nan], [0.0, math.nan], [math.inf, 0.0], [-math.inf]])
def test_what_is_not_defined_is_nan_and_never_trusted(values: list[float]) -> None:
    assert math.isnan(ess_of(values))


def test_ess_carries_no_gradient() -> None:
    assert not weight_sums(torch.zeros(3, requires_grad=True)).ess.requires_grad


def test_the_ratio_of_a_completion_is_the_product_over_its_tokens() -> None:
    sums = sequence_log_ratios(torch.tensor([0.1, 0.2, -0.5]), torch.tensor([0, 0, 2]), 3)
    assert sums.tolist() == pytest.approx([0.3, 0.0, -0.5])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-69, 69)), max_size=40))
def test_the_sums_of_parts_are_those_of_each_part_by_itself(weights: list[tuple[int, float]]) -> None:
    part_of = torch.tensor([part for part, _ in weights], dtype=torch.int64)
    values = torch.tensor([value for _, value in weights], dtype=torch.float64)
    at_once = segment_weight_sums(values, part_of, 5)
    one_by_one = [weight_sums(values[part_of == part]) for part in range(5)]
    for field in ("log_sum", "log_sum_of_squares", "count", "ess"):
        expected = torch.stack([getattr(sums, field) for sums in one_by_one])
        torch.testing.assert_close(getattr(at_once, field), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@given(log_weights, st.integers(0, 40))
def test_the_sums_of_parts_merge_part_by_part(values: list[float], cut: int) -> None:
    log_w = torch.tensor(values, dtype=torch.float64)
    part_of = torch.arange(len(values)) % 3
    whole = segment_weight_sums(log_w, part_of, 3)
    pieces = [segment_weight_sums(log_w[piece], part_of[piece], 3) for piece in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(pieces[0].merge(pieces[1]).ess, whole.ess, rtol=1e-12, atol=0, equal_nan=True)


def test_a_part_whose_weights_are_all_zero_so_far_may_still_get_others() -> None:
    zero, one = (segment_weight_sums(torch.full((3,), value), torch.tensor([0, 0, 2]), 3) for value in (-math.inf, 0.0))
    assert zero.ess.isnan().all()
    assert zero.merge(one).ess.tolist() == pytest.approx([0.5, math.nan, 0.5], nan_ok=True)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_neither_leaves_its_part_nor_hides_in_it(broken: float) -> None:
    log_w = torch.tensor([0.0, 700.0, broken, 3.0, -800.0, -800.0], dtype=torch.float64)
    ess = segment_weight_sums(log_w, torch.tensor([0, 1, 1, 2, 2, 4]), 5).ess
    assert ess.isnan().tolist() == [False, True, False, True, False]  # part 3 has no weights at all
    assert ess[[0, 2, 4]].tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_thousands_of_equal_parts_have_ess_1_each() -> None:
    part_of = torch.arange(5_000).repeat_interleave(200)
    ess = segment_weight_sums(torch.zeros(1_000_000), part_of, 5_000).ess
    torch.testing.assert_close(ess, torch.ones_like(ess), rtol=1e-12, atol=0)

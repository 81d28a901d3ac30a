"""Intervals against Python's own sets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.intervals import Intervals


@given(st.lists(st.integers(0, 60)))
def test_it_is_the_same_set_in_fewest_disjoint_pairs(values: list[int]) -> None:
    intervals, plain = Intervals(), set[int]()
    for value in values:
        assert intervals.add(value) == (value not in plain)
        plain.add(value)
    assert {v for v in range(62) if v in intervals} == plain
    assert len(intervals) == len(plain)
    pairs = list(intervals.pairs())
    assert all(b[0] > a[1] + 1 for a, b in pairwise(pairs))
    assert Intervals(pairs) == intervals


@pytest.mark.parametrize("pairs", [[(-1, 2)], [(3, 2)], [(0, 2), (3, 4)], [(5, 6), (0, 1)]])
def test_pairs_that_are_no_ledger_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="does not follow"):
        Intervals(pairs)


def test_a_negative_value_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Intervals([(0, 3)]).add(-1)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_without_is_the_difference_of_sets(values: set[int], gone: set[int]) -> None:
    intervals = Intervals()
    for value in values:
        intervals.add(value)
    rest = intervals.without(gone)
    assert {i for first, last in rest.pairs() for i in range(first, last + 1)} == values - gone
    assert len(intervals) == len(values), "the original is as it was"

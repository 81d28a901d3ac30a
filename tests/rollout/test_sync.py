from __future__ import annotations

import pytest

from rollout.sync import ancestor, lineage

LINE = {5: 4, 4: 3, 3: 2, 2: 1}  # 1 and what was before it are gone
RESTORED = {6: 3, 5: 4, 4: 3, 3: 2, 2: -1}  # 6 was published by a learner that fell back to 3


@pytest.mark.parametrize(("lag", "expected"), [(0, 5), (1, 4), (3, 2), (4, 2), (99, 2)])
def test_the_lag_is_counted_along_the_ancestry_and_ends_at_the_oldest_known(lag: int, expected: int) -> None:
    assert ancestor(5, lag, LINE) == expected


@pytest.mark.parametrize(("lag", "expected"), [(0, 6), (1, 3), (2, 2), (3, 2)])
def test_versions_of_an_abandoned_branch_are_never_served(lag: int, expected: int) -> None:
    assert ancestor(6, lag, RESTORED) == expected


def test_a_lineage_ends_where_its_parents_are_no_longer_known() -> None:
    assert lineage(5, LINE) == [5, 4, 3, 2]
    assert lineage(6, RESTORED) == [6, 3, 2]
    assert lineage(7, {}) == [7]


def test_the_starting_model_has_no_ancestor() -> None:
    assert ancestor(0, 4, {0: -1}) == 0

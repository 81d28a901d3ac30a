"""What the plot draws where."""

from __future__ import annotations

import math

from services.plot import smoothed, step_of
from tests.services.rows import step


def test_a_version_stands_at_the_steps_that_made_it() -> None:
    rows = [step(n, policy_version=n - 1) for n in range(1, 6)]
    assert [step_of(version, rows) for version in (0, 1, 4, 5)] == [0, 1, 4, 5]


def test_versions_that_a_restore_jumped_over_stand_at_the_restored_step() -> None:
    rows = [step(1, policy_version=0), step(2, policy_version=1), step(3, policy_version=7)]
    assert step_of(7, rows) == 2


def test_smoothing_looks_back_and_leaves_out_what_is_not_finite() -> None:
    assert smoothed([1.0, 3.0, math.nan, 5.0], over=2) == [1.0, 2.0, 3.0, 5.0]
    assert math.isnan(smoothed([math.nan])[0])

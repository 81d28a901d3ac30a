"""Busy time of a rollout server, by a clock of the test's own."""

import pytest

from rollout.busy import WINDOW_S, Busy
from shared.metrics import RolloutMetrics


class Time:
    seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


def test_it_is_busy_while_groups_are_in_flight_and_the_engine_does_not_stand_still() -> None:
    time, metrics = Time(), RolloutMetrics()
    busy = Busy(metrics, time)
    value = metrics.registry.get_sample_value
    assert busy.share() == 0
    time.seconds += 4
    busy.in_flight(2)
    time.seconds += 3
    busy.stood_still(1.0)
    time.seconds += 3
    assert busy.in_flight(0) == pytest.approx(0.5)
    assert value("trustbatch_rollout_busy_seconds_total") == 5
    time.seconds += 10
    busy.stood_still(2.0)
    assert value("trustbatch_rollout_busy_share") == pytest.approx(0.25)
    busy.in_flight(1)
    time.seconds += 5
    busy.in_flight(1)
    assert value("trustbatch_rollout_busy_seconds_total") == 10, "what stood still while idle is not taken off later"


def test_the_share_forgets_what_is_longer_ago_than_its_window() -> None:
    time = Time()
    busy = Busy(RolloutMetrics(), time)
    for _ in range(100):
        time.seconds += 1
        busy.in_flight(0)
    busy.in_flight(1)
    for _ in range(int(WINDOW_S) // 2):
        time.seconds += 1
        busy.in_flight(1)
    assert busy.share() == pytest.approx(0.5, abs=0.02)
    for _ in range(int(WINDOW_S)):
        time.seconds += 1
        busy.in_flight(1)
    assert busy.share() == pytest.approx(1)

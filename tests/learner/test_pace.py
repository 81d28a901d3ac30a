"""Shares of the learner's time, and how long what waits for it will last, by a clock of the test's own."""

import pytest

from learner.pace import Clock
from shared.stream import Backlog


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


def test_the_time_between_two_steps_is_busy_waiting_or_something_else() -> None:
    time = Time()
    clock = Clock(time)
    time.passes(3)
    clock.waited()
    time.passes(1)
    first = clock.stepped(1.0, 4)
    assert (first.wait_s, first.busy_share, first.wait_share) == (3.0, None, None)
    time.passes(2)  # publishing
    clock.ready()
    time.passes(4)
    clock.waited()
    time.passes(2)
    second = clock.stepped(2.0, 4)
    assert second.wait_s == 4.0
    assert (second.busy_share, second.wait_share) == (0.25, 0.5)
    time.passes(2)
    again = clock.stepped(2.0, 4)
    assert (again.wait_s, again.wait_share, again.busy_share) == (0.0, 0.0, 1.0), "the first step had the waiting"


def test_a_backlog_lasts_as_long_as_the_newest_steps_took_for_as_many_groups() -> None:
    time = Time()
    clock = Clock(time)
    assert clock.stepped(1.0, 4).backlog_groups is None
    clock.sees(Backlog(groups=60, unapplied=40, leased=3, bytes=999, appended=70, dead_letters=0), 12.5)
    assert clock.drain_s is None, "one step has no pace"
    for _ in range(3):
        time.passes(2)
        pace = clock.stepped(1.0, 4)
    assert (pace.backlog_groups, pace.backlog_bytes, pace.backlog_oldest_s) == (40, 999, 12.5)
    assert pace.backlog_drain_s == pytest.approx(20), "2 groups a second"


def test_steps_that_apply_nothing_have_no_pace() -> None:
    time = Time()
    clock = Clock(time)
    clock.sees(Backlog(1, 1, 0, 1, 1, 0), None)
    for _ in range(2):
        time.passes(1)
        pace = clock.stepped(1.0, 0)
    assert pace.backlog_drain_s is None

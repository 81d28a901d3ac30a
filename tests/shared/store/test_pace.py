"""The bandwidth limit and what a slow link does to lag: functions of numbers, with a clock of the test's own."""

from __future__ import annotations

import pytest

from shared.store.pace import SMALLEST_PART, Pace, fetch_seconds, lag_of_fetching


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_bytes_take_the_time_that_the_rate_gives_them() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock, clock.sleep)
    for _ in range(8):
        pace.take(500)
    assert clock.now == pytest.approx(104.0)


def test_time_in_which_nothing_moved_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock, clock.sleep)
    pace.take(1000)
    clock.now += 60
    pace.take(1000)
    assert clock.now == pytest.approx(162.0)


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    Pace(0, clock, clock.sleep).take(2**40)
    assert clock.now == 100.0


def test_a_slow_link_moves_small_parts() -> None:
    assert Pace(0).part(2**23) == 2**23
    assert Pace(6_250_000).part(2**23) == 3_125_000
    assert Pace(1000).part(2**23) == SMALLEST_PART
    assert Pace(1e12).part(2**23) == 2**23


def test_a_fetch_takes_its_bytes_and_its_answers() -> None:
    assert fetch_seconds(84_000_000, 6_250_000) == pytest.approx(13.44)
    assert fetch_seconds(84_000_000, 6_250_000, parts=27, answer_s=0.1, parallel=4) == pytest.approx(14.14)


def followed(fetch_s: float, publish_s: float, phase_s: float) -> tuple[int, int]:
    """The most that a server is behind (when it switches, just before the next), by walking through its time.

    Its first fetches are left out: it may have begun between two versions.
    """
    at_switch = at_most = 0
    now, served = phase_s, -1  # version v is published at v publish_s
    for turn in range(200):
        newest = int(now / publish_s + 1e-9)
        if newest == served:
            now = (newest + 1) * publish_s
            continue
        now += fetch_s
        latest = int(now / publish_s + 1e-9)
        if turn > 20:
            at_most = max(at_most, latest - served)
        served = newest
        if turn > 20:
            at_switch = max(at_switch, latest - served)
    return at_switch, at_most


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.1, 1.6, 2.5, 3.2, 5.3, 7.7])
def test_the_formula_bounds_the_lag_of_a_server_that_fetches_again_and_again(ratio: float) -> None:
    foreseen = lag_of_fetching(ratio * 2.0, 2.0)
    walks = [followed(ratio * 2.0, 2.0, phase * 0.1) for phase in range(20)]
    assert all(walk[0] <= foreseen[0] and walk[1] <= foreseen[1] for walk in walks)
    assert max(walk[0] for walk in walks) == foreseen[0]
    assert max(walk[1] for walk in walks) == foreseen[1]

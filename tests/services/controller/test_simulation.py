"""Whole simulated runs: trust comes back, nothing swings, and where nothing is wrong nothing is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import pytest

from services.controller.decide import Setting
from services.controller.figure import acting_runs, draw, eventful, faultless
from services.controller.simulation import Point, World, simulate
from shared.config.controller import ControllerConfig

RULES = ControllerConfig()
SEEDS = range(3)
FAST = 0.05  # nats a version: lag 16 and max_staleness 4 lose two thirds of the weight, staleness 6 a tenth


def stale(lag: int = 16, drift: float = FAST) -> World:
    return World(lambda _: Setting(lag, 4), lambda _: drift)


def ess(points: Sequence[Point]) -> float:
    return float(median(point.row["token_ess"] for point in points))


def changes(points: Sequence[Point]) -> list[str]:
    return [point.kind for point in points if point.kind]


@pytest.mark.parametrize("seed", SEEDS)
def test_trust_comes_back_where_it_would_have_stayed_away(seed: int) -> None:
    left, steered = (list(simulate(stale(), 400, seed, rules)) for rules in (None, RULES))
    assert ess(left[50:]) < 0.55
    assert ess(steered[250:]) > 0.9
    assert fmean(p.row["staleness_mean"] for p in steered[250:]) > 1, "no more is taken away than has to be"


@pytest.mark.parametrize("seed", SEEDS)
def test_it_does_not_swing(seed: int) -> None:
    """For ever too much wanted: it tries again, in small steps and rarely."""
    points = list(simulate(stale(), 2500, seed, RULES))[1000:]
    assert len(changes(points)) <= len(points) / 75
    assert {point.setting.lag for point in points} <= {1, 2, 3, 4}
    assert {point.setting.max_staleness for point in points} == {2}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_wanted_is_reached_again_when_the_cause_has_gone(seed: int) -> None:
    world = World(lambda _: Setting(8, 4), lambda step: 4 * FAST if step < 100 else FAST / 8)
    points = list(simulate(world, 800, seed, RULES))
    assert min(point.setting.lag for point in points[:120]) <= 2
    assert points[-1].setting == Setting(8, 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_eventful_run_stays_within_what_is_wanted_and_within_its_actions(seed: int) -> None:
    points = list(simulate(eventful(), 1200, seed, RULES))
    for point in points:
        assert point.setting.lag <= point.wanted.lag
        assert point.setting.max_staleness <= point.wanted.max_staleness
    per_hour = 360  # steps of 10 s
    for i in range(0, len(points) - per_hour, 30):
        assert len(changes(points[i : i + per_hour])) <= RULES.actions_per_hour


def test_where_nothing_is_wrong_nothing_is_done() -> None:
    assert acting_runs(faultless(0.1, 64), 500, range(20)) == 0
    assert acting_runs(faultless(0.1, 16), 500, range(20)) == 0


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (list(simulate(stale(), 50, 3, RULES)) for _ in range(2))
    assert first == second


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "controller.png")
    assert (tmp_path / "controller.png").stat().st_size > 20_000

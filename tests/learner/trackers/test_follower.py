"""What a tracker is given: every final step once, whatever fails and whoever dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from learner.trackers import follower as follower_module
from learner.trackers.base import Place, Point
from learner.trackers.follower import AT_ONCE, STATE, Follower
from learner.trackers.series import point_of
from shared.log import configure
from shared.metrics import LearnerMetrics
from tests.services.rows import step, write_lines

END_S = 60.0


class Kept:
    """A tracker that keeps what it is given, for as long as the test."""

    def __init__(self, tells: bool = True) -> None:
        self.steps: list[int] = []
        self.opened: list[int] = []
        self.fails = 0  # of the next hand-overs
        self.after = 0  # points that such a hand-over takes first
        self.tells = tells
        self.gate: threading.Event | None = None

    def __call__(self, place: Place, sent: int) -> Kept:
        self.opened.append(sent)
        return self

    @property
    def newest(self) -> int:
        return max(self.steps, default=0) if self.tells else 0

    def send(self, points: Sequence[Point]) -> None:
        if self.gate is not None:
            self.gate.wait(END_S)
        if self.fails:
            self.fails -= 1
            self.steps += [point.step for point in points[: self.after]]
            raise RuntimeError("quota")
        self.steps += [point.step for point in points]

    def close(self) -> None:
        pass


Begin = Callable[[Kept], tuple[Follower, LearnerMetrics]]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    def started(tracker: Kept) -> tuple[Follower, LearnerMetrics]:
        metrics = LearnerMetrics()
        place = Place("mlflow", "run", "project", tmp_path / "mlflow", "")
        return Follower(place, tmp_path, metrics, configure("run", "learner", "critical"), tracker), metrics

    return started


def write(folder: Path, *steps: int) -> None:
    write_lines(folder / "history.jsonl", [step(number) for number in steps])


def test_only_what_a_checkpoint_holds_is_given_and_the_rest_when_it_does(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, *range(1, 8))
    tracker = Kept()
    follower, metrics = begin(tracker)
    follower.follow(4)
    follower.close(END_S)
    assert tracker.steps == [1, 2, 3, 4]
    assert json.loads((tmp_path / STATE).read_text())["step"] == 4
    assert metrics.registry.get_sample_value("trustbatch_tracker_rows_total") == 4
    again, _ = begin(tracker)
    again.follow(4)
    again.follow(7)
    again.close(END_S)
    assert tracker.steps == list(range(1, 8))


def test_steps_that_a_restore_takes_back_were_not_given(begin: Begin, tmp_path: Path) -> None:
    """Steps 5 to 7 of the first life are in no checkpoint; the second one's are."""
    write(tmp_path, *range(1, 8))
    tracker = Kept()
    follower, _ = begin(tracker)
    follower.follow(4)
    follower.close(END_S)
    write(tmp_path, *range(1, 5), 5, 6)
    second, _ = begin(tracker)
    second.follow(4)
    second.follow(6)
    second.close(END_S)
    assert tracker.steps == [1, 2, 3, 4, 5, 6]


def test_a_learner_that_dies_before_it_has_noted_asks_the_tracker(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, *range(1, 8))
    tracker = Kept()
    first, _ = begin(tracker)
    first.follow(4)
    first.close(END_S)
    (tmp_path / STATE).unlink()
    second, _ = begin(tracker)
    second.follow(7)
    second.close(END_S)
    assert tracker.steps == list(range(1, 8))


def test_a_tracker_that_fails_is_counted_and_tried_again_with_the_next_checkpoint(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, *range(1, 8))
    tracker = Kept()
    tracker.fails, tracker.after = 1, 2
    follower, metrics = begin(tracker)
    follower.follow(4)
    _until(lambda: metrics.registry.get_sample_value("trustbatch_tracker_failures_total") == 1)
    follower.follow(7)
    follower.close(END_S)
    assert tracker.steps == list(range(1, 8))
    assert tracker.opened == [0, 0], "opened anew after the failure"


def test_a_tracker_that_hangs_keeps_nobody_waiting(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    tracker = Kept()
    tracker.gate = threading.Event()
    follower, _ = begin(tracker)
    follower.follow(1)
    follower.follow(2)
    follower.close(0.05)
    assert tracker.steps == []
    tracker.gate.set()
    follower.close(END_S)
    assert tracker.steps == [1, 2]


def test_a_long_history_is_read_as_it_is_given(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *range(1, 2 * AT_ONCE + 3))
    made: list[int] = []
    given: list[tuple[int, int]] = []

    def counted(row: Mapping[str, Any]) -> Point:
        made.append(row["step"])
        return point_of(row)

    class Counting(Kept):
        def send(self, points: Sequence[Point]) -> None:
            super().send(points)
            given.append((len(points), len(made)))

    monkeypatch.setattr(follower_module, "point_of", counted)
    tracker = Counting()
    follower, _ = begin(tracker)
    follower.follow(2 * AT_ONCE + 1)
    follower.close(END_S)
    assert given == [(AT_ONCE, AT_ONCE), (AT_ONCE, 2 * AT_ONCE), (1, 2 * AT_ONCE + 1)]
    assert tracker.steps == list(range(1, 2 * AT_ONCE + 2))


def test_another_run_in_the_tracker_is_given_everything(begin: Begin, tmp_path: Path) -> None:
    write(tmp_path, *range(1, 5))
    (tmp_path / STATE).write_text(json.dumps({"place": "wandb elsewhere", "step": 3}))
    tracker = Kept(tells=False)
    follower, _ = begin(tracker)
    follower.follow(4)
    follower.close(END_S)
    assert tracker.steps == [1, 2, 3, 4]


def test_without_a_history_nothing_is_given_and_nothing_fails_for_good(begin: Begin, tmp_path: Path) -> None:
    tracker = Kept()
    follower, metrics = begin(tracker)
    follower.follow(3)
    _until(lambda: metrics.registry.get_sample_value("trustbatch_tracker_failures_total") == 1)
    write(tmp_path, 1, 2, 3, 4)
    follower.follow(4)
    follower.close(END_S)
    assert tracker.steps == [1, 2, 3, 4]


def _until(holds: Callable[[], bool]) -> None:
    """Waits for another thread."""
    waiting = threading.Event()
    for _ in range(6000):
        if holds():
            return
        waiting.wait(0.01)
    pytest.fail("it never happened")

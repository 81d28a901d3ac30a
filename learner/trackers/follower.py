"""Hands the steps that are final to a tracker, from a thread of its own; training never waits for it.

    checkpoint written --> its steps will never be taken back --> rows of history.jsonl --> tracker --> tracker.json

A step is given when a checkpoint holds it, so a restore takes nothing back that was given. `tracker.json` says how far
the tracker is; a learner that died between giving and noting asks the tracker itself, by the step numbers.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from learner.trackers.base import Opener, Place, Point, Tracker, opener_of
from learner.trackers.series import point_of
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.store import write_durably

STATE = "tracker.json"
AT_ONCE = 100  # points in one hand-over


class Follower:
    """The thread. What a tracker fails with is said once, until it works again, counted, and tried again later."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        metrics: LearnerMetrics,
        log: Logger,
        opener: Opener | None = None,
    ) -> None:
        """`folder` is the run's; `opener` the tracker's, else that of its kind."""
        self._place = place
        self._history = folder / "history.jsonl"
        self._state = folder / STATE
        self._metrics = metrics
        self._log = log
        self._opener = opener
        self._tracker: Tracker | None = None
        self._failing = False
        self._sent = self._noted()
        self._read = 0  # bytes of the history that hold nothing new any more
        self._final = 0
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def follow(self, step: int) -> None:
        """Every step up to this one is final."""
        with self._changed:
            self._final = step
            self._changed.notify()

    def close(self, deadline_s: float) -> None:
        """Gives what is final, for at most so long."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            self._log.warning("the tracker did not take the last steps in time", seconds=deadline_s)

    def _run(self) -> None:
        done = False
        tried = 0
        while not done:
            with self._changed:
                while not self._ending and self._final <= tried:
                    self._changed.wait()
                done, tried = self._ending, self._final
            self._whatever_happens(partial(self._give, tried))
        self._whatever_happens(self._end)

    def _give(self, final: int) -> None:
        if final > self._sent:
            tracker = self._opened()
            for points in self._new(final):
                tracker.send(points)
                self._note(points[-1].step)
                self._metrics.tracker_rows.inc(len(points))

    def _end(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def _whatever_happens(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._failing = False
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything, and the run is worth more
            self._metrics.tracker_failures.inc()
            if not self._failing:
                text = f"{type(error).__name__}: {error}"[:500]
                self._log.warning("the tracker failed; training goes on", kind=self._place.kind, error=text)
            self._failing = True
            self._tracker, self._read = None, 0

    def _opened(self) -> Tracker:
        if self._tracker is None:
            opener = self._opener or opener_of(self._place.kind)
            self._tracker = opener(self._place, self._sent)
            self._sent = max(self._sent, self._tracker.newest)
        return self._tracker

    def _new(self, final: int) -> Iterator[list[Point]]:
        """Points that are final and were not given, in order, a few at a time."""
        points: list[Point] = []
        with self._history.open("rb") as file:
            file.seek(self._read)
            for line in file:
                row = json.loads(line)
                if row["step"] > final:
                    break
                self._read += len(line)
                if row["step"] > self._sent:
                    points.append(point_of(row))
                if len(points) == AT_ONCE:
                    yield points
                    points = []
        if points:
            yield points

    def _note(self, step: int) -> None:
        self._sent = step
        note = {"place": self._place.text, "step": step, "at": time.time()}
        write_durably(self._state, (json.dumps(note) + "\n").encode())

    def _noted(self) -> int:
        try:
            note = json.loads(self._state.read_text())
            return int(note["step"]) if note["place"] == self._place.text else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

"""How much of its time a server generates: groups are in flight, and the engine does not stand still for a sync."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Lock

from shared.metrics import RolloutMetrics

WINDOW_S = 60.0
MARKS = 600  # points kept of it


class Busy:
    """Adds up busy time; the share is of the last WINDOW_S, or since the start. A scrape asks from its own thread."""

    def __init__(self, metrics: RolloutMetrics, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = metrics.busy_seconds
        self._now = now
        self._lock = Lock()
        self._groups = 0
        self._still_s = 0.0  # stood still, and not yet taken off
        self._at, self._total = now(), 0.0
        self._marks = deque([(self._at, 0.0)])  # when, and the busy seconds until then
        metrics.busy_share.set_function(self.share)

    def in_flight(self, groups: int) -> float:
        """From now on so many groups are being generated. Returns the share."""
        with self._lock:
            share = self._advance()
            self._groups = groups
        return share

    def stood_still(self, seconds: float) -> None:
        """So much of the time until now was a pause of the engine."""
        with self._lock:
            self._still_s += seconds

    def share(self) -> float:
        """Of the last minute."""
        with self._lock:
            return self._advance()

    def _advance(self) -> float:
        now = self._now()
        passed = now - self._at
        if self._groups:
            still = min(self._still_s, passed)
            self._total += passed - still
            self._still_s -= still
            self._seconds.inc(passed - still)
        else:
            self._still_s = 0.0
        self._at = now
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()
        if now - self._marks[-1][0] >= WINDOW_S / MARKS:
            self._marks.append((now, self._total))
        began, before = self._marks[0]
        return (self._total - before) / (now - began) if now > began else 0.0

"""How the learner's time goes, and how long what waits for it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from learner.records import Pace
from shared.stream import Backlog

STEPS = 20  # newest ones, over which the pace is taken


class Clock:
    """Tells waiting from computing. `now` gives seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ready_since = now()
        self._waited_s = 0.0
        self._last_step: float | None = None  # when it had ended
        self._applied: deque[tuple[float, int]] = deque(maxlen=STEPS)  # when, and how many groups
        self._backlog: Backlog | None = None
        self._oldest_s: float | None = None

    def ready(self) -> None:
        """From now on it waits for groups; the time until now was spent on something else."""
        self._ready_since = self._now()

    def waited(self) -> None:
        """There is a batch: until now it has waited."""
        self._waited_s = self._now() - self._ready_since

    def sees(self, backlog: Backlog, oldest_s: float | None) -> None:
        """What the stream holds now, and since when the oldest group that nobody has read has been there."""
        self._backlog, self._oldest_s = backlog, oldest_s

    def stepped(self, compute_s: float, groups: int) -> Pace:
        """A step has ended, the last one of so many groups. The waiting before a batch counts to its first step."""
        now, waited, backlog = self._now(), self._waited_s, self._backlog
        wall = now - self._last_step if self._last_step is not None else 0.0
        self._last_step, self._waited_s = now, 0.0
        self._applied.append((now, groups))
        return Pace(
            wait_s=waited,
            busy_share=min(1.0, compute_s / wall) if wall > 0 else None,
            wait_share=min(1.0, waited / wall) if wall > 0 else None,
            backlog_groups=backlog.unapplied if backlog else None,
            backlog_bytes=backlog.bytes if backlog else None,
            backlog_oldest_s=self._oldest_s,
            backlog_drain_s=self.drain_s,
        )

    @property
    def drain_s(self) -> float | None:
        """How long the groups that wait will last, at the pace at which the newest steps used groups up."""
        used = sum(groups for _, groups in list(self._applied)[1:])
        if self._backlog is None or not used:
            return None
        return self._backlog.unapplied * (self._applied[-1][0] - self._applied[0][0]) / used

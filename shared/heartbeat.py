"""The thread that says that a component lives, and what it does or waits for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any

from shared.control import ControlState
from shared.errors import StreamError
from shared.probe import Standing, standing

MIN_INTERVAL_S = 0.2  # states that change faster than this are shown at this rate
MAX_INTERVAL_S = 2.0  # numbers that somebody watches are no older than this
BEATS_PER_TTL = 3


class Heartbeat:
    """Sends one component's status every third of its time to live or sooner, and soon after every change of state."""

    def __init__(self, control: ControlState, component: str, ttl_s: float, **status: Any) -> None:
        self._control = control
        self._component = component
        self._ttl_s = ttl_s
        self._status = {**status, "state": "starting", "since": time.time()}
        self._said_at = self._moved_at = time.monotonic()
        self._lock = Lock()
        self._changed = Event()
        self._ended = Event()
        self._thread = Thread(target=self._run, name=f"heartbeat {component}", daemon=True)

    def start(self) -> Heartbeat:
        """Begins to beat."""
        self._thread.start()
        return self

    def set_state(self, state: str, **fields: Any) -> None:
        """A new state, sent at once, and any other fields; an unchanged state keeps its `since`."""
        with self._lock:
            self._take(fields)
            if state == self._status["state"]:
                return
            self._take({"state": state, "since": time.time()})
        self._changed.set()

    def update(self, **fields: Any) -> None:
        """Fields to send with the next beat; none at all says that the component still goes on."""
        with self._lock:
            self._take(fields)

    def note(self, **fields: Any) -> None:
        """Fields that change with time alone: the component still goes on, and no more than that."""
        with self._lock:
            self._said_at = time.monotonic()
            self._status.update(fields)

    def progress(self) -> None:
        """The work goes on, although there is nothing new to say of it; from any thread."""
        with self._lock:
            self._said_at = self._moved_at = time.monotonic()

    @property
    def status(self) -> dict[str, Any]:
        """What would be sent now."""
        with self._lock:
            return dict(self._status)

    def standing(self, stalled_after_s: float) -> Standing:
        """What the health probes answer; see `shared.probe`."""
        now = time.monotonic()
        with self._lock:
            return standing(self._status, now - self._said_at, now - self._moved_at, stalled_after_s)

    def stop(self, leave: bool = True) -> None:
        """Ends the thread; with `leave`, takes the component off the list (an orderly stop)."""
        self._ended.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()
        if leave:
            with suppress(StreamError):  # the entry then runs out by itself
                self._control.leave(self._component)

    def _take(self, fields: Mapping[str, Any]) -> None:
        self._said_at = time.monotonic()
        if any(self._status.get(name) != value for name, value in fields.items()):
            self._moved_at = self._said_at
            self._status["progress_at"] = time.time()
        self._status.update(fields)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._changed.clear()
            with suppress(StreamError):  # Redis is away: the next beat tries again
                self._control.beat(self._component, self.status, self._ttl_s)
            self._ended.wait(MIN_INTERVAL_S)
            self._changed.wait(max(0.0, min(self._ttl_s / BEATS_PER_TTL, MAX_INTERVAL_S) - MIN_INTERVAL_S))

"""The thread that says that a component lives, and what it does or waits for."""

from __future__ import annotations

import time
from threading import Event, Lock, Thread
from typing import Any

from shared.control import ControlState
from shared.errors import StreamError

MIN_INTERVAL_S = 0.2  # states that change faster than this are shown at this rate
BEATS_PER_TTL = 3


class Heartbeat:
    """Sends one component's status every third of its time to live, and soon after every change of state."""

    def __init__(self, control: ControlState, component: str, ttl_s: float, **status: Any) -> None:
        self._control = control
        self._component = component
        self._ttl_s = ttl_s
        self._status = {**status, "state": "starting", "since": time.time()}
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
            self._status.update(fields)
            if state == self._status["state"]:
                return
            self._status.update(state=state, since=time.time())
        self._changed.set()

    def update(self, **fields: Any) -> None:
        """Fields to send with the next beat."""
        with self._lock:
            self._status.update(fields)

    @property
    def status(self) -> dict[str, Any]:
        """What would be sent now."""
        with self._lock:
            return dict(self._status)

    def stop(self, leave: bool = True) -> None:
        """Ends the thread; with `leave`, takes the component off the list (an orderly stop)."""
        self._ended.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()
        if leave:
            try:
                self._control.leave(self._component)
            except StreamError:
                return  # the entry runs out by itself

    def _run(self) -> None:
        while not self._ended.is_set():
            self._changed.clear()
            try:
                self._control.beat(self._component, self.status, self._ttl_s)
            except StreamError:
                pass  # Redis is away: the next beat tries again, and its absence is what others see
            self._ended.wait(MIN_INTERVAL_S)
            self._changed.wait(max(0.0, self._ttl_s / BEATS_PER_TTL - MIN_INTERVAL_S))

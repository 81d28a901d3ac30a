"""What the servers of one process share: how fast, how many, and the log of what Redis acknowledged."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Pace:
    """Times at which appends are due: `rate` a second over all servers; 0 is as fast as it goes."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def due_in(self) -> float:
        """Takes the next turn; seconds until it. What was missed while nobody could append is not caught up on."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - 1.0) + 1 / self._rate
            return max(0.0, self._next - now)


class Budget:
    """How many groups may still be appended; None is no limit."""

    def __init__(self, count: int | None) -> None:
        self._left = count
        self._out = 0
        self._lock = threading.Lock()

    def take(self, want: int) -> int:
        """Reserves up to so many."""
        with self._lock:
            n = want if self._left is None else min(want, self._left - self._out)
            self._out += n
            return n

    def settle(self, stored: int, unused: int) -> None:
        """Ends a reservation of stored + unused."""
        with self._lock:
            self._out -= stored + unused
            if self._left is not None:
                self._left -= stored

    @property
    def spent(self) -> bool:
        """True when every group is in the stream."""
        with self._lock:
            return self._left is not None and self._left == 0


class AppendLog:
    """One JSON line for every answer of Redis to an append, flushed before the next append of that server."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path is not None else None
        self._lock = threading.Lock()

    def write(self, **row: Any) -> None:
        """Adds a line."""
        if self._file is not None:
            line = json.dumps(row) + "\n"
            with self._lock:
                self._file.write(line)

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()

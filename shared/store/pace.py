"""A limit on bytes a second, for all threads of a process together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SMALLEST_PART = 64 * 2**10  # bytes


class Pace:
    """Whoever moves bytes takes them here first, and waits until their time has passed."""

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s  # 0: no limit
        self._clock = clock
        self._sleep = sleep
        self._free = 0.0  # when what was taken so far has passed
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Waits for the time that so many bytes need."""
        if not self.bytes_per_s:
            return
        with self._lock:
            now = self._clock()
            self._free = max(now, self._free) + count / self.bytes_per_s
            wait_s = self._free - now
        self._sleep(wait_s)

    def part(self, most: int) -> int:
        """Bytes to move at once: half a second's at most, so that the link is used evenly."""
        if not self.bytes_per_s:
            return most
        return min(most, max(SMALLEST_PART, int(self.bytes_per_s / 2)))


def fetch_seconds(count: int, bytes_per_s: float, parts: int = 1, answer_s: float = 0.0, parallel: int = 1) -> float:
    """How long a download takes: its bytes at the link's rate, and what waiting for answers adds.

    fetch_s = bytes / rate + ceil(parts / parallel) answer_s
    """
    return count / bytes_per_s + -(-parts // parallel) * answer_s


def lag_of_fetching(fetch_s: float, publish_s: float) -> tuple[int, int]:
    """By how many versions a server is behind because fetching takes time: (when it switches, just before the next).

        at the switch    0 for F < T, else ceil(F / T) at most
        at most          1 for F <= T, else ceil(2 F / T): it serves that version while it fetches the next one

    with F = fetch seconds, T = seconds between published versions. The server fetches whatever is newest, again and
    again.
    """
    at_switch = _ceil(fetch_s / publish_s) if fetch_s >= publish_s else 0
    return at_switch, _ceil(2 * fetch_s / publish_s) if fetch_s > publish_s else 1


def _ceil(x: float) -> int:
    return -int(-x // 1)

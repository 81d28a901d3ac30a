"""What a rollout server remembers of its acknowledged appends, so that it can say what a Redis has forgotten."""

from __future__ import annotations

from collections import deque
from threading import Lock

REMEMBERED = 16_384  # appends: many times what may be waiting in the stream under any credit


class Acknowledged:
    """The newest appends of one server, each with Redis's own count of them. May be used by many threads."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._lock = Lock()
        self._appends: deque[tuple[int, int]] = deque(maxlen=most)  # (count after it, prompt index), ascending
        self._times_lost = 0
        self.known = 0  # appends that Redis is known to have counted

    def now(self) -> tuple[int, int]:
        """(appends that Redis must remember, how often it has forgotten some): to be given back to `forgotten`."""
        with self._lock:
            return self.known, self._times_lost

    def add(self, prompt_index: int, count: int, times_lost: int) -> bool:
        """Redis has acknowledged the group of this prompt, its `count`-th append of this server.

        Returns:
            False where Redis has forgotten appends since that call began: this may be one of them.

        """
        with self._lock:
            if times_lost != self._times_lost:
                return False
            self.known = max(self.known, count)
            self._appends.append((count, prompt_index))
            return True

    def forgotten(self, count: int, times_lost: int) -> list[int]:
        """Redis counts only `count` appends: the prompt indices of the others, each told once."""
        with self._lock:
            if times_lost != self._times_lost:
                return []  # another thread has seen this loss before
            gone = [index for number, index in self._appends if number > count]
            self._appends = deque((pair for pair in self._appends if pair[0] <= count), self._appends.maxlen)
            self.known, self._times_lost = count, times_lost + 1
            return gone

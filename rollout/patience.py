"""Calls to Redis from the event loop: off it, and repeated through an outage for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from rollout.status import Status
from shared.errors import AccessError, OutOfMemoryError, StreamError
from shared.log import Logger
from shared.metrics.made import RedisCounters

T = TypeVar("T")
OUTAGE_S = 60.0
RETRY_S = 0.5


class Patience:
    """Runs calls that are safe to repeat."""

    def __init__(self, status: Status, log: Logger, counters: RedisCounters, outage_s: float = OUTAGE_S) -> None:
        self._status = status
        self._log = log
        self._counters = counters
        self._outage_s = outage_s

    async def __call__(self, what: str, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            OutOfMemoryError: at once; how long to put up with that is the caller's affair.
            AccessError: at once.
            StreamError: Redis has refused or not answered for OUTAGE_S.

        """
        first_failure: float | None = None
        while True:
            try:
                result = await asyncio.to_thread(call)
            except (AccessError, OutOfMemoryError):
                raise
            except StreamError as error:
                now = time.monotonic()
                if first_failure is None:
                    first_failure = now
                    self._counters.outages.inc()
                    self._log.warning("Redis does not answer", waits_to=what, error=str(error))
                if now - first_failure > self._outage_s:
                    raise StreamError(f"waited {self._outage_s:g} s for Redis to {what}: {error}") from error
            else:
                if first_failure is not None:
                    self._status.say("redis", "")
                    self._log.info("Redis answers again", waited_s=round(time.monotonic() - first_failure, 1))
                return result
            self._status.say("redis", f"waiting for Redis to {what}")
            await asyncio.sleep(RETRY_S)
            self._counters.retries.inc()

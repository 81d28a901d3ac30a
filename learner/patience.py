"""Commands that outlast an outage of Redis: tried again for a minute, saying what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from shared.errors import AccessError, DataLossError, DeadlineError, RefusedError, StreamError
from shared.log import Logger
from shared.metrics.made import RedisCounters
from shared.process import Deadline, StopFlag

OUTAGE_S = 60.0
RETRY_S = 0.25

T = TypeVar("T")


class Patience:
    """Runs commands that may be repeated; after an outage the stream is opened again before the next try."""

    def __init__(
        self,
        reopen: Callable[[], None],
        say: Callable[[str], None],
        stop: StopFlag,
        log: Logger,
        counters: RedisCounters,
        outage_s: float = OUTAGE_S,
    ) -> None:
        self._reopen = reopen
        self._say = say
        self._stop = stop
        self._log = log
        self._counters = counters
        self._outage_s = outage_s

    def __call__(self, purpose: str, command: Callable[[], T]) -> T:
        """Runs a command whose repetition does no harm.

        Raises:
            DeadlineError: Redis stayed away; names the purpose and the last error.
            StreamError: it is away and the process was asked to stop.
            FencedError, AccessError: at once.

        """
        try:
            return command()
        except AccessError:
            raise
        except StreamError as error:
            return self._again(purpose, command, error)

    def tell(self, purpose: str, command: Callable[[], object]) -> None:
        """The same for what only informs: what Redis refuses, as at maxmemory, is left out, and said."""

        def unless_refused() -> None:
            try:
                command()
            except RefusedError as error:
                self._counters.left_out.inc()
                self._log.warning("not told: Redis refuses it", purpose=purpose, error=str(error))

        self(purpose, unless_refused)

    def _again(self, purpose: str, command: Callable[[], T], error: StreamError) -> T:
        deadline = Deadline(f"Redis, to {purpose}", self._outage_s)
        self._counters.outages.inc()
        said = "redis has lost data" if isinstance(error, DataLossError) else "redis is away"
        self._log.warning(said, purpose=purpose, error=str(error))
        while not self._stop:
            self._say(f"waiting for Redis, to {purpose}")
            if deadline.remaining == 0.0:
                raise DeadlineError(f"waited {self._outage_s:g} s for Redis, to {purpose}; last error: {error}")
            time.sleep(min(RETRY_S, deadline.remaining))
            self._counters.retries.inc()
            try:
                self._reopen()
                return command()
            except AccessError:
                raise
            except StreamError as next_error:
                error = next_error
        raise error

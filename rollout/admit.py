"""Which prompts a server works on: asks for leases, keeps the groups in flight, says what it waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from rollout.parts import Parts
from shared.admission import Grant
from shared.errors import OutOfMemoryError
from shared.lag import Asked
from shared.wishes import incarnation

FIRST_POLL_S = 0.01  # after a refusal; doubled up to LONGEST_POLL_S
LONGEST_POLL_S = 0.1
ANOTHER_LAG = "another lag is asked for"
_LONG = {
    "no published version yet": "the first published version",
    "weights are behind": "newer weights",
    "weights are ahead": "the older weights of its lag",
    ANOTHER_LAG: "the weights of another lag",
}
OVER = ("finished", "failed")  # phases in which nothing is given out any more
DRAINING = "draining"
DISMISSED = "dismissed"  # drained, and asked to end


class Admitter:
    """Keeps up to rollout.groups_in_flight groups going. `generate` sees one prompt index through, at its lag."""

    def __init__(
        self,
        parts: Parts,
        served: Callable[[], int],
        asked: Callable[[], Asked | None],
        generate: Callable[[int, Asked], Awaitable[None]],
    ) -> None:
        self._parts = parts
        self._served = served
        self._asked = asked
        self._generate = generate
        self._capacity = parts.config.rollout.groups_in_flight
        self._groups: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._asking = asyncio.Lock()  # held while a lease is on its way; draining takes it to stop the asking
        self._ledger = threading.Lock()  # a lease whose caller was cancelled must not land after the last return
        self.draining = False  # an operator wants it to take nothing new
        self._closed = False
        self._doubtful = False  # True: there may be leases that nobody knows of, of a call whose answer was lost
        self._compared_at = time.monotonic()  # when the leases in Redis were last compared with the groups in flight
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        """Admits until the run is over; returns the phase. Raises what ended a group for good."""
        admitting = asyncio.ensure_future(self._admit())
        try:
            either: set[asyncio.Future[Any]] = {admitting, self._broken}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
            return await admitting
        finally:
            await end(admitting)

    @asynccontextmanager
    async def drained(self, deadline_s: float) -> AsyncIterator[None]:
        """Within the block nothing is in flight and nothing is admitted. Raises TimeoutError before it."""
        async with self._asking:
            async with asyncio.timeout(deadline_s):
                while self._groups:
                    await asyncio.wait(self._groups.values())
            yield

    async def idle(self, wait_s: float) -> None:
        """Returns when no group is in flight, or after so long; admission goes on meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._groups:
                    await asyncio.wait(self._groups.values(), return_when=asyncio.FIRST_COMPLETED)

    async def stop(self, grace_s: float) -> None:
        """Gives the groups in flight some time, ends the rest, and returns every lease."""
        if self._groups and grace_s > 0:
            await asyncio.wait(self._groups.values(), timeout=grace_s)
        left = list(self._groups.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._broken.done():
            self._broken.exception()  # it has been raised, or came too late to matter
        await asyncio.to_thread(self._close)

    def wake(self) -> None:
        """Asks again at once: something that it may have waited for has changed."""
        self._changed.set()

    async def _admit(self) -> str:
        poll_s = FIRST_POLL_S
        while True:
            self._changed.clear()
            reason = await self._ask() if len(self._groups) < self._capacity else ""
            if reason in (*OVER, DISMISSED):
                return reason
            self._say(reason)
            poll_s = min(2 * poll_s, LONGEST_POLL_S) if reason else FIRST_POLL_S
            started = time.monotonic()
            try:
                async with asyncio.timeout(poll_s if reason else None):
                    await self._changed.wait()
            except TimeoutError:
                pass
            if reason:
                self._parts.metrics.wait_seconds.labels(reason).inc(time.monotonic() - started)

    async def _ask(self) -> str:
        reason = await self._fill()
        self.draining = reason in (DRAINING, DISMISSED)
        self._parts.status.drains(self.draining)
        return reason

    async def _fill(self) -> str:
        """Asks for as many prompts as there is room for; why it did not get them all, '' if it did."""
        async with self._asking:
            try:
                grant, asked = await self._lease(self._capacity - len(self._groups))
            except OutOfMemoryError:
                return "Redis memory"
            for index in grant.indices:
                self._begin(index, asked)
        return grant.reason

    async def _lease(self, want: int) -> tuple[Grant, Asked]:
        """A grant, and the lag that it was given for."""

        def ask() -> tuple[Grant, Asked]:
            with self._ledger:
                if self._closed:
                    return Grant((), "stopping"), Asked()
                grant, asked = self._granted(want)
                return (grant if grant.indices or grant.reason in OVER else self._drained(grant)), asked

        return await self._parts.patience("ask for prompts", ask)

    def _granted(self, want: int) -> tuple[Grant, Asked]:
        if (served := self._served()) < 0:
            return Grant((), "a version that proves itself"), Asked()
        self._parts.writer.confirm()  # before a lease, so that no lease in use is taken for one of the past
        if self._doubtful or time.monotonic() - self._compared_at > self._parts.config.admission.lease_s:
            self._return_leases()
        asked = self._asked()
        if asked is None:
            return Grant((), ANOTHER_LAG), Asked()
        self._doubtful = True
        grant = self._parts.admission.lease(want, served, asked)
        self._doubtful = False
        return grant, asked

    def _drained(self, refusal: Grant) -> Grant:
        """Whatever it waits for: if it is to drain, it keeps no lease beyond the groups in flight, and may leave."""
        mark = self._parts.wishes.draining().get(self._parts.server_id)
        if mark is None:
            return refusal
        self._return_leases()
        leaves = not self._groups and mark.leave == incarnation(self._parts.status.heartbeat.status)
        return Grant((), DISMISSED if leaves else DRAINING)

    def _close(self) -> None:
        with self._ledger:
            self._closed = True
            self._return_leases()

    def _return_leases(self) -> None:
        """Gives back every lease that no group in flight is for.

        There are such after a call whose answer was lost, and after a Redis that lost its last second came back
        with the leases of groups that it had already acknowledged: renewed with all others, they would never end.
        """
        lost = [index for index in self._parts.admission.held() if index not in self._groups]
        self._parts.admission.give_back(lost)
        self._compared_at = time.monotonic()

    def _begin(self, index: int, asked: Asked) -> None:
        task = asyncio.ensure_future(self._generate(index, asked))
        self._groups[index] = task
        self._count()
        task.add_done_callback(lambda done: self._ended(index, done))

    def _ended(self, index: int, task: asyncio.Future[None]) -> None:
        if self._groups.get(index) is task:  # else it was given back, and leased again at once
            del self._groups[index]
        self._count()
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _count(self) -> None:
        self._parts.status.in_flight(len(self._groups))
        self._parts.busy.in_flight(len(self._groups))
        self._parts.metrics.in_flight.set(len(self._groups))

    def _say(self, reason: str) -> None:
        if self._groups:
            self._parts.status.say("admission", "generating groups")
        elif reason:
            plain = reason.startswith("paused") or reason in (DRAINING, DISMISSED)
            self._parts.status.say("admission", reason if plain else f"waiting for {_long(reason)}")


async def end(task: asyncio.Future[Any]) -> None:
    """Ends a task of which nothing is wanted any more; an error of its own is not the first, and not told again."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _long(reason: str) -> str:
    return _LONG.get(reason, reason)

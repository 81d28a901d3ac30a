"""Threads for an environment's synchronous code: a deadline for each call and a bound on what hangs.

A Python thread cannot be ended from outside. One that misses its deadline is written off and replaced; when
`MAX_HUNG` of them hang at once the pool refuses further work. The threads are daemons, so none of them
keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rollout.environments.failure import Failure
from shared.errors import TrustbatchError

T = TypeVar("T")
MAX_HUNG = 8


@dataclass
class _Job:
    call: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    written_off: bool = False  # guarded by the pool's lock, like `ended`
    ended: bool = False


class Threads:
    """Runs calls in at most `workers` threads that are not hung, outside the event loop."""

    def __init__(self, name: str, workers: int, deadline_s: float) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._free = asyncio.Semaphore(workers)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._hung = 0
        for _ in range(workers):
            self._start_worker()

    @property
    def hung(self) -> int:
        """Threads that missed their deadline and have not come back."""
        return self._hung

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            EnvironmentFailure: it raised, missed the deadline, or too many calls hang already.

        """
        async with self._free:
            if self._hung >= MAX_HUNG:
                raise Failure("hung", f"{self._name}: {self._hung} calls hang; no more are made until one ends")
            loop = asyncio.get_running_loop()
            job = _Job(call, loop.create_future(), loop)
            self._jobs.put(job)
            try:
                async with asyncio.timeout(self._deadline_s):
                    answer: T = await job.answer
                    return answer
            except TimeoutError:
                raise Failure("deadline", f"{self._name}: no answer within {self._deadline_s:g} s") from None
            finally:
                self._write_off(job)

    def close(self) -> None:
        """Lets idle threads end."""
        self._jobs.put(None)

    def _write_off(self, job: _Job) -> None:
        """A job that is left before its end, by deadline or cancellation, has lost its thread: replace it."""
        with self._lock:
            if job.ended:
                return
            job.written_off = True
            self._hung += 1
        self._start_worker()

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, name=f"environment-{self._name}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            problem: TrustbatchError | None = None
            try:
                result = job.call()
            except TrustbatchError as error:
                problem = error
            except Exception as error:  # noqa: BLE001 - foreign code may raise anything
                problem = Failure("raised", f"{self._name}: {type(error).__name__}: {error}")
            with self._lock:
                job.ended = True
                if job.written_off:  # another thread has this one's place
                    self._hung -= 1
                    return
            try:
                job.loop.call_soon_threadsafe(_resolve, job.answer, result, problem)
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return
        self._jobs.put(None)  # for the next idle thread


def _resolve(answer: asyncio.Future[Any], result: Any, problem: TrustbatchError | None) -> None:
    if answer.done():
        return
    if problem is not None:
        answer.set_exception(problem)
    else:
        answer.set_result(result)

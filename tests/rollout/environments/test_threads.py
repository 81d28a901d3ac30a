from __future__ import annotations

import asyncio
import threading
import time

import pytest

from rollout.environments.failure import Failure
from rollout.environments.threads import MAX_HUNG, Threads
from shared.errors import EnvironmentFailure

pytestmark = pytest.mark.asyncio


async def test_calls_run_outside_the_event_loop_and_no_more_at_once_than_there_are_workers() -> None:
    pool, running, most = Threads("p", workers=2, deadline_s=60), 0, 0
    lock, pair = threading.Lock(), threading.Barrier(2)

    def work() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait(60)
        with lock:
            running -= 1
        return threading.current_thread().name

    names = await asyncio.gather(*(pool.run(work) for _ in range(6)))
    assert set(names) == {"environment-p"}
    assert most == 2


async def test_what_a_scorer_raises_is_a_failure_and_not_a_reward() -> None:
    def broken() -> float:
        raise RuntimeError("no disk")

    with pytest.raises(Failure, match="p: RuntimeError: no disk") as caught:
        await Threads("p", 1, 1.0).run(broken)
    assert caught.value.reason == "raised"


async def test_an_environment_failure_of_the_scorer_s_own_is_passed_on() -> None:
    def broken() -> float:
        raise EnvironmentFailure("the sandbox is down")

    with pytest.raises(EnvironmentFailure, match=r"^the sandbox is down$"):
        await Threads("p", 1, 1.0).run(broken)


async def test_a_hung_scorer_misses_its_deadline_and_its_place_is_taken_by_another() -> None:
    pool, release = Threads("p", workers=1, deadline_s=0.05), threading.Event()
    with pytest.raises(Failure, match=r"no answer within 0\.05 s") as caught:
        await pool.run(lambda: release.wait(10))
    assert caught.value.reason == "deadline"
    assert pool.hung == 1
    assert await pool.run(lambda: "next") == "next"
    release.set()
    await gone(pool)


async def test_the_deadline_does_not_run_while_a_call_waits_for_a_worker() -> None:
    pool = Threads("p", workers=1, deadline_s=1.0)
    slow = [pool.run(lambda: time.sleep(0.15)) for _ in range(9)]
    await asyncio.gather(*slow)


async def test_hung_scorers_do_not_pile_up_without_bound() -> None:
    pool, release = Threads("p", workers=4, deadline_s=0.05), threading.Event()
    before = threading.active_count()
    calls = [pool.run(lambda: release.wait(10)) for _ in range(4 * MAX_HUNG)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    reasons = [error.reason for error in failures if isinstance(error, Failure)]
    assert len(reasons) == len(calls)
    assert reasons.count("deadline") < MAX_HUNG + 4
    assert threading.active_count() - before < MAX_HUNG + 4
    with pytest.raises(Failure, match="calls hang; no more are made until one ends"):
        await pool.run(lambda: 1)
    release.set()
    await gone(pool)
    assert await pool.run(lambda: 1) == 1


async def test_a_cancelled_call_gives_its_place_back() -> None:
    pool, release = Threads("p", workers=1, deadline_s=5), threading.Event()
    call = asyncio.ensure_future(pool.run(lambda: release.wait(10)))
    await asyncio.sleep(0.02)
    call.cancel()
    assert await asyncio.wait_for(pool.run(lambda: "next"), 60) == "next"
    release.set()
    await gone(pool)


async def test_a_closed_pool_leaves_no_idle_thread() -> None:
    pool = Threads("closing", workers=3, deadline_s=1)
    await pool.run(lambda: 1)
    pool.close()
    ends = time.monotonic() + 60
    while any(thread.name == "environment-closing" for thread in threading.enumerate()):
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


async def gone(pool: Threads) -> None:
    """Waits until the hung threads have come back."""
    ends = time.monotonic() + 60
    while pool.hung:
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)

"""2. Redis is killed, loses the end of its append-only file as in a power loss, and runs out of memory."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.chaos.processes import wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

UNDURABLE_S = 1.0  # what `everysec` has not yet asked the disk to keep
TORN = b"*3\r\n$3\r\nSET\r\n$4\r\nunfi"  # the beginning of a command: a write in progress when the power goes


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Three runs: `always`, `everysec`, and one at maxmemory."""
    result = ScenarioResult(2, "Redis killed, its append-only file cut, out of memory", short)
    kills = 3 if short else 20
    _always(result, workdir / "always", kills)
    _everysec(result, workdir / "everysec", kills)
    _out_of_memory(result, workdir / "memory")
    return result


def _always(result: ScenarioResult, folder: Path, kills: int) -> None:
    """Under `always` what was acknowledged is on disk; the cut takes no more than a write in progress."""
    with Stack(folder, 45 * kills, settings=("redis.appendfsync=always",)) as stack:
        _kill_again_and_again(stack, kills, always=True)
        judged = stack.fill_in(result)
        twice = judged.acknowledged_twice
        result.check("always: nothing acknowledged was ever forgotten", not twice, sorted(twice)[:10] or "0")
        _reconnected(result, stack, "always")


def _everysec(result: ScenarioResult, folder: Path, kills: int) -> None:
    """Under `everysec` the last second is lost; its prompts are given out again, which names the groups."""
    inner = ScenarioResult(2, "everysec", result.short)
    with Stack(folder, 45 * kills) as stack:
        cut = _kill_again_and_again(stack, kills, always=False)
        # Until the learner has told it again, a Redis that lost its last second offers a version of before it.
        judged = stack.fill_in(inner, most_stale=kills * stack.config.learner.groups_per_batch, forgetful=True)
        named = sorted(judged.acknowledged_twice)
        for check in inner.checks:
            result.check(f"everysec: {check.what}", check.holds, check.found)
        result.check("everysec: the cuts cost something", sum(cut) > 0, f"{sum(cut):,} bytes in {len(cut)} cuts")
        dropped = {row["prompt_index"] for row in stack.rows("dropped.jsonl")}
        leased = {int(index) for index in stack.client.hkeys(stack.keys.owners)}
        returned = {int(index) for index in stack.client.zrange(stack.keys.returned, 0, -1)}
        known = set(judged.applied) | judged.in_stream | dropped | leased | returned
        missing = sorted(set(range(max(judged.applied))) - known)
        result.check("everysec: no prompt is missing", not missing, missing[:10] or "0")
        _reconnected(result, stack, "everysec")
    result.faults += inner.faults
    result.dropped = (result.dropped or 0) + (inner.dropped or 0)
    result.redelivered = (result.redelivered or 0) + (inner.redelivered or 0)
    result.longest_recovery_s = max(result.longest_recovery_s or 0.0, inner.longest_recovery_s or 0.0)
    result.details["everysec: groups forgotten with the last second, drawn and acknowledged again"] = (
        f"{len(named)}: {_ranges(named)}"
    )


def _kill_again_and_again(stack: Stack, kills: int, always: bool) -> list[int]:
    """Kills Redis at random moments and cuts its file; returns the bytes that each cut took."""
    rng = random.Random(2)
    stack.start_load("--rate", "400")
    stack.start_learner()
    cut = []
    for _ in range(kills):
        before = stack.step_of_learner()
        wait_for("a step after the last kill", 60, lambda: stack.step_of_learner() > before)  # noqa: B023
        sizes = _watch_size(_append_only_file(stack), UNDURABLE_S + rng.random())
        stack.kill_redis()
        file = _append_only_file(stack)
        if always:
            with file.open("ab") as tail:
                tail.write(TORN)
            cut.append(len(TORN))
        else:
            durable = max(size for at, size in sizes if at <= stack.faults[-1] - UNDURABLE_S)
            cut.append(file.stat().st_size - durable)
            with file.open("r+b") as whole:
                whole.truncate(durable)
        stack.start_redis()
    stack.until_phase("finished", 240)
    return cut


def _append_only_file(stack: Stack) -> Path:
    """One file before Redis 7, afterwards the newest increment in a folder."""
    folder = stack.folder / "run" / "redis"
    return max([*folder.glob("appendonly.aof"), *folder.glob("appendonlydir/*.incr.aof")])


def _watch_size(file: Path, seconds: float) -> list[tuple[float, int]]:
    """(time, size) of a file, again and again."""
    ends, seen = time.time() + seconds, []
    while time.time() < ends:
        seen.append((time.time(), file.stat().st_size))
        time.sleep(0.02)
    return seen


def _reconnected(result: ScenarioResult, stack: Stack, name: str) -> None:
    alive = [child.name for child in stack.children if child.name != "learner" and child.exit_code() not in (None, 0)]
    result.check(f"{name}: every process reconnects by itself", not alive, alive or "")


def _ranges(indices: list[int]) -> str:
    """1, 2, 3, 7 as 1-3, 7."""
    pieces: list[list[int]] = []
    for index in indices:
        if pieces and index == pieces[-1][1] + 1:
            pieces[-1][1] = index
        else:
            pieces.append([index, index])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in pieces)


def _out_of_memory(result: ScenarioResult, folder: Path) -> None:
    """At maxmemory the learner goes on freeing, and leases outlast it."""
    inner = ScenarioResult(2, "out of memory", result.short)
    with Stack(folder, 60, settings=("admission.lease_s=3", "learner.checkpoint_every=2")) as stack:
        stack.start_load("--rate", "300")
        stack.start_load("--rate", "4", "--server-id", "slow")  # it always holds leases
        stack.start_learner()
        stack.reach(10, 60)
        stack.fault()
        before = stack.backlog()
        stack.client.config_set("maxmemory", 1)
        wait_for("a producer to say so", 20, lambda: any("maxmemory" in state for state in stack.states()))
        held = set(stack.client.hkeys(stack.keys.owners))
        time.sleep(5)  # longer than a lease
        after = stack.backlog()
        assert before is not None
        assert after is not None
        still = set(stack.client.hkeys(stack.keys.owners))
        result.check("out of memory: groups are freed", after.bytes < before.bytes, f"{before.bytes} to {after.bytes}")
        result.check("out of memory: leases survive", bool(held) and still == held, f"{len(still)} of {len(held)}")
        stack.client.config_set("maxmemory", 2**29)
        stack.until_phase("finished", 120)
        stack.fill_in(inner, most_stale=64)  # the slow producer is overtaken
    for check in inner.checks:
        result.check(f"out of memory: {check.what}", check.holds, check.found)
    result.faults += 1

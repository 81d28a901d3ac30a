"""3. SIGSTOP of the learner, of a producer, and of Redis, longer than a lease."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from services.children import Child
from tests.chaos.processes import send, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

SETTLED = 22  # steps after which staleness may be looked at: those of a full backlog, and some more
FRESH = 2.0  # versions: mean staleness of a learner that keeps up


def run(short: bool, workdir: Path) -> ScenarioResult:
    """One after the other stands still and goes on; two producers, so that one can inherit the other's leases."""
    result = ScenarioResult(3, "SIGSTOP of learner, producer, Redis", short)
    seconds = 4.0 if short else 60.0
    lease = "admission.lease_s=2" if short else "admission.lease_s=20"
    settings = (lease, "admission.max_staleness=16", "rollout.groups_in_flight=4")
    with Stack(workdir, 120 if short else 300, groups_per_batch=8, settings=settings) as stack:
        learner = stack.start_learner()
        producers = [stack.start_load("--rate", "12", "--server-id", name) for name in ("a", "b")]
        stack.reach(5, 60)
        wait_for("fresh groups", 60, lambda: _fresh(stack, 0.0), every=0.2)
        assert stack.redis is not None
        rises = {}
        for name, child in (("learner", learner), ("producer", producers[0]), ("redis", stack.redis.child)):
            _stand_still(stack, child, seconds)
            at = stack.faults[-1]
            wait_for(f"fresh groups after {name} went on", 60, lambda: _fresh(stack, at), every=0.2)  # noqa: B023
            rises[name] = max(row["staleness_max"] for row in _since(stack, at))
        died = [child.name for child in (learner, *producers) if child.exit_code() is not None]
        result.check("nobody died of it", not died, died or "")
        found = f"most stale after each, versions: {rises}; afterwards at most {FRESH} in the mean of 5 steps"
        result.check(
            "staleness rises while the learner stands still, and recovers each time", rises["learner"] > 4, found
        )
        stack.until_phase("finished", 120)
        # Of two producers one overtakes the other, so the last groups of a full backlog can be a version too old.
        stack.fill_in(result, most_stale=2 * stack.config.rollout.groups_in_flight * len(stack.faults))
    return result


def _stand_still(stack: Stack, child: Child, seconds: float) -> None:
    stack.signal(child, signal.SIGSTOP)
    time.sleep(seconds)
    send(child, signal.SIGCONT)
    stack.faults[-1] = time.time()  # recovery counts from here


def _since(stack: Stack, at: float) -> list[dict[str, Any]]:
    return [row for row in stack.rows("history.jsonl") if row["at"] > at]


def _fresh(stack: Stack, at: float) -> bool:
    """True if there were enough steps since then, and the last of them saw fresh groups."""
    rows = _since(stack, at)
    return len(rows) >= SETTLED and sum(row["staleness_mean"] for row in rows[-5:]) / 5 <= FRESH

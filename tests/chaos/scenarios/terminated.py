"""11. SIGTERM everywhere."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from services.children import Child
from shared.process import GRACE_S
from tests.chaos.processes import send, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Learner, producers, control plane and Redis are told to stop, in order and all at once, and started again."""
    result = ScenarioResult(11, "SIGTERM everywhere", short)
    rounds = 2 if short else 20
    with Stack(workdir, 40 * rounds) as stack:
        slowest: dict[str, float] = {}
        codes: set[tuple[str, int | None]] = set()
        for number in range(rounds):
            before = stack.step_of_learner()
            everybody = _start(stack)
            wait_for("some steps", 60, lambda: stack.step_of_learner() >= before + 5)  # noqa: B023
            stack.faults.append(time.time())
            began = time.monotonic()
            for child in everybody:
                send(child, signal.SIGTERM)
            assert stack.redis is not None
            if number % 2:  # Redis at the same moment
                send(stack.redis.child, signal.SIGTERM)
            while any(child.exit_code() is None for child in everybody) and time.monotonic() - began < 2 * GRACE_S:
                for child in everybody:
                    if child.exit_code() is None:
                        slowest[child.name] = max(slowest.get(child.name, 0.0), time.monotonic() - began)
                time.sleep(0.02)
            codes |= {(child.name, child.exit_code()) for child in everybody}
            if number % 2 == 0:
                send(stack.redis.child, signal.SIGTERM)
            redis = stack.redis.child
            wait_for("Redis to end", GRACE_S, lambda: redis.exit_code() is not None)  # noqa: B023
            stack.start_redis()
        _start(stack)
        stack.until_phase("finished", 120)
        stack.fill_in(result)
        times = {name: round(seconds, 1) for name, seconds in slowest.items()}
        result.check(f"everybody is gone within {GRACE_S:g} s", max(times.values()) < GRACE_S, times)
        result.check("every exit code is 0", {code for _, code in codes} == {0}, sorted(codes, key=str))
    return result


def _start(stack: Stack) -> list[Child]:
    file = str(stack.folder / "config.yaml")
    return [
        stack.start_learner(),
        stack.start_load("--rate", "500"),
        stack.start_other("control-plane", "services.control_plane", "--config", file),
    ]

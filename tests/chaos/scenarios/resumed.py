"""9. Stopped and resumed fifty times: the multiset of prompts is that of a run that nobody interrupted."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

from services.children import Child
from tests.chaos.processes import ended, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Learner and producers stop at random moments, sometimes both; then the counters of both runs are compared."""
    result = ScenarioResult(9, "stops and resumes", short)
    stops = 5 if short else 50
    steps = (25 if short else 30) * stops
    expected = _uninterrupted(workdir / "uninterrupted", steps)
    rng = random.Random(9)
    with Stack(workdir / "interrupted", steps) as stack:
        learner, load = stack.start_learner(), _load(stack)
        for number in range(stops):
            before = stack.step_of_learner()
            wait_for("steps of the resumed run", 60, lambda: stack.step_of_learner() > before + 5)  # noqa: B023
            time.sleep(rng.random() * 0.5)
            both = number % 3 == 2
            if both or number % 3 == 0:
                stack.signal(learner, signal.SIGTERM)
            if both or number % 3 == 1:
                stack.signal(load, signal.SIGTERM)
            if both or number % 3 == 0:
                ended(learner, 20)
                learner = stack.start_learner()
            if both or number % 3 == 1:
                ended(load, 20)
                load = _load(stack)
        stack.until_phase("finished", 240)
        judged = stack.fill_in(result)
    result.faults = stops
    different = {i for i in judged.applied.keys() | expected.keys() if judged.applied[i] != expected[i]}
    result.check(
        "the multiset of prompts equals the uninterrupted run's",
        not different and bool(expected),
        sorted(different)[:10] or f"{len(expected)} prompts, each once",
    )
    return result


def _uninterrupted(folder: Path, steps: int) -> Counter[int]:
    with Stack(folder, steps) as stack:
        stack.start_learner()
        _load(stack)
        stack.until_phase("finished", 240)
        return stack.judge().applied


def _load(stack: Stack) -> Child:
    """Producers of what the run still lacks."""
    have = len({row["index"] for row in stack.appends() if row["result"] in ("stored", "duplicate")})
    return stack.start_load("--rate", "400", "--count", str(stack.steps * stack.groups_per_batch - have))

"""1. The learner is killed again and again, at random and at every named point."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.chaos.counting import POINTS
from tests.chaos.processes import ended, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Every named point is passed at the k-th time in some life; the other lives end after a random time."""
    groups, kills = (6_144, 12) if short else (100_000, 200)
    result = ScenarioResult(1, "learner killed by SIGKILL", short)
    return kill_often(result, workdir, groups, kills)


def kill_often(result: ScenarioResult, workdir: Path, groups: int, kills: int) -> ScenarioResult:
    """One run with so many groups and kills."""
    steps = groups // 32
    rng = random.Random(1)
    with Stack(workdir, steps, settings=("learner.checkpoint_every=5",)) as stack:
        stack.start_load("--rate", "1200")
        named = max(len(POINTS), kills * 2 // 3)
        plan = [POINTS[i % len(POINTS)] if i < named else "" for i in range(kills)]
        rng.shuffle(plan)
        for point in plan:
            _one_life(stack, point, rng)
        stack.start_learner()
        stack.until_phase("finished", 1200)
        assert stack.learner is not None
        result.check("the last learner ends in order", ended(stack.learner, 20) == 0)
        judged = stack.fill_in(result)
        result.check("steps were redone after kills", judged.redelivered > 0, judged.redelivered)
        result.check("every life was killed", len(stack.faults) == kills, len(stack.faults))
    result.details["kills"] = {name or "at random": plan.count(name) for name in sorted(set(plan))}
    return result


def _one_life(stack: Stack, point: str, rng: random.Random) -> None:
    """A learner that is killed at its k-th passing of a point, or at a random moment after its first step."""
    before = stack.step_of_learner()
    learner = stack.start_learner(f"{point}:{rng.randint(1, 2)}" if point else "")
    if point:
        wait_for(f"the learner to die at {point}", 60, lambda: learner.exit_code() is not None)
        assert learner.exit_code() == -9, f"the learner {learner.ended()}:\n" + "\n".join(learner.tail())
        stack.fault()
        return
    wait_for("a step of the new learner", 60, lambda: stack.step_of_learner() > before)
    time.sleep(rng.random() * 0.5)
    stack.kill(learner)

"""6. One poisoned entry in a thousand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

REASONS = {"truncated": "undecodable", "wrong_version": "undecodable", "wrong_shapes": "undecodable"} | {
    "nan": "bad_logprobs",
    "huge_length": "undecodable",
}
LEARNER_MIB = 1024  # a hostile length must not be believed


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Five kinds of poison in turn; each is a dead letter with its reason, and everything else is applied."""
    result = ScenarioResult(6, "poisoned entries among good ones", short)
    every, groups = (100, 2_560) if short else (1_000, 51_200)
    with Stack(workdir, groups // 32) as stack:
        stack.start_load("--rate", "1200", "--poison-every", str(every))
        learner = stack.start_learner()
        stack.until_phase("finished", 60 if short else 600)
        stack.note_memory(learner)
        judged = stack.fill_in(result)
        read = {row["index"]: row["poison"] for row in stack.appends() if row["index"] not in judged.in_stream}
        expected = Counter(REASONS[poison] for poison in read.values() if poison)
        waiting = {row["index"] for row in stack.appends() if not row["poison"]} - set(judged.applied)
        result.faults = sum(expected.values())
        result.check(
            "every poisoned entry is a dead letter, by what failed in it", judged.dead == expected, judged.dead
        )
        result.check("every kind of poison was met", len({p for p in read.values() if p}) == 5)
        first = min(waiting, default=2**62)
        passed = len([index for index in judged.applied if index < first])
        result.check("100 % of the others are applied", passed == len(judged.applied), f"{passed}, none passed over")
        peak = stack.memory["learner"]
        result.check(f"the learner stays below {LEARNER_MIB} MiB", 0 < peak < LEARNER_MIB, f"{peak:.0f} MiB")
    return result

"""The scenarios by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.chaos.result import ScenarioResult
from tests.chaos.scenarios import append_cut, learner_killed, poison, redis_killed

Run = Callable[[bool, Path], ScenarioResult]

SCENARIOS: dict[int, tuple[str, Run]] = {
    1: ("learner killed by SIGKILL", learner_killed.run),
    2: ("Redis killed, its append-only file cut, out of memory", redis_killed.run),
    4: ("producer's connection cut right after the append", append_cut.run),
    6: ("poisoned entries among good ones", poison.run),
}

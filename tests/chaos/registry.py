"""The scenarios by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.chaos.result import ScenarioResult
from tests.chaos.scenarios import learner_killed

Run = Callable[[bool, Path], ScenarioResult]

SCENARIOS: dict[int, tuple[str, Run]] = {
    1: ("learner killed by SIGKILL", learner_killed.run),
}

"""The scenarios by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.chaos.result import ScenarioResult
from tests.chaos.scenarios import (
    absent,
    append_cut,
    disk,
    endurance,
    learner_away,
    learner_killed,
    paused,
    poison,
    redis_killed,
    resumed,
    servers_killed,
    terminated,
)

Run = Callable[[bool, Path], ScenarioResult]

SCENARIOS: dict[int, tuple[str, Run]] = {
    1: ("learner killed by SIGKILL", learner_killed.run),
    2: ("Redis killed, its append-only file cut, out of memory", redis_killed.run),
    3: ("SIGSTOP of learner, producer, Redis", paused.run),
    4: ("producer's connection cut right after the append", append_cut.run),
    5: ("learner away under full load", learner_away.run),
    6: ("poisoned entries among good ones", poison.run),
    7: ("rollout server killed again and again", servers_killed.run),
    8: ("disk full; torn and altered files", disk.run),
    9: ("stops and resumes", resumed.run),
    10: ("producers, learner, control plane gone; hanging scraper", absent.run),
    11: ("SIGTERM everywhere", terminated.run),
    12: ("two hours' worth of steps", endurance.run),
}

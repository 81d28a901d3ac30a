"""12. Two hours' worth of steps, compressed: nothing grows."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from tests.chaos.processes import descriptors, rss_mib
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

SAMPLES = 40
ALLOWED = {"learner MiB": 8.0, "producers MiB": 8.0, "redis MiB": 2.0, "learner files": 2, "producers files": 2}
ALLOWED |= {"redis keys": 2, "files in the run folder": 8}


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Samples what could grow; the last quarter of the samples is compared with the second."""
    result = ScenarioResult(12, "two hours' worth of steps", short)
    steps = 400 if short else 7_200
    with Stack(workdir, steps, groups_per_batch=8, settings=("learner.record_bytes=1MiB",)) as stack:
        learner = stack.start_learner()
        load = stack.start_load()
        samples: list[dict[str, float]] = []
        began = time.monotonic()
        for number in range(1, SAMPLES + 1):
            stack.reach(steps * number // (SAMPLES + 2), 600)
            usage = stack.client.memory_usage(stack.keys.history, samples=0) or 0
            samples.append(
                {
                    "step": stack.step_of_learner(),
                    "seconds": round(time.monotonic() - began, 1),
                    "learner MiB": rss_mib(learner.pid),
                    "producers MiB": rss_mib(load.pid),
                    "redis MiB": (int(stack.client.info("memory")["used_memory"]) - usage) / 2**20,
                    "learner files": descriptors(learner.pid),
                    "producers files": descriptors(load.pid),
                    "redis keys": stack.client.dbsize(),
                    "files in the run folder": len(list((stack.folder / "run").rglob("*"))),
                }
            )
        stack.until_phase("finished", 120)
        stack.fill_in(result)
    for name, allowed in ALLOWED.items():
        values = [sample[name] for sample in samples]
        early, late = (statistics.median(values[SAMPLES * q // 4 : SAMPLES * (q + 1) // 4]) for q in (1, 3))
        result.check(f"{name} does not grow", late - early <= allowed, f"{early:.1f}, later {late:.1f}")
    result.details["over time"] = [
        {name: round(value, 1) for name, value in sample.items()} for sample in samples[:: SAMPLES // 10]
    ]
    return result

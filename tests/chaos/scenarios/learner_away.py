"""5. The learner is away under full load: memory stays within its budget, producers wait and say so, and resume."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos.processes import rss_mib, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

RESUME_S = 10.0
PRODUCER_MIB = 256.0
SETTINGS = (
    "rollout={engine: {kind: transformers, device: cpu}, group_size: 4, sampling: {max_tokens: 512}}",
    "admission={max_staleness: 1000, max_bytes: 8MiB, lease_s: 5}",
    "redis.max_memory=40MiB",
    "control_plane.history_bytes=8MiB",
    "learner.idle_deadline_s=1200",
)


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Four producers as fast as credit allows; nothing but the byte credit stops them."""
    result = ScenarioResult(5, "learner away under full load", short)
    away_s = 8.0 if short else 600.0
    with Stack(workdir, 60 if short else 200, groups_per_batch=8, settings=SETTINGS) as stack:
        learner = stack.start_learner()
        load = stack.start_load("--servers", "4")
        stack.reach(10, 60)
        stack.kill(learner)
        most = {"redis": 0.0, "stream": 0.0, "producers": 0.0}
        said = set()
        ends = time.monotonic() + away_s
        while time.monotonic() < ends:
            backlog = stack.backlog()
            assert backlog is not None
            used = int(stack.client.info("memory")["used_memory"]) / 2**20
            now = {"redis": used, "stream": backlog.bytes / 2**20, "producers": rss_mib(load.pid)}
            most = {name: max(most[name], mib) for name, mib in now.items()}
            said.update(stack.states())
            time.sleep(0.1)
        appends = len(stack.appends())
        began = time.monotonic()
        stack.start_learner()
        wait_for("producers to append again", 60, lambda: len(stack.appends()) > appends)
        resumed_s = time.monotonic() - began
        stack.until_phase("finished", 120)
        stack.fill_in(result)
        config = stack.config
    result.longest_recovery_s = resumed_s
    budgets = {
        "redis": int(config.redis.max_memory) / 2**20,
        "stream": int(config.admission.max_bytes) / 2**20,
        "producers": PRODUCER_MIB,
    }
    for name, mib in most.items():
        result.check(f"{name} stays within {budgets[name]:g} MiB", mib <= budgets[name], f"{mib:.1f} MiB")
    result.check("the stream was full", most["stream"] > 0.8 * budgets["stream"], f"{most['stream']:.1f} MiB")
    result.check("producers say what they wait for", "waiting for byte credit" in said, sorted(said))
    result.check(f"producers resume within {RESUME_S:g} s", resumed_s < RESUME_S, f"{resumed_s:.1f} s")
    result.details["away"] = f"{away_s:g} s"
    return result

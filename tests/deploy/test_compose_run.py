"""A whole run by docker-compose.yml's own commands, environments, health checks and restarts, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.composed import ROOT
from tests.deploy.local_compose import Stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
SMALL_MODEL = {  # made in seconds; that it learns is for others to show
    "TRUSTBATCH__MODEL__TINY__WARM_START_EXAMPLES": "1000",
    "TRUSTBATCH__MODEL__TINY__WARM_START_ACCURACY": "0.01",
}
SHORT = {
    "TRUSTBATCH__ROLLOUT__ENGINE": "{kind: transformers, device: cpu}",  # starts sooner; vLLM has tests of its own
    "TRUSTBATCH__LEARNER__STEPS": "40",
    "TRUSTBATCH__LEARNER__WARMUP_STEPS": "1",
    "TRUSTBATCH__LEARNER__CHECKPOINT_EVERY": "4",
    "TRUSTBATCH__LEARNER__GROUPS_PER_BATCH": "8",
    "TRUSTBATCH__ADMISSION__LEASE_S": "6",
    "TRUSTBATCH__EVALUATION__PROMPTS": "16",
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    names = ["redis", "prepare", "learner", "rollout", "control-plane"]
    extra = dict.fromkeys(("learner", "rollout", "control-plane"), SHORT)
    stack = Stack(tmp_path, "cpu", names, {**extra, "prepare": SMALL_MODEL})
    made = {**os.environ, "SECRETS": str(tmp_path / "secrets")}
    subprocess.run([ROOT / "deploy" / "compose" / "secrets.sh"], env=made, check=True)
    yield stack
    stack.down()


def test_a_run_comes_up_by_health_survives_its_learners_death_and_ends_in_order(stack: Stack) -> None:
    history = stack.folder / "data" / "runs" / "compose-cpu" / "history.jsonl"

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in history.read_text().splitlines()] if history.exists() else []

    stack.up(300)
    there = stack.containers
    learner, rollout, page = there["learner"], there["rollout"], there["control-plane"]
    stack.until(lambda: rollout.healthy and page.healthy, "a proven version and a page", 300)
    stack.until(lambda: len(steps()) >= 3, "progress", 240)
    assert learner.process is not None
    os.kill(learner.process.pid, signal.SIGKILL)
    stack.until(lambda: learner.starts == 2 and learner.healthy, "the learner to be back", 240)
    stack.until(lambda: learner.exit_code == 0, "the end of the run", 300)
    stack.until(lambda: rollout.exit_code == 0, "the rollout server to leave", 120)
    for container in (learner, rollout):
        container.restart_if_it_should()
    assert (learner.starts, rollout.starts, page.starts, there["prepare"].starts) == (2, 1, 1, 1)
    assert steps() == list(range(1, 41)), "every step once, in the surviving lineage"
    assert page.healthy, "the page stays"

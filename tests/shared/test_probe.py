"""What the health probes answer, and the endpoint that answers them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from shared.config import Config, load_config
from shared.control import ControlState
from shared.errors import ConfigError
from shared.heartbeat import Heartbeat
from shared.keys import Keys
from shared.metrics import serve
from shared.probe import Probes, Standing, ask, standing
from shared.redis_client import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def endpoint() -> Iterator[tuple[Probes, str]]:
    registry = CollectorRegistry()
    Gauge("answer", "42.", registry=registry).set(42)
    probes = Probes()
    server, _, address = serve(registry, "127.0.0.1", 0)
    probes.install(server)
    yield probes, address.removesuffix("/metrics")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("state", "silent_s", "unchanged_s", "live"),
    [
        ("training step 3", 1, 1, True),
        ("training step 3", 899, 899, True),
        ("training step 3", 901, 901, False),  # a hanging step: nobody says anything
        ("generating groups", 1, 901, False),  # the event loop turns, no group ends
        ("generating groups", 1, 10, True),
        ("waiting for groups (0 of 32)", 1, 5000, True),  # ends by idle_deadline_s of its own
        ("waiting for groups (0 of 32)", 901, 901, False),  # but even who waits says so again and again
        ("paused by the operator", 1, 90_000, True),
        ("draining", 1, 90_000, True),
        ("waiting for Redis, to read groups", 1, 901, True),
    ],
)
def test_a_process_is_live_while_it_makes_progress_or_says_that_it_waits(
    state: str, silent_s: float, unchanged_s: float, live: bool
) -> None:
    found = standing({"state": state, "policy_version": 3}, silent_s, unchanged_s, stalled_after_s=900)
    assert found.live is live
    assert found.ready
    assert state in found.text


def test_only_a_proven_version_makes_ready_and_an_end_takes_it_away() -> None:
    assert not standing({"state": "starting vllm with version 0", "policy_version": -1}, 0, 0, 900).ready
    assert not standing({}, 0, 0, 900).ready
    assert standing({"state": "idle", "policy_version": 0}, 0, 0, 900).ready
    assert not standing({"state": "stopping", "policy_version": 0}, 0, 0, 900).ready


def test_the_endpoint_answers_probes_and_still_shows_the_metrics(endpoint: tuple[Probes, str]) -> None:
    probes, address = endpoint
    assert ask(f"{address}/livez") == (True, "starting")
    assert ask(f"{address}/readyz") == (False, "503: starting")
    probes.watch(lambda: Standing(True, True, "training step 3"))
    assert ask(f"{address}/readyz") == (True, "training step 3")
    probes.watch(lambda: Standing(False, True, "stalled: training step 3 for 901 s without progress"))
    for probe in ("livez", "readyz"):
        assert ask(f"{address}/{probe}") == (False, "503: stalled: training step 3 for 901 s without progress")
    good, text = ask(f"{address}/metrics")
    assert good
    assert "answer 42.0" in text


def test_a_heartbeat_tells_silence_from_sameness(client: Client, keys: Keys) -> None:
    heartbeat = Heartbeat(ControlState(client, keys), "learner", ttl_s=60, policy_version=-1)
    assert heartbeat.standing(0.0) == Standing(False, False, "stalled: silent for 0 s, last said: starting")
    heartbeat.set_state("training step 1", policy_version=0)
    assert heartbeat.standing(60.0) == Standing(True, True, "training step 1")
    moved = heartbeat._moved_at
    heartbeat.set_state("training step 1", policy_version=0)
    heartbeat.update()
    assert heartbeat._moved_at == moved, "the same again is no progress"
    assert heartbeat._said_at > moved, "but it is a word"
    heartbeat.update(step=2)
    assert heartbeat._moved_at > moved
    moved = heartbeat._moved_at
    heartbeat.progress()
    assert heartbeat._moved_at == heartbeat._said_at > moved


def test_the_command_ends_with_the_answer(endpoint: tuple[Probes, str]) -> None:
    probes, address = endpoint

    def asked(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "shared.probe", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout.strip()

    assert asked(f"{address}/readyz") == (1, "503: starting")
    probes.watch(lambda: Standing(True, True, "idle"))
    assert asked(f"{address}/readyz") == (0, "idle")
    assert asked("http://127.0.0.1:9/readyz")[0] == 1
    assert asked("file:///etc/passwd")[0] == 2


def test_a_time_that_a_server_within_its_deadlines_would_exceed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stalled_after_s is 300; it must be above rollout.engine.startup_deadline"):
        load_config(None, ["metrics.stalled_after_s=300"], {})
    with pytest.raises(ConfigError, match=r"must be above evaluation.deadline_s \(900\)"):
        load_config(None, ["evaluation.deadline_s=900"], {})
    assert isinstance(load_config(None, ["metrics.stalled_after_s=601"], {}), Config)

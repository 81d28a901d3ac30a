from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.__main__ import _tick
from rollout.busy import Busy
from rollout.proof import Floor
from rollout.status import Status
from shared.config import Config
from tests.rollout.run import parts_of, small, until
from tests.rollout.test_busy import Time


def test_the_heartbeat_tells_the_largest_lag_that_the_server_may_draw(config: Config, tiny_model: Path) -> None:
    told = parts_of(small(config, tiny_model, "rollout.lag=uniform:0:16")).status.heartbeat.status
    assert (told["lag"], told["largest_lag"]) == (0, 16)


@pytest.fixture
def status(config: Config, tiny_model: Path) -> Status:
    return parts_of(small(config, tiny_model)).status


def state(status: Status) -> str:
    return str(status.heartbeat.status["state"])


def test_the_most_important_topic_is_what_the_state_says(status: Status) -> None:
    status.say("admission", "generating groups")
    with status.during("sync", "loading version 3"):
        assert state(status) == "loading version 3"
        with status.during("redis", "waiting for Redis to append a group"):
            assert state(status) == "waiting for Redis to append a group"
        assert state(status) == "loading version 3"
    assert state(status) == "generating groups"
    status.say("admission", "")
    assert state(status) == "idle"


def test_the_heartbeat_has_every_number_that_others_read(status: Status) -> None:
    status.serves(7, Floor(1e-6, 2e-6, 0.999))
    for seconds in (*([0.02] * 98), 0.5, 0.9):
        status.paused(seconds)
    status.in_flight(3)
    status.busy(0.25)
    status.appended(40)
    status.appended(2)
    told = status.heartbeat.status
    expected = {
        "kind": "rollout",
        "policy_version": 7,
        "proof_max_nats": 2e-6,
        "floor_mean_nats": 1e-6,
        "floor_token_ess": 0.999,
        "pause_median_s": 0.02,
        "pause_p99_s": 0.5,
        "in_flight": 3,
        "busy_share": 0.25,
        "groups": 2,
        "tokens": 42,
    }
    assert expected.items() <= told.items()
    assert {"pid", "host", "state", "since", "lag", "metrics", "engine", "device"} <= told.keys()


def test_a_refused_version_is_said_until_another_is_served(status: Status) -> None:
    status.refuses(3, 0.25)
    told = status.heartbeat.status
    assert (told["policy_version"], told["refused_version"], told["refused_nats"]) == (-1, 3, 0.25)
    status.refuses(3, float("nan"))
    assert status.heartbeat.status["refused_nats"] is None
    status.serves(4, Floor(1e-6, 2e-6, 1.0))
    told = status.heartbeat.status
    assert (told["policy_version"], told["refused_version"], told["refused_nats"]) == (4, None, None)


@pytest.mark.asyncio
async def test_the_busy_share_falls_while_nothing_is_generated_and_is_no_progress(
    config: Config, tiny_model: Path
) -> None:
    parts, time = parts_of(small(config, tiny_model)), Time()
    parts = replace(parts, busy=Busy(parts.metrics, time))
    parts.busy.in_flight(1)
    time.seconds += 10
    parts.busy.in_flight(0)
    time.seconds += 30
    ticking = asyncio.ensure_future(_tick(parts))
    await until(lambda: parts.status.heartbeat.status["busy_share"] == 0.25, "the share to be told", ticking)
    ticking.cancel()
    assert "progress_at" not in parts.status.heartbeat.status

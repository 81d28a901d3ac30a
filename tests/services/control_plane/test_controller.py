"""What the API and the metrics say of the controller."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from services.controller.decide import Memory
from shared.config import Config, load_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.runs import register
from shared.steering import Steering

BASE = "http://127.0.0.1"


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", "control_plane.auth=none", "rollout.lag=16"]
    with TestClient(create_app(load_config(None, [*given, "controller.enabled=true"], {})), base_url=BASE) as client:
        yield client


def remember(client: Client, keys: Keys, memory: Memory) -> None:
    """As the controller of a control plane that lives."""
    steering = Steering(client, keys)
    assert steering.claim("control-plane:a", 30)
    assert steering.act("control-plane:a", asdict(memory))


def controller(http: TestClient) -> dict[str, Any]:
    answer: dict[str, Any] = http.get("/v1/status").json()["controller"]
    return answer


def test_it_is_null_where_it_is_off(config: Config) -> None:
    with TestClient(create_app(config), base_url=BASE) as http:
        assert http.get("/v1/status").json()["controller"] is None


def test_it_is_null_for_another_run_whose_configuration_nobody_here_has(
    http: TestClient, client: Client, keys: Keys
) -> None:
    other = Keys(f"{keys.run_id}-other")
    register(client, other, 77)
    ControlState(client, other).set_phase("finished")
    status = http.get(f"/v1/status?run={other.run_id}").json()
    assert (status["run_id"], status["controller"]) == (other.run_id, None)


def test_nobody_at_the_lease_is_said(http: TestClient) -> None:
    assert "nothing is watched" in controller(http)["sentence"]


@pytest.mark.parametrize(
    ("memory", "level", "said"),
    [
        (Memory(low=2), "watching", "as the operator wants them (2 of 6 steps in a row are low)"),
        (
            Memory(lag=4, said="it fell", good=3),
            "narrowed",
            "holds lag at 4 (wanted: 16) and draws 4 ahead (wanted: 4)",
        ),
        (
            Memory(lag=4, said="it fell", good=3),
            "narrowed",
            "because it fell. It widens when 12 more steps were good than unclear since the last low one (3 now)",
        ),
        (Memory(lag=0, max_staleness=0, synced=True), "synced", "holds lag at 0 (wanted: 16) and draws 0 ahead"),
        (Memory(paused=True, said="it fell. Resume"), "paused", "has paused the run: it fell. Resume."),
    ],
)
def test_the_sentence_says_what_holds_why_and_what_comes_next(
    http: TestClient, client: Client, keys: Keys, memory: Memory, level: str, said: str
) -> None:
    remember(client, keys, memory)
    found = controller(http)
    assert (found["level"], found["holder"], found["lag"]) == (level, "control-plane:a", memory.lag)
    assert said in found["sentence"]


def test_spent_actions_are_said(http: TestClient, client: Client, keys: Keys) -> None:
    remember(client, keys, Memory(acted_at=tuple(time.time() - i for i in range(12)), counts={"narrow": 2, "widen": 1}))
    found = controller(http)
    assert found["actions"] == {"narrow": 2, "widen": 1, "sync": 0, "pause": 0}
    assert found["actions_left"] == 0
    assert "Its 12 actions of this hour are used up: it does nothing." in found["sentence"]


def test_damaged_memory_is_no_error(http: TestClient, client: Client, keys: Keys) -> None:
    for raw in (b"\xff", b"[]", b'{"lag": "x"}', json.dumps({"counts": {"narrow": "many"}}).encode()):
        client.set(keys.controller, raw)
        assert http.get("/v1/status").status_code == 200
        assert http.get("/metrics").status_code == 200


def test_the_metrics_follow_it(http: TestClient, config: Config, client: Client, keys: Keys) -> None:
    remember(client, keys, Memory(lag=4, counts={"narrow": 2}))
    found = samples(http)
    assert found["trustbatch_controller_level", ""] == 1
    assert found["trustbatch_controller_lag_versions", ""] == 4
    assert found["trustbatch_controller_max_staleness_versions", ""] == 4
    assert found["trustbatch_controller_actions", "narrow"] == 2
    with TestClient(create_app(config), base_url=BASE) as off:
        assert math.isnan(samples(off)["trustbatch_controller_level", ""])


def samples(http: TestClient) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(s.name, s.labels.get("kind", "")): s.value for family in families for s in family.samples}


def test_a_pause_says_whose_it_is(http: TestClient, client: Client, keys: Keys) -> None:
    ControlState(client, keys).set_paused(True, by="controller")
    assert "Paused by the controller" in json.dumps(http.get("/v1/status").json()["verdict"])

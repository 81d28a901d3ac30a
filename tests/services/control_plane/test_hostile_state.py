"""What a rollout server may write to Redis, it may write wrongly: the control plane shows less and never fails."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from shared.admission import Admission, Credit
from shared.config import Config
from shared.control import ControlState, EvaluationResult, Latest
from shared.keys import RUNS, Keys
from shared.redis_client import Client
from tests.fuzz.grammar import Choices, spoiled
from tests.fuzz.targets import CONTROL


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    fast = config.control_plane.model_copy(update={"requests_per_minute": 1_000_000})
    with TestClient(
        create_app(config.model_copy(update={"control_plane": fast})), base_url="http://127.0.0.1"
    ) as client:
        yield client


RAW = [
    b"",
    b"x",
    b"[]",
    b"[" * 60_000,
    b"\xff\xfe",
    b"9" * 5000,
    b'{"kind": "rollout"',
    b'{"a": "' + b"x" * 70_000 + b'"}',
]


def all_well(http: TestClient) -> None:
    for path in ("/v1/status", "/metrics", "/readyz"):
        answer = http.get(path)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("raw", RAW)
def test_values_that_are_no_json_are_passed_over(http: TestClient, client: Client, keys: Keys, raw: bytes) -> None:
    for name in ("rollout:r0", b"\xff\xfe", "x" * 5000):
        client.sadd(keys.members, name)
    client.set(keys.heartbeat("rollout:r0"), raw)
    client.xadd(keys.events, {"row": raw})
    client.xadd(keys.events, {"colour": raw})
    client.hset(keys.evaluation_results, "0", raw)
    client.hset(keys.evaluation_jobs, raw, "0 ")
    all_well(http)


@pytest.mark.parametrize("raw", RAW)
def test_a_wish_that_cannot_be_read_does_not_keep_servers_from_their_leases(
    client: Client, keys: Keys, raw: bytes
) -> None:
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    credit = Credit(versions=2, groups_per_version=4, max_bytes=2**30, group_bytes=1, lease_s=30)
    for wish in (raw, b'{"max_staleness": "many", "max_bytes": null}', b'{"max_staleness": [], "max_bytes": {}}'):
        client.hset(keys.desired, "admission", wish)
        assert len(Admission(client, keys, "r0", credit).lease(1, 0).indices) == 1


def test_a_bad_result_does_not_hide_a_good_one(http: TestClient, client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    good = EvaluationResult(0, 0.25, 64, 5.0, 1.0, "r0", 1.0)
    control.finish_evaluation(0, good)
    client.hset(keys.evaluation_results, "1", json.dumps({"policy_version": "x"}))
    control.add_event("pause", "text", by="operator")
    client.xadd(keys.events, {"row": "x"})
    assert control.evaluations() == [good]
    assert [event["kind"] for event in control.events()] == ["pause"]


def test_half_a_surrogate_pair_is_no_text(http: TestClient, client: Client, keys: Keys) -> None:
    client.sadd(keys.members, "rollout:r0")
    client.set(keys.heartbeat("rollout:r0"), b'{"kind": "rollout", "state": "\\ud800"}')
    client.xadd(keys.events, {"row": b'{"kind": "pause", "text": "\\ud800", "by": "me", "at": 1.0}'})
    all_well(http)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.binary(min_size=4, max_size=32))
def test_wrong_values_in_right_places_are_passed_over(
    http: TestClient, client: Client, keys: Keys, choices: bytes
) -> None:
    spoilt = (json.dumps(spoiled(good, Choices(choices), binary=False)) for good in CONTROL[:4])
    result, beat, event, wish = spoilt
    client.sadd(keys.members, "rollout:r0")
    client.set(keys.heartbeat("rollout:r0"), beat)
    client.hset(keys.evaluation_results, "0", result)
    client.xadd(keys.events, {"row": event})
    client.hset(keys.desired, mapping={"lag": wish, "admission": wish, "objective": wish})
    client.hset(keys.draining, "r0", wish)
    client.hset(keys.requeues, "1-1", wish)
    client.hset(RUNS, keys.run_id, wish)
    client.set(keys.heartbeat("learner"), json.dumps({"kind": "learner", "objective": wish}))
    all_well(http)
    looks = ("lag", "admission", "objective", "servers", "servers/r0", "events", "runs", "dead-letters")
    for look in looks:
        assert http.get(f"/v1/{look}").status_code == 200, look


def test_a_lag_that_nobody_can_ask_for_is_not_what_versions_are_kept_for(client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    for name, lag in (("rollout:r0", 3), ("rollout:r1", 2**40), ("rollout:r2", -1), ("rollout:r3", 1024)):
        control.beat(name, {"kind": "rollout", "lag": lag}, 30)
    assert [(status or {}).get("lag") for status in control.members().values()] == [3, None, None, 1024]


def test_step_records_of_another_shape_are_a_problem_and_not_a_failure(
    http: TestClient, client: Client, keys: Keys
) -> None:
    client.xadd(keys.history, {"row": json.dumps({"step": "many"})})
    answer = http.get("/v1/history")
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("what Redis holds of this run cannot be read (Step: step)")

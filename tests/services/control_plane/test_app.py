"""The API against a real Redis: what it answers, what it refuses, and what it does while Redis is away."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from services.control_plane import app as application
from services.control_plane.app import create_app
from shared.config import Config, load_config
from shared.control import ControlState, EvaluationResult, Latest
from shared.keys import Keys
from shared.redis_client import Client
from tests.conftest import RedisServer
from tests.services.rows import step

BASE = "http://127.0.0.1"
ROUTES = {
    "/healthz": "get",
    "/readyz": "get",
    "/metrics": "get",
    "/v1/status": "get",
    "/v1/history": "get",
    "/v1/lag": "get",
    "/v1/metrics": "get",
    "/v1/series": "get",
    "/v1/histograms": "get",
    "/v1/servers": "get",
    "/v1/servers/{server_id}": "get",
    "/v1/events": "get",
    "/v1/live": "get",
    "/v1/admission": "get",
    "/v1/objective": "get",
    "/v1/servers/{server_id}/drain": "post",
    "/v1/servers/{server_id}/undrain": "post",
    "/v1/dead-letters": "get",
    "/v1/dead-letters/{letter_id}": "get",
    "/v1/dead-letters/{letter_id}/requeue": "post",
    "/v1/runs": "get",
    "/v1/groups": "get",
    "/v1/groups/{step}/{group_id}": "get",
    "/v1/pause": "post",
    "/v1/resume": "post",
}


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    with TestClient(create_app(config), base_url=BASE) as client:
        yield client


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


@pytest.fixture
def fragile(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A control plane whose Redis a test may take away."""
    monkeypatch.setattr(application, "REDIS_TIMEOUT_S", 0.5)
    config = load_config(None, [f"redis.url={own_redis.url}", "run.id=fragile", "control_plane.auth=none"], {})
    with TestClient(create_app(config), base_url=BASE) as client:
        yield client


def fill(control: ControlState, client: Client, keys: Keys, steps: int = 3) -> None:
    """A run in full swing."""
    control.set_phase("running")
    control.announce(control.take_epoch(), Latest(steps, steps - 1, steps), 0, [])
    control.beat("learner", {"kind": "learner", "state": "training", "since": 5.0, "step": steps, "new_field": 1}, 30)
    control.beat("rollout:r0", {"kind": "rollout", "state": "generating", "proof_max_nats": math.nan, "lag": 2}, 30)
    control.beat("rollout:r1", {"kind": "rollout"}, 0.001)
    for number in range(1, steps + 1):
        control.add_history(step(number, [number], reward_mean=number / 10))
    control.finish_evaluation(0, EvaluationResult(0, 0.25, 64, 5.0, 1.0, "r0", 1.0))
    control.request_evaluation(7)
    client.sadd(keys.unapplied, 1, 2)


def test_status_tells_the_whole_run(http: TestClient, control: ControlState, client: Client, keys: Keys) -> None:
    fill(control, client, keys)
    status = http.get("/v1/status").json()
    assert (status["run_id"], status["phase"], status["paused"]) == (keys.run_id, "running", False)
    assert status["latest"] == {"policy_version": 3, "parent": 2, "step": 3}
    assert status["backlog"]["unapplied"] == 2
    assert status["steps_total"] == 1000
    assert (status["last"]["step"], status["last"]["reward_mean"]) == (3, 0.3)
    assert "prompt_indices" not in status["last"]
    assert status["evaluations"][0]["accuracy"] == 0.25
    assert status["pending_evaluations"] == [7]
    members = {member["component"]: member for member in status["members"]}
    assert members["learner"]["state"] == "training"
    assert (members["rollout:r0"]["lag"], members["rollout:r0"]["proof_max_nats"]) == (2, None)
    assert (members["rollout:r1"]["alive"], members["rollout:r1"]["state"]) == (False, "no heartbeat")
    verdict = status["verdict"]
    assert (verdict["level"], "rollout:r1" in verdict["sentence"]) == ("warn", True)
    assert verdict["parts"]["ess"]["numbers"]["token_ess"] == 0.98


def test_a_run_that_nobody_has_begun_has_a_status_too(http: TestClient) -> None:
    status = http.get("/v1/status").json()
    assert (status["phase"], status["latest"], status["last"], status["members"]) == ("starting", None, None, [])
    assert status["verdict"]["sentence"] == "Starting: neither learner nor rollout server has reported yet."
    assert http.get("/v1/history").json() == {"steps": []}


def test_history_is_the_newest_rows_oldest_first(http: TestClient, control: ControlState) -> None:
    for number in range(1, 6):
        control.add_history(step(number))
    assert [row["step"] for row in http.get("/v1/history?last=2").json()["steps"]] == [4, 5]
    assert len(http.get("/v1/history").json()["steps"]) == 5


def test_numbers_that_are_not_finite_are_null_not_an_error(http: TestClient, control: ControlState) -> None:
    control.add_history(step(1, loss=math.nan, grad_norm=math.inf, skipped="non-finite loss"))
    row = http.get("/v1/history").json()["steps"][0]
    assert (row["loss"], row["grad_norm"], row["skipped"]) == (None, None, "non-finite loss")
    assert http.get("/v1/status").status_code == 200


def test_a_row_of_another_release_is_shown_as_far_as_it_is_known(http: TestClient, control: ControlState) -> None:
    control.add_history({"step": 1, "reward_mean": 0.5, "colour": "blue"})
    row = http.get("/v1/history").json()["steps"][0]
    assert (row["step"], row["reward_mean"], row["token_ess"]) == (1, 0.5, None)


def test_pause_and_resume_may_be_repeated_and_leave_one_event_each(http: TestClient, control: ControlState) -> None:
    assert http.post("/v1/pause").json() == {"paused": True, "changed": True}
    assert http.post("/v1/pause").json() == {"paused": True, "changed": False}
    assert control.paused()
    assert http.post("/v1/resume").json() == {"paused": False, "changed": True}
    assert http.post("/v1/resume").json() == {"paused": False, "changed": False}
    assert not control.paused()
    assert [(event["kind"], event["by"]) for event in control.events()] == [
        ("resume", "operator"),
        ("pause", "operator"),
    ]
    assert [event["kind"] for event in http.get("/v1/status").json()["events"]] == ["resume", "pause"]


def test_many_pauses_at_once_change_it_once(http: TestClient, control: ControlState) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/pause").json()["changed"], range(16)))
    assert answers.count(True) == 1
    assert len(control.events()) == 1


def test_another_sites_page_cannot_pause_the_run(http: TestClient, control: ControlState) -> None:
    refused = http.post("/v1/pause", headers={"sec-fetch-site": "cross-site"})
    assert refused.status_code == 403
    assert not control.paused()
    assert http.post("/v1/pause", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1.evil.example", "http://127.0.0.1:81", "null"]
)
@pytest.mark.parametrize("path", ["/v1/pause", "/v1/resume"])
def test_a_foreign_origin_is_refused_and_told_what_to_do(http: TestClient, path: str, origin: str) -> None:
    refused = http.post(path, headers={"origin": origin})
    assert refused.status_code == 403
    assert "open the control plane's own page" in refused.json()["detail"]


def test_the_page_of_the_control_plane_itself_may_pause(http: TestClient, control: ControlState) -> None:
    assert http.post("/v1/pause", headers={"origin": "http://127.0.0.1"}).status_code == 200
    assert control.paused()


@pytest.mark.parametrize("path", ["/v1/pause", "/v1/resume"])
def test_a_body_that_would_be_ignored_is_refused(http: TestClient, control: ControlState, path: str) -> None:
    for refused in (http.post(path, json={"seconds": 5}), http.post(path, content=iter([b"chunk"]))):
        assert refused.status_code == 422
        assert refused.json()["detail"] == f"{path} takes no body; send the request without one"
    assert not control.paused()


WRONG = [
    ("GET", "/v1/nothing", 404, "there is no /v1/nothing here; /openapi.json lists what there is"),
    ("GET", "/v1/pause", 405, "GET is not possible on /v1/pause; possible: POST"),
    ("DELETE", "/v1/status", 405, "DELETE is not possible on /v1/status; possible: GET"),
    ("GET", "/v1/history?last=0", 422, "last: Input should be greater than or equal to 1, not '0'"),
    ("GET", "/v1/history?last=many", 422, "last: Input should be a valid integer"),
    ("GET", "/v1/history?fist=3", 422, "unknown parameter fist; known here: last, run"),
    ("POST", "/v1/pause?for=ever", 422, "unknown parameter for; this route takes none"),
    ("GET", "/healthz?x=1", 422, "unknown parameter x; this route takes none"),
]


@pytest.mark.parametrize(("method", "path", "code", "detail"), WRONG)
def test_what_cannot_be_is_refused_as_json_with_the_way_out(
    http: TestClient, method: str, path: str, code: int, detail: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == code
    assert detail in problem["detail"]


def test_ready_means_that_redis_answers_and_the_runs_keys_can_be_read(http: TestClient) -> None:
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert re.fullmatch(r"\d+\.\d+", ready.json()["redis_version"])


def test_keys_that_cannot_be_read_are_not_ready(http: TestClient, client: Client, keys: Keys) -> None:
    client.set(keys.members, "not a set")
    answer = http.get("/readyz")
    assert answer.status_code == 503
    assert "WRONGTYPE" in answer.json()["detail"]


def test_without_redis_it_lives_says_what_to_do_and_recovers_by_itself(
    fragile: TestClient, own_redis: RedisServer
) -> None:
    assert fragile.get("/readyz").status_code == 200
    own_redis.kill()
    assert fragile.get("/healthz").json() == {"status": "ok"}
    for path, method in (("/readyz", "GET"), ("/v1/status", "GET"), ("/v1/history", "GET"), ("/v1/pause", "POST")):
        answer = fragile.request(method, path)
        assert answer.status_code == 503, path
        assert "check Redis and redis.url" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "2"
    assert fragile.get("/").status_code == 200, "the page itself needs no Redis"
    own_redis.start()
    assert fragile.get("/readyz").status_code == 200
    assert fragile.get("/v1/status").json()["phase"] == "starting"


def samples(http: TestClient) -> dict[str, float]:
    """Every sample of /metrics, parsed from the text format."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_show_the_state(http: TestClient, control: ControlState, client: Client, keys: Keys) -> None:
    fill(control, client, keys)
    client.xadd(keys.dead_letters, {"reason": "undecodable"})
    ever = {"count:undecodable": 3, "dropped:undecodable": 2, "count:other_run": 4, "requeued:other_run": 4}
    client.hset(keys.dead_letter_totals, mapping=ever)
    client.set(keys.bytes, 4096)
    http.get("/v1/nothing/at/all")
    found = samples(http)
    assert found["trustbatch_redis_up{}"] == 1
    assert found["trustbatch_latest_policy_version{}"] == 3
    assert (found["trustbatch_dead_letters{}"], found["trustbatch_dead_letters_ever{}"]) == (1, 7)
    assert found["trustbatch_stream_bytes{}"] == 4096
    assert found["trustbatch_stream_limit_bytes{}"] == load_config(None, [], {}).admission.max_bytes
    assert found["trustbatch_redis_memory_bytes{}"] > 100_000
    client.config_set("maxmemory", 2**30)
    try:
        assert samples(http)["trustbatch_redis_memory_limit_bytes{}"] == 2**30
    finally:
        client.config_set("maxmemory", 0)
    assert found["trustbatch_desired_rollout_servers{}"] == 2, "the learner waits: twice as many as there are"
    assert found['trustbatch_members{"kind": "rollout"}'] == 1
    assert found['trustbatch_run_phase{"phase": "running"}'] == 1
    assert found['trustbatch_run_phase{"phase": "failed"}'] == found["trustbatch_paused{}"] == 0
    assert found["trustbatch_last_step_timestamp_seconds{}"] == control.history()[-1]["at"]
    assert found["trustbatch_redis_memory_bytes{}"] > 100_000
    assert found["trustbatch_redis_memory_limit_bytes{}"] == 0, "the tests' Redis has no maxmemory"
    assert found["trustbatch_stream_limit_bytes{}"] == 128 * 2**20, "admission.max_bytes"
    assert found['trustbatch_http_requests_total{"method": "GET", "route": "unknown", "status": "404"}'] == 1


def test_metrics_follow_the_budgets_that_are_wanted(
    http: TestClient, control: ControlState, client: Client, keys: Keys
) -> None:
    fill(control, client, keys)
    assert control.wish_admission(b'{"max_bytes": 100000000}', "ann")
    found = samples(http)
    assert found["trustbatch_stream_limit_bytes{}"] == 100_000_000
    assert found["trustbatch_desired_rollout_servers{}"] == 1, "the learner waits as it is meant to"


def test_metrics_without_redis_say_so_instead_of_repeating_old_numbers(
    fragile: TestClient, own_redis: RedisServer
) -> None:
    assert samples(fragile)["trustbatch_stream_groups{}"] == 0
    own_redis.kill()
    found = samples(fragile)
    assert found["trustbatch_redis_up{}"] == 0
    assert math.isnan(found["trustbatch_stream_groups{}"])
    assert math.isnan(found["trustbatch_stream_limit_bytes{}"])
    assert math.isnan(found["trustbatch_redis_memory_bytes{}"])
    assert math.isnan(found['trustbatch_members{"kind": "learner"}'])
    assert math.isnan(found['trustbatch_run_phase{"phase": "running"}'])
    assert math.isnan(found["trustbatch_redis_memory_bytes{}"])


def test_openapi_describes_every_route_and_every_field(http: TestClient) -> None:
    schema: dict[str, Any] = http.get("/openapi.json").json()
    assert {path: next(iter(methods)) for path, methods in schema["paths"].items()} == ROUTES
    for methods in schema["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["description"]
            assert operation["responses"]["503"]["content"], "a typed problem"
    fields = schema["components"]["schemas"]["Step"]["properties"]
    assert fields["token_ess"]["description"] == "Normalized effective sample size over the step's tokens, in [1/n, 1]."
    assert "description" in schema["components"]["schemas"]["MemberStatus"]["properties"]["state"]


def test_there_is_no_documentation_page_that_would_load_scripts_from_elsewhere(http: TestClient) -> None:
    assert http.get("/docs").status_code == 404
    assert http.get("/redoc").status_code == 404

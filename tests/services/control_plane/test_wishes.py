"""What operators may want over HTTP: servers drained, budgets, the learner's settings, letters put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from shared.config import Config, load_config
from shared.control import ControlState, Latest
from shared.keys import Keys
from shared.redis_client import Client
from shared.runs import register
from shared.wishes import Wishes
from tests.services.control_plane.test_app import BASE
from tests.services.rows import step

OBJECTIVE = {
    "name": "grpo",
    "learning_rate_factor": 1.0,
    "knobs": [{"name": "eps_high", "value": 0.2, "least": 0, "most": 1000}],
    "since_step": 0,
    "refused": "",
}


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", "control_plane.auth=none"]
    with TestClient(create_app(load_config(None, given, {})), base_url=BASE) as client:
        yield client


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(7, 6, 7), 0, [])
    control.beat("learner", {"kind": "learner", "objective": OBJECTIVE}, 30)
    control.beat("rollout:r0", {"kind": "rollout", "policy_version": 5, "lag": 2, "lag_served": 2, "in_flight": 3}, 30)
    control.beat("rollout:r1", {"kind": "rollout"}, 0.001)
    return control


def events(http: TestClient) -> list[str]:
    return [event["text"] for event in http.get("/v1/events").json()["events"]]


# -- servers ----------------------------------------------------------------------------------------
def test_servers_tell_what_they_serve_and_a_dead_one_that_it_is_dead(http: TestClient, control: ControlState) -> None:
    first, dead = http.get("/v1/servers").json()["servers"]
    assert (first["server_id"], first["policy_version"], first["latest"], first["lag_asked"]) == ("r0", 5, 7, 2)
    assert (dead["server_id"], dead["alive"], dead["state"], dead["in_flight"]) == ("r1", False, "no heartbeat", None)
    assert http.get("/v1/servers/r0").json() == first
    answer = http.get("/v1/servers/r7")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "there is no rollout server r7; /v1/servers lists those that there are",
    )


def test_draining_may_be_repeated_and_taken_back(http: TestClient, control: ControlState) -> None:
    answers = [
        http.post(f"/v1/servers/r0/{what}").json()["changed"] for what in ("drain", "drain", "undrain", "undrain")
    ]
    assert answers == [True, False, True, False]
    assert events(http) == ["r0 is to finish what it has and take nothing new", "r0 is to take groups again"]
    assert http.post("/v1/servers/r7/drain").status_code == 404
    assert http.post("/v1/servers/r7/undrain").status_code == 404


def test_only_a_dead_or_drained_server_can_be_taken_off_the_list(
    http: TestClient, control: ControlState, client: Client, keys: Keys
) -> None:
    http.post("/v1/servers/r1/drain")
    assert http.delete("/v1/servers/r1").json() == {"server_id": "r1", "gone": True}
    assert http.delete("/v1/servers/r1").status_code == 404
    refused = http.delete("/v1/servers/r0")
    assert (refused.status_code, "POST /v1/servers/r0/drain first" in refused.json()["detail"]) == (409, True)
    http.post("/v1/servers/r0/drain")
    assert http.delete("/v1/servers/r0").status_code == 409, "it has not said that it drains"
    drained = {"kind": "rollout", "draining": True, "in_flight": 0, "host": "here", "pid": 7}
    control.beat("rollout:r0", drained, 30)
    assert http.get("/v1/servers/r0").json()["drained"]
    for _ in range(2):
        assert http.delete("/v1/servers/r0").json() == {"server_id": "r0", "gone": False}
    assert Wishes(client, keys).draining()["r0"].leave == "here 7"
    assert events(http)[-2:] == ["r0 is to finish what it has and take nothing new", "r0 is to leave"]


# -- budgets ----------------------------------------------------------------------------------------
def test_budgets_can_be_narrowed_within_the_configuration_and_taken_back(
    http: TestClient, control: ControlState
) -> None:
    before = http.get("/v1/admission").json()
    assert (before["max_staleness"], before["configured_max_staleness"], before["asked_by"]) == (4, 4, "")
    changed = http.put("/v1/admission", json={"max_staleness": 1, "max_bytes": "64MiB"}).json()
    assert (changed["changed"], changed["max_staleness"], changed["max_bytes"]) == (True, 1, 2**26)
    assert changed["asked_by"] == "operator"
    assert control.admission_wish().text == b'{"max_bytes": 67108864, "max_staleness": 1}'
    assert not http.put("/v1/admission", json={"max_bytes": 2**26, "max_staleness": 1}).json()["changed"]
    assert http.put("/v1/admission", json={}).json()["changed"], "what is left away is as configured"
    assert not http.delete("/v1/admission").json()["changed"]
    assert events(http) == [
        "servers may be 1 versions ahead, and the stream may hold 67,108,864 bytes",
        "servers may be 4 versions ahead, and the stream may hold 134,217,728 bytes",
    ]


# -- the learner's settings -------------------------------------------------------------------------
def test_the_learners_settings_are_wanted_within_what_it_says_may_change(
    http: TestClient, control: ControlState
) -> None:
    wanted = {"learning_rate_factor": 0.5, "knobs": {"eps_high": 0.1}}
    found = http.put("/v1/objective", json=wanted).json()
    assert (found["changed"], found["wanted"], found["taken"]["knobs"][0]["value"]) == (True, wanted, 0.2)
    assert not http.put("/v1/objective", json=wanted).json()["changed"]
    assert http.delete("/v1/objective").json()["wanted"] == {"learning_rate_factor": 1.0, "knobs": {}}
    assert events(http) == [
        "wanted: learning rate x 0.5, eps_high 0.1",
        "wanted: the configured learning rate and knobs",
    ]
    control.leave("learner")
    refused = http.put("/v1/objective", json=wanted)
    assert (refused.status_code, "no learner lives" in refused.json()["detail"]) == (409, True)


REFUSED = [
    ("/v1/admission", {"max_staleness": 5}, "max_staleness: at most 4, which admission.max_staleness allows"),
    ("/v1/admission", {"max_bytes": "1GiB"}, "max_bytes: at most 134,217,728"),
    ("/v1/admission", {"max_bytes": 10}, "or no batch could ever be complete"),
    ("/v1/admission", {"max_staleness": -1}, "max_staleness: Input should be greater than or equal to 0"),
    ("/v1/admission", {"max_staleness": True}, "max_staleness: Input should be a valid integer"),
    ("/v1/admission", {"lag": 3}, "lag: Extra inputs are not permitted"),
    ("/v1/admission", [], "valid dictionary"),
    ("/v1/objective", {"learning_rate_factor": 0}, "learning_rate_factor: Input should be greater than 0"),
    ("/v1/objective", {"learning_rate_factor": 1.5}, "less than or equal to 1"),
    (
        "/v1/objective",
        {"knobs": {"aggregation": 1}},
        "knobs.aggregation: may not change while grpo runs; may: eps_high",
    ),
    ("/v1/objective", {"knobs": {"eps_high": -1}}, "knobs.eps_high: from 0 to 1000, not -1"),
    ("/v1/objective", {"knobs": {"eps_high": "x"}}, "knobs.eps_high: Input should be a valid number"),
]


@pytest.mark.parametrize(("path", "body", "detail"), REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(
    http: TestClient, control: ControlState, path: str, body: Any, detail: str
) -> None:
    answer = http.put(path, json=body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (422, True), answer.text
    assert (control.events(), control.admission_wish().text) == ([], b"")


WRITES = [
    ("PUT", "/v1/admission"),
    ("DELETE", "/v1/admission"),
    ("PUT", "/v1/objective"),
    ("DELETE", "/v1/objective"),
    ("POST", "/v1/servers/r0/drain"),
    ("POST", "/v1/servers/r0/undrain"),
    ("DELETE", "/v1/servers/r1"),
    ("POST", "/v1/dead-letters/1-1/requeue"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_another_sites_page_changes_nothing(http: TestClient, control: ControlState, method: str, path: str) -> None:
    body: Any = {} if method == "PUT" else None
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert http.request(method, path, json=body, headers=headers).status_code == 403
    assert control.events() == []


# -- dead letters -----------------------------------------------------------------------------------
def test_dead_letters_are_listed_page_by_page_shown_and_asked_back(
    http: TestClient, control: ControlState, client: Client, keys: Keys
) -> None:
    for number in range(1, 6):
        known = {"group_id": f"{keys.run_id}:{number}", "prompt_index": number, "reason": "undecodable", "error": "bad"}
        client.xadd(
            keys.dead_letters, {**known, "server": "r0", "at": 5.0, "size": 3, "payload": b"\x93ab"}, f"{number}-1"
        )
    first = http.get("/v1/dead-letters?first=3").json()
    assert ([found["id"] for found in first["letters"]], first["next"]) == (["1-1", "2-1", "3-1"], "3-1")
    rest = http.get("/v1/dead-letters?first=3&after=3-1").json()
    assert ([found["id"] for found in rest["letters"]], rest["next"]) == (["4-1", "5-1"], None)
    shown = http.get("/v1/dead-letters/2-1").json()
    assert (shown["reason"], shown["prompt_index"], shown["requeue_wanted"]) == ("undecodable", 2, False)
    assert "93 61 62" in shown["content"][1]
    answers = [http.post("/v1/dead-letters/2-1/requeue") for _ in range(2)]
    assert [(answer.status_code, answer.json()["changed"]) for answer in answers] == [(202, True), (202, False)]
    assert http.get("/v1/dead-letters/2-1").json()["requeue_wanted"]
    assert events(http) == ["dead letter 2-1 is to go back into the stream"]
    missing = http.post("/v1/dead-letters/9-9/requeue")
    assert (missing.status_code, "/v1/dead-letters lists" in missing.json()["detail"]) == (404, True)


# -- events and runs --------------------------------------------------------------------------------
def test_events_go_on_where_somebody_stopped_reading(http: TestClient, control: ControlState) -> None:
    for number in range(6):
        control.add_event("odd" if number % 2 else "even", str(number), "x")
    newest = http.get("/v1/events?last=2").json()
    assert [event["text"] for event in newest["events"]] == ["4", "5"]
    assert http.get(f"/v1/events?after={newest['next']}").json() == {"events": [], "next": newest["next"]}
    odd, after = list[str](), "0"
    for _ in range(4):
        page = http.get(f"/v1/events?after={after}&last=1&kind=odd").json()
        odd, after = odd + [event["text"] for event in page["events"]], page["next"]
    assert odd == ["1", "3", "5"]


def test_other_runs_in_the_same_redis_can_be_looked_at(
    http: TestClient, control: ControlState, client: Client, keys: Keys
) -> None:
    other = Keys(f"{keys.run_id}-other")
    register(client, other, 77)
    theirs = ControlState(client, other)
    theirs.set_phase("finished", "done")
    theirs.add_history(step(3))
    listed = {run["id"]: run for run in http.get("/v1/runs").json()["runs"]}
    assert (listed[keys.run_id]["own"], listed[other.run_id]["own"]) == (True, False)
    found = listed[other.run_id]
    assert (found["phase"], found["reason"], found["steps"], found["policy_version"]) == ("finished", "done", 77, None)
    status = http.get(f"/v1/status?run={other.run_id}").json()
    assert (status["run_id"], status["steps_total"], status["last"]["step"]) == (other.run_id, 77, 3)
    assert http.get(f"/v1/history?run={other.run_id}").json()["steps"][0]["step"] == 3
    assert http.post(f"/v1/pause?run={other.run_id}").status_code == 422, "only its own run can be changed"


def test_the_groups_behind_a_step(http: TestClient, control: ControlState) -> None:
    epoch = control.take_epoch()
    for number in (1, 2):
        rows = [{"step": number, "group_id": f"run:{n}", "why": ["largest weight share"]} for n in range(2)]
        control.add_examples(number, rows, epoch, 10_000)
    assert [group["step"] for group in http.get("/v1/groups").json()["groups"]] == [2, 2, 1, 1]
    assert len(http.get("/v1/groups?last=1").json()["groups"]) == 1
    assert {group["step"] for group in http.get("/v1/groups?step=1").json()["groups"]} == {1}
    assert http.get("/v1/groups/1/run:1").json()["group_id"] == "run:1"
    missing = http.get("/v1/groups/3/run:1")
    assert (missing.status_code, "/v1/groups lists" in missing.json()["detail"]) == (404, True)

"""The lag dial over HTTP on a real Redis: what it says, what it takes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from services.controller.decide import Memory
from shared.config import Config, load_config
from shared.config.lag import from_wish
from shared.control import ControlState, Latest
from shared.keys import Keys
from shared.redis_client import Client
from shared.steering import CONTROLLER

BASE = "http://127.0.0.1"


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    """Of a run that has begun."""
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    return control


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", "control_plane.auth=none"]
    with TestClient(
        create_app(load_config(None, [*given, "rollout.lag=2", "rollout.max_lag=16"], {})), base_url=BASE
    ) as c:
        yield c


def put(http: TestClient, body: Any) -> Any:
    return http.put("/v1/lag", json=body)


def test_the_configured_lag_is_shown_with_what_every_living_server_serves(
    http: TestClient, control: ControlState
) -> None:
    values = {"kind": "rollout", "lag": 2, "lag_served": 3, "arm": "", "policy_version": 7}
    control.beat("rollout:r0", values, 30)
    control.beat("rollout:r1", {"kind": "rollout", "lag": 0, "arm": "control", "lag_served": 0}, 30)
    control.beat("rollout:r2", {"kind": "rollout", "lag": 2, "lag_served": None, "arm": "\u001b[2J"}, 30)
    control.beat("learner", {"kind": "learner"}, 30)
    found = http.get("/v1/lag").json()
    servers = found.pop("servers")
    assert found == {"setting": 2, "text": "2", "asked_by": "", "asked_at": None, "max_lag": 16, "may_set": True}
    assert servers == [
        {"server_id": "r0", "asked": 2, "arm": "", "served": 3, "policy_version": 7},
        {"server_id": "r1", "asked": 0, "arm": "control", "served": 0, "policy_version": None},
        {"server_id": "r2", "asked": 2, "arm": "", "served": None, "policy_version": None},
    ]


SETTINGS = [
    8,
    "uniform:0:16",
    "linear:0@0,16@200",
    {
        "lag": "choice:0,4*2",
        "dwell": "4 versions",
        "control_share": 0.25,
        "servers": {"r1": 16, "r2": {"lag": "0@0,8@9"}},
    },
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_stored_said_and_may_be_repeated(http: TestClient, control: ControlState, setting: Any) -> None:
    first, again = put(http, setting).json(), put(http, setting).json()
    assert (first["changed"], again["changed"]) == (True, False)
    stored = from_wish(control.lag_wish().text)
    assert stored is not None
    assert first["setting"] == again["setting"] == http.get("/v1/lag").json()["setting"]
    assert from_wish(json.dumps(first["setting"])) == stored
    assert (first["asked_by"], first["asked_at"] > 1.7e9) == ("operator", True)
    [event] = control.events()
    assert (event["kind"], event["text"], event["by"]) == ("lag", f"servers are to lag by {first['text']}", "operator")


def test_one_server_s_lag_leaves_what_is_wanted_of_others_also_beneath_the_controller_s_cap(
    http: TestClient, control: ControlState
) -> None:
    put(http, 12)
    wish, steering = control.steering.wishes(), control.steering
    assert steering.claim("here", 30)
    capped = {"lag": "3", "lag_by": CONTROLLER, "lag_at": "1.0"}
    memory = Memory(lag=3, lag_wish=(wish.lag, wish.lag_by, wish.lag_at))
    assert steering.act("here", asdict(memory), {}, capped)
    assert http.get("/v1/lag").json()["setting"] == 3
    for server, own in (("r1", 1), ("r2", "uniform:0:2")):
        assert http.put(f"/v1/lag?server={server}", json=own).json()["changed"]
    found = http.get("/v1/lag").json()
    assert (found["setting"], found["asked_by"]) == ({"lag": 12, "servers": {"r1": 1, "r2": "uniform:0:2"}}, "operator")
    answer = http.put("/v1/lag?server=r1", json={"lag": 1, "servers": {"r2": 3}})
    assert (answer.status_code, "leave it away" in answer.json()["detail"]) == (422, True)


def test_taking_it_back_asks_for_the_configured_lag_again(http: TestClient, control: ControlState) -> None:
    put(http, 8)
    assert http.delete("/v1/lag").json()["changed"]
    found = http.delete("/v1/lag").json()
    assert (found["changed"], found["setting"], found["asked_by"]) == (False, 2, "")
    assert [event["text"] for event in control.events()] == [
        "servers are to lag as configured: 2",
        "servers are to lag by 8",
    ]


REFUSED = [
    (17, "lag 17 asks for up to 17 versions; this run keeps versions for at most 16 (rollout.max_lag)"),
    ({"lag": 0, "servers": {"r1": "uniform:0:99"}}, "asks for up to 99 versions"),
    ("unif:3", "lag: a lag is written as 8, uniform:0:16"),
    (-1, "lag: a lag is a whole number from 0 to 1,024"),
    (True, "lag: a lag is a number or a text"),
    (None, "Field required"),
    ({"lag": 3, "extra": 1}, "extra: Extra inputs are not permitted"),
    ({"lag": 3, "dwell": "4 versions"}, "there is nothing to draw"),
    ({"lag": 3, "servers": {"r 1": 3}}, "servers.r 1"),
    ({"lag": 3, "servers": {"\ud800": 3}}, ""),
]


@pytest.mark.parametrize(("body", "detail"), REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(
    http: TestClient, control: ControlState, body: Any, detail: str
) -> None:
    answer = http.put("/v1/lag", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert detail in answer.json()["detail"]
    assert not control.lag_wish().text
    assert control.events() == []


def test_a_run_that_has_not_begun_or_is_finished_is_409(http: TestClient, client: Client, keys: Keys) -> None:
    answer = put(http, 8)
    assert (answer.status_code, "has not begun: give rollout.lag" in answer.json()["detail"]) == (409, True)
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    assert put(http, 8).status_code == 200
    control.set_phase("finished")
    for answer in (put(http, 4), http.delete("/v1/lag")):
        assert (answer.status_code, "is finished" in answer.json()["detail"]) == (409, True)
    assert http.get("/v1/lag").json()["setting"] == 8


def test_a_body_without_a_length_or_without_sense_is_refused(http: TestClient, control: ControlState) -> None:
    assert http.put("/v1/lag", content=iter([b"8"])).status_code == 411
    for nonsense, code in ((b"[" * 16_000, 400), (b"{", 422), (b"\xff\xfe", 422)):
        answer = http.put("/v1/lag", content=nonsense, headers={"content-type": "application/json"})
        assert answer.status_code == code, nonsense[:9]
    assert http.put("/v1/lag").status_code == 422
    assert http.put("/v1/lag", content=b" " * 17_000).status_code == 413
    assert not control.lag_wish().text


def test_another_site_s_page_cannot_turn_it(http: TestClient, control: ControlState) -> None:
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert http.put("/v1/lag", json=8, headers=headers).status_code == 403
        assert http.delete("/v1/lag", headers=headers).status_code == 403
    assert not control.lag_wish().text


def test_a_damaged_wish_is_shown_as_none(http: TestClient, control: ControlState, client: Client, keys: Keys) -> None:
    client.hset(keys.desired, mapping={"lag": b"\xff{", "lag_by": b"\xff", "lag_at": "yesterday"})
    assert http.get("/v1/lag").json()["setting"] == 2

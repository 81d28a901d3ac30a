"""Two control planes on one Redis: the same answers, and what is wanted through one is seen through the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from services.fleet import Server
from services.sampler import Sampler, cells_of, rates
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.series import Series
from tests.services.control_plane.test_app import BASE, fill

LOOKS = (
    "/v1/status",
    "/v1/history",
    "/v1/metrics",
    "/v1/series?name=reward_mean&name=by_staleness.token_ess&name=servers.in_flight",
    "/v1/histograms?name=staleness",
    "/v1/servers",
    "/v1/servers/r0",
    "/v1/events",
    "/v1/dead-letters",
    "/v1/lag",
    "/v1/admission",
    "/v1/objective",
    "/v1/runs",
)


@pytest.fixture
def two(config: Config) -> Iterator[tuple[TestClient, TestClient]]:
    with TestClient(create_app(config), base_url=BASE) as one, TestClient(create_app(config), base_url=BASE) as other:
        yield one, other


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    control = ControlState(client, keys)
    fill(control, client, keys)
    taken = {"name": "grpo", "learning_rate_factor": 1.0, "since_step": 0, "refused": ""}
    knobs = [{"name": "eps_high", "value": 0.2, "least": 0, "most": 1000}]
    control.beat("learner", {"kind": "learner", "objective": {**taken, "knobs": knobs}}, 30)
    return control


def answer(http: TestClient, path: str) -> Any:
    found = http.get(path)
    assert found.status_code == 200, found.text
    return found.json()


def test_both_say_the_same(two: tuple[TestClient, TestClient], control: ControlState) -> None:
    one, other = ({path: answer(http, path) for path in LOOKS} for http in two)
    assert one == other


ACTS: list[tuple[str, str, Any, str, Any]] = [
    ("POST", "/v1/pause", None, "/v1/status", lambda found: found["paused"]),
    ("PUT", "/v1/admission", {"max_staleness": 1}, "/v1/admission", lambda found: found["max_staleness"] == 1),
    ("PUT", "/v1/objective", {"knobs": {"eps_high": 0.1}}, "/v1/objective", lambda found: found["wanted"]["knobs"]),
    ("POST", "/v1/servers/r0/drain", None, "/v1/servers/r0", lambda found: found["draining"]),
    ("DELETE", "/v1/servers/r1", None, "/v1/servers", lambda found: len(found["servers"]) == 1),
    ("DELETE", "/v1/lag", None, "/v1/lag", lambda found: not found["asked_by"]),
]


@pytest.mark.parametrize(("method", "path", "body", "look", "is_so"), ACTS)
def test_what_is_wanted_through_one_is_seen_through_the_other_and_leaves_one_event(
    two: tuple[TestClient, TestClient], control: ControlState, method: str, path: str, body: Any, look: str, is_so: Any
) -> None:
    one, other = two
    if path == "/v1/lag":  # there has to be a wish to take back
        control.wish_lag(b"0", "ann")
    assert one.request(method, path, json=body).status_code == 200
    assert is_so(answer(other, look))
    again = other.request(method, path, json=body)
    assert again.status_code in {200, 404}, again.text
    events = answer(other, "/v1/events")["events"]
    assert [event["by"] for event in events] == ["operator"]
    assert events == answer(one, "/v1/events")["events"]


def test_a_stretch_of_time_is_sampled_once_whoever_comes_first(
    client: Client, keys: Keys, control: ControlState
) -> None:
    one, other = Sampler(client, keys, 2**26), Sampler(client, keys, 2**26)
    client.delete(keys.fleet)
    assert one.sample()
    client.hset(keys.fleet, "slot", 2**40)  # the stretch of time that is now, however long the test takes
    assert not other.sample()
    assert not one.sample()
    series = Series(client, keys.fleet)
    found = series.read("minutes", ["servers.lag_asked", "servers.lag_asked|r0"], series.blocks("minutes"))
    assert [(cells.count.tolist(), cells.mean.tolist()) for cells in found.values()] == [([1], [2]), ([1], [2])]


def test_a_sample_has_the_whole_fleet_and_each_of_the_first_servers() -> None:
    servers = [Server(f"r{n:03}", {"in_flight": n, "policy_version": -1}, True, False) for n in range(100)]
    cells = cells_of(servers, {"r000": 1.5})
    found = {cells[i]: tuple(cells[i + 1 : i + 5]) for i in range(0, len(cells), 5)}
    assert found["servers.in_flight"] == (100, 49.5, 0, 99)
    assert found["servers.in_flight|r063"] == (1, 63, 63, 63)
    assert found["servers.groups_per_s"] == (1, 1.5, 1.5, 1.5)
    assert not {"servers.in_flight|r064", "servers.served_version"} & found.keys()


def test_rates_are_of_the_time_between_two_samples() -> None:
    before = {"at": 100.0, "groups": {"r0": 10, "r1": 50, "gone": 7, "odd": "x"}}
    assert rates({"r0": 30, "r1": 4, "new": 9, "odd": 3}, 110.0, before) == {"r0": 2.0, "r1": 0.4}
    assert rates({"r0": 30}, 100.0, before) == rates({"r0": 30}, 110.0, {}) == {}

"""Numbers over time over HTTP, on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from services import series as kept
from services.control_plane.app import create_app
from services.control_plane.series import MAX_NAMES, MAX_READS, significant
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from tests.services.rows import step

BASE = "http://127.0.0.1"


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    with TestClient(create_app(config), base_url=BASE) as client:
        yield client


@pytest.fixture
def began() -> float:
    """A whole hour, some hours ago."""
    return time.time() // 3600 * 3600 - 6 * 3600


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


def series(http: TestClient, query: str) -> Any:
    answer = http.get(f"/v1/series?{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_step_is_there_while_the_steps_are_kept(http: TestClient, control: ControlState, began: float) -> None:
    for number in range(1, 4):
        control.add_history(step(number, at=began + 10 * number, reward_mean=number / 10, loss=None))
    found = series(http, "name=reward_mean&name=loss&name=step")
    assert (found["tier"], found["resolution_s"]) == ("steps", 10.0)
    rewards, steps = found["series"]
    assert rewards["points"][0] == {
        "at": began + 10,
        "step": 1,
        "mean": 0.1,
        "min": 0.1,
        "max": 0.1,
        "count": 1,
    }
    assert [point["mean"] for point in steps["points"]] == [1, 2, 3]


def test_more_than_the_points_asked_for_are_taken_together(
    http: TestClient, control: ControlState, began: float
) -> None:
    for number in range(10):
        control.add_history(step(number, at=began + number, reward_mean=float(number)))
    (line,) = series(http, "name=reward_mean&points=3")["series"]
    told = [(p["at"] - began, p["step"], p["mean"], p["min"], p["max"], p["count"]) for p in line["points"]]
    assert told == [(0, 3, 1.5, 0, 3, 4), (4, 7, 5.5, 4, 7, 4), (8, 9, 8.5, 8, 9, 2)]


def test_a_window_of_time(http: TestClient, control: ControlState, began: float) -> None:
    for number in range(10):
        control.add_history(step(number, at=began + number))
    (line,) = series(http, f"name=step&since={began + 3}&until={began + 5}")["series"]
    assert [point["step"] for point in line["points"]] == [3, 4, 5]
    assert series(http, f"name=step&until={began - 1}")["series"] == []


def test_labelled_ones_come_one_by_one_or_all(http: TestClient, control: ControlState, began: float) -> None:
    parts = {"0": {"token_ess": 0.9, "tokens": 5}, "3-4": {"token_ess": 0.5, "tokens": 7}}
    control.add_history(step(1, at=began, by_staleness=parts, lags={"0": 2, "control": 1}))
    found = series(http, "name=by_staleness.token_ess&name=lags")["series"]
    assert [(line["name"], line["label"]) for line in found] == [
        ("by_staleness.token_ess", "0"),
        ("by_staleness.token_ess", "3-4"),
        ("lags", "0"),
        ("lags", "control"),
    ]
    (line,) = series(http, "name=by_staleness.token_ess&label=3-4")["series"]
    assert line["points"][0]["mean"] == 0.5
    labels = {found["name"]: found["labels"] for found in http.get("/v1/metrics").json()["metrics"]}
    assert (labels["by_staleness.token_ess"], labels["token_ess"]) == (["0", "3-4"], [])


def batched(names: Iterable[str], most: int) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, most)):
        yield some


def test_every_name_that_is_listed_can_be_asked_for(http: TestClient, control: ControlState, began: float) -> None:
    control.add_history(step(1, at=began, by_staleness={"0": {"token_ess": 0.9}}))
    listed = http.get("/v1/metrics").json()["metrics"]
    units = {found["name"]: (found["unit"], found["kind"]) for found in listed}
    assert units["token_ess"] == ("share", "share")
    assert units["kl"] == ("nats", "gauge")
    assert units["staleness_max"] == ("versions", "gauge")
    assert units["servers.in_flight"] == ("groups", "gauge")
    for some in batched(units, MAX_NAMES):
        series(http, "&".join(f"name={name}" for name in some))


def test_staleness_as_a_histogram_over_time(http: TestClient, control: ControlState, began: float) -> None:
    for number, parts in enumerate(({"0": 5, "3-4": 7}, {"0": 1, "17-32": 2})):
        tokens = {name: {"tokens": count} for name, count in parts.items()}
        control.add_history(step(number, at=began + number, by_staleness=tokens))
    found = http.get("/v1/histograms?name=staleness").json()
    assert (found["buckets"], found["edges"]) == (["0", "3-4", "17-32"], None)
    assert [column["counts"] for column in found["columns"]] == [[5, 7, 0], [1, 0, 2]]
    assert [column["counts"] for column in http.get("/v1/histograms?name=staleness&columns=1").json()["columns"]] == [
        [6, 7, 2]
    ]


def test_log_ratios_as_a_histogram_over_time(http: TestClient, control: ControlState, began: float) -> None:
    counts = [0] * 41
    counts[20], counts[40] = 90, 3
    control.add_history({**step(1, at=began), "log_ratio_counts": counts})
    found = http.get("/v1/histograms?name=log_ratio").json()
    assert (len(found["edges"]), found["buckets"]) == (40, None)
    assert found["columns"][0]["counts"] == counts


WRONG = [
    ("/v1/series", 422, "name: Field required"),
    ("/v1/series?name=token_es", 422, "did you mean token_ess"),
    ("/v1/series?name=zzz", 422, "/v1/metrics lists what there is"),
    ("/v1/series?name=by_staleness", 422, "there is no series 'by_staleness'"),
    ("/v1/series?name=step&points=0", 422, "points: Input should be greater than or equal to 1"),
    ("/v1/series?name=step&run=a/b", 422, "run: String should match pattern"),
    ("/v1/histograms?name=ess", 422, "name: Input should be 'log_ratio' or 'staleness'"),
]


@pytest.mark.parametrize(("path", "code", "detail"), WRONG)
def test_what_cannot_be_is_refused_with_the_way_out(http: TestClient, path: str, code: int, detail: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, detail in answer.json()["detail"]) == (code, True), answer.text


def test_more_series_than_are_read_at_once_are_refused_before_they_are(
    http: TestClient, control: ControlState, began: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"token_ess": 0.9, "tokens": 5}
    control.add_history(step(1, at=began, by_staleness={str(i): numbers for i in range(3)}))
    monkeypatch.setattr(kept, "MAX_LINES", 5)
    both = "name=by_staleness.token_ess&name=by_staleness.tokens"
    answer = http.get(f"/v1/series?{both}")
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "name: 6 series, by label, at once; at most 5: fewer names, or a label",
    )
    assert len(series(http, f"{both}&label=1")["series"]) == 2
    assert len(series(http, "name=by_staleness.token_ess")["series"]) == 3


@pytest.mark.parametrize("path", ["/v1/series?name=step", "/v1/histograms?name=staleness"])
def test_few_read_at_once_and_whoever_asks_for_less_does_not_wait_for_them(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    lock, full, go_on = threading.Lock(), threading.Event(), threading.Event()
    reading, most = 0, 0
    read = kept.read

    def slow(*asked: Any) -> kept.Found:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
            if reading == MAX_READS:
                full.set()
        assert go_on.wait(60)
        with lock:
            reading -= 1
        return read(*asked)

    monkeypatch.setattr(kept, "read", slow)
    with ThreadPoolExecutor(50) as pool:  # more than there are worker threads
        answers = [pool.submit(http.get, path) for _ in range(50)]
        try:
            assert full.wait(60)
            assert [http.get("/readyz").status_code for _ in range(3)] == [200] * 3
        finally:
            go_on.set()
        assert {answer.result(60).status_code for answer in answers} == {200}
    assert most == MAX_READS


def test_an_empty_run_and_one_that_is_not_there(http: TestClient) -> None:
    assert series(http, "name=step&name=servers.in_flight") == {"resolution_s": 3600.0, "tier": "hours", "series": []}
    answer = http.get("/v1/series?name=step&run=somebody-elses")
    assert (answer.status_code, "/v1/runs lists" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize("digits", [7, 9, 12])
def test_numbers_are_told_to_the_digits_that_were_kept(digits: int) -> None:
    values = [0.0, 1.0, -1.0, 0.1, 1 / 3, -2e-9 / 7, 134_217_728.0, 1.7e9, 9.9999999e-5, 123_456_789_012.0, 1e-300]
    found = significant(np.array(values), digits).tolist()
    assert found == [float(f"{value:.{digits}g}") for value in values]

"""The forecast of lag behind a slow link, beside a measurement over HTTP."""

from __future__ import annotations

import json

import pytest

from services.store_lag import Requests, show
from shared.errors import ConfigError


def test_what_is_foreseen_stands_beside_what_a_server_on_loopback_did(capsys: pytest.CaptureFixture[str]) -> None:
    show("20KB", "200KB", 0.05, 7, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["foreseen"] == {"fetch_s": 0.1, "lag_at_switch": 2, "lag_at_most": 4, "retain_versions": 3}
    measured = found["measured"]
    assert measured["fetches"] >= 1
    assert measured["fetch_s"] >= 0.1, "no faster than the limit allows"
    assert measured["lag_at_switch"] in range(7)
    assert measured["lag_at_most"] in range(7)


@pytest.mark.parametrize("text", ["", "much", "-3", "0"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--rate .*: write a number of bytes"):
        show("1MB", text, 1.0, 0, as_json=False)


@pytest.mark.parametrize(
    ("requests", "fetch_s", "lag"),
    [
        (Requests(), 10.0, 10),
        (Requests(answer_s=0.5), 11.0, 11),  # five requests of 8 MiB, four at once
        (Requests(answer_s=0.5, parts=40), 15.0, 15),
        (Requests(answer_s=0.5, parts=40, parallel=40), 10.5, 11),
    ],
)
def test_answers_take_their_time_beside_the_bytes(
    capsys: pytest.CaptureFixture[str], requests: Requests, fetch_s: float, lag: int
) -> None:
    show("40MB", "4MB", 1.0, 0, True, requests)
    found = json.loads(capsys.readouterr().out)["foreseen"]
    assert (found["fetch_s"], found["lag_at_switch"]) == (pytest.approx(fetch_s), lag)

"""The forecast of lag behind a slow link, beside a measurement over HTTP."""

from __future__ import annotations

import json

import pytest

from services.store_lag import show
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

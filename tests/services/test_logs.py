"""Log lines for people."""

from __future__ import annotations

import json
from pathlib import Path

from services.logs import readable, tail


def test_a_json_line_becomes_time_level_event_and_details() -> None:
    row = {
        "timestamp": "2026-11-20T12:30:01.5Z",
        "level": "error",
        "event": "failed",
        "run": "r",
        "component": "x",
        "step": 7,
    }
    assert readable(json.dumps(row)) == "12:30:01 error   failed step=7"


def test_an_exception_is_shown_below_its_line() -> None:
    assert readable(json.dumps({"event": "failed", "exception": "Traceback\n  boom"})).splitlines()[1:] == [
        "Traceback",
        "  boom",
    ]


def test_what_is_not_json_or_no_event_stays_as_it_is() -> None:
    assert readable("Segmentation fault") == "Segmentation fault"
    assert readable("[1, 2]") == "[1, 2]"
    assert readable('{"a": 1}') == '{"a": 1}'


def test_the_tail_of_a_large_log_is_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe torn\n" * 20_000 + b"one\n\ntwo\n")
    assert tail(path, 2) == ["one", "two"]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []

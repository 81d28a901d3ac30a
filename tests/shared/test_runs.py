"""The list of runs on a real Redis: it stays short, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared import runs
from shared.keys import RUNS, Keys
from shared.redis_client import Client
from shared.runs import register, registered


@pytest.fixture
def listed(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """An empty list with room for three."""
    monkeypatch.setattr(runs, "MOST", 3)
    client.delete(RUNS)
    yield client
    client.delete(RUNS)


def entry(at: float) -> str:
    return json.dumps({"steps": 7, "at": at})


def test_the_run_that_was_started_longest_ago_goes_first(listed: Client) -> None:
    listed.hset(RUNS, mapping={"b": entry(2), "a": entry(1), "c": entry(3)})
    register(listed, Keys("new"), 9)
    assert {name: run.steps for name, run in registered(listed).items()} == {"b": 7, "c": 7, "new": 9}


def test_what_nobody_can_read_counts_and_goes_before_any_run(listed: Client) -> None:
    listed.hset(RUNS, mapping={"a": entry(1), "torn": "{", b"\xff\xfe": "x", "b": entry(2)})
    register(listed, Keys("new"), 9)
    assert sorted(listed.hkeys(RUNS)) == [b"a", b"b", b"new"]


def test_a_list_full_of_runs_that_say_they_are_newer_has_room_for_this_one(listed: Client) -> None:
    listed.hset(RUNS, mapping={name: entry(1e11 + i) for i, name in enumerate("abcd")})
    register(listed, Keys("new"), 9)
    assert set(registered(listed)) == {"c", "d", "new"}

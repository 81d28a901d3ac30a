"""The live stream of a real server on a real Redis: what is told, to whom, and from where it goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from services.control_plane import app, live
from services.control_plane.app import create_app
from services.control_plane.resources import Run
from services.control_plane.server import Server
from shared.config import Config
from shared.control import ControlState
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client
from tests.conftest import free_port
from tests.services.rows import step

Event = tuple[str, str, Any]  # id, kind, data


@contextmanager
def serving(config: Config) -> Iterator[tuple[str, Server]]:
    """A control plane on a port of its own."""
    port = free_port()
    server = Server(uvicorn.Config(create_app(config), port=port, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        ends = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < ends
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def server(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Server]]:
    monkeypatch.setattr(live, "LOOK_S", 0.02)
    with serving(config) as found:
        yield found


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


@contextmanager
def listening(address: str, last: str = "") -> Iterator[Iterator[Event]]:
    headers = {"Last-Event-ID": last} if last else {}
    with httpx.stream("GET", f"{address}/v1/live", headers=headers, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer)


def events(answer: httpx.Response) -> Iterator[Event]:
    name = kind = ""
    ends = time.monotonic() + 20
    for line in answer.iter_lines():
        assert time.monotonic() < ends, "nothing but comments"
        field, _, value = line.partition(": ")
        if field == "id":
            name = value
        elif field == "event":
            kind = value
        elif field == "data":
            yield name, kind, json.loads(value)


def until(told: Iterator[Event], kind: str) -> Event:
    return next(event for event in told if event[1] == kind)


def test_it_begins_with_the_status_and_tells_steps_and_events(
    server: tuple[str, Server], control: ControlState
) -> None:
    control.add_history(step(1))
    with listening(server[0]) as told:
        _, kind, status = next(told)
        assert (kind, status["last"]["step"]) == ("status", 1)
        control.add_history(step(2))
        _, _, row = until(told, "step")
        assert (row["step"], "prompt_indices" in row) == (2, False)
        control.add_event("pause", "text", by="operator")
        _, _, event = until(told, "event")
        assert (event["kind"], event["by"]) == ("pause", "operator")
        control.set_phase("paused")
        assert next(status for _, kind, status in told if kind == "status" and status["phase"] == "paused")


def test_it_goes_on_after_the_last_one_heard_on_any_replica(
    server: tuple[str, Server], config: Config, control: ControlState
) -> None:
    with listening(server[0]) as told:
        next(told)
        control.add_history(step(1))
        control.add_event("first", "text", by="x")
        ids = {kind: name for name, kind, _ in (until(told, "step"), until(told, "event"))}
    for number in range(2, 2 + 3 * live.PAGE):
        control.add_history(step(number))
    control.add_event("second", "text", by="x")
    with serving(config) as (other, _), listening(other, max(ids.values())) as told:
        steps, told_events = list[int](), list[str]()
        while not told_events or len(steps) < 3 * live.PAGE:
            _, kind, data = next(told)
            if kind == "step":
                steps.append(data["step"])
            elif kind == "event":
                told_events.append(data["kind"])
    assert (steps, told_events) == (list(range(2, 2 + 3 * live.PAGE)), ["second"])


def test_steps_are_told_while_the_status_cannot_be_read(
    server: tuple[str, Server], client: Client, keys: Keys, control: ControlState
) -> None:
    with listening(server[0]) as told:
        next(told)
        client.set(keys.evaluation_results, "no hash")
        for number in range(1, 4):
            control.add_history(step(number))
            assert until(told, "step")[2]["step"] == number


def test_a_stream_that_cannot_catch_up_ends_and_does_not_break(
    server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StreamError("Redis is away")

    monkeypatch.setattr(live, "news", away)
    with listening(server[0]) as told:
        assert [kind for _, kind, _ in told] == ["status"]


def test_a_damaged_row_does_not_end_what_comes_after_it(
    server: tuple[str, Server], client: Client, keys: Keys, control: ControlState
) -> None:
    with listening(server[0]) as told:
        next(told)
        client.xadd(keys.history, {"row": b"{"})
        for number in range(1, 4):
            control.add_history(step(number))
            assert until(told, "step")[2]["step"] == number


def test_a_sample_that_fails_is_not_the_last(
    config: Config,
    client: Client,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app, "SLOT_S", 0.02)
    client.hset(keys.fleet, "slot", "no number")
    with serving(config):
        eventually(lambda: "a sample of the rollout servers failed" in caplog.text)
        client.hdel(keys.fleet, "slot")
        eventually(lambda: client.hget(keys.fleet, "slot") is not None)


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_silence_is_filled_with_comments(server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SILENCE_S", 0.05)
    with httpx.stream("GET", f"{server[0]}/v1/live", timeout=20) as answer:
        assert next(line for line in answer.iter_lines() if line.startswith(":")) == ": still here"


def test_one_too_many_is_told_when_to_come_back(server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS", 1)
    with listening(server[0]) as told:
        next(told)
        refused = httpx.get(f"{server[0]}/v1/live", timeout=20)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "ask /v1/status" in refused.json()["detail"]
    ends = time.monotonic() + 20
    while True:
        with httpx.stream("GET", f"{server[0]}/v1/live", timeout=20) as again:
            if again.status_code == 200:
                break
        assert time.monotonic() < ends, "a place that became free is not given again"


def test_one_that_does_not_read_loses_its_place(server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS", 1)
    monkeypatch.setattr(live, "STALLED_S", 0.1)
    monkeypatch.setattr(live, "RETRY_MS", "0" * 2**24)  # more than the sockets on the way hold
    address = httpx.URL(server[0])
    with socket.create_connection((address.host, address.port or 0)) as deaf:
        deaf.sendall(b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in deaf.recv(32)
        eventually(lambda: is_let_in(server[0]))


def is_let_in(address: str) -> bool:
    with httpx.stream("GET", f"{address}/v1/live", timeout=20) as answer:
        return answer.status_code == 200


def test_those_who_come_at_once_are_counted(server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LISTENERS", 1)
    newest, both = live.newest, threading.Event()

    def slow(run: Run) -> live.Place:
        assert both.wait(20)
        return newest(run)

    monkeypatch.setattr(live, "newest", slow)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(is_let_in, server[0]) for _ in range(2)]
        wait(asked, timeout=20, return_when=FIRST_COMPLETED)
        both.set()
        assert sorted(one.result() for one in asked) == [False, True]


def test_a_stop_ends_it_at_once(config: Config) -> None:
    with serving(config) as (address, server), listening(address) as told:
        next(told)
        server.should_exit = True
        assert [kind for _, kind, _ in told if kind != "status"] == []


def test_only_a_token_that_may_look_is_let_in(config: Config) -> None:
    given = {"auth": "token", "read_token": "only-for-looking-0123", "operate_token": "for-operators-0123456"}
    plane = config.control_plane.model_validate(given)
    with serving(config.model_copy(update={"control_plane": plane})) as (address, _):
        assert httpx.get(f"{address}/v1/live", timeout=20).status_code == 401
        headers = {"Authorization": f"Bearer {given['read_token']}"}
        with httpx.stream("GET", f"{address}/v1/live", headers=headers, timeout=20) as answer:
            assert next(events(answer))[1] == "status"


def test_a_listener_that_does_not_take_what_it_is_told_is_let_go() -> None:
    import asyncio

    async def fall_behind() -> int:
        queue: asyncio.Queue[live.Message | None] = asyncio.Queue(live.QUEUE)
        message = live.Message("event", "{}", live.Place())
        for _ in range(3):
            live.give(queue, [message] * 100)
        return len([told async for told in live.told(queue)])

    assert asyncio.run(fall_behind()) == 0


@pytest.mark.parametrize("wrong", ["x", "1-1", "1-1/", "1-1/2-2/3-3", "-/-"])
def test_an_id_of_somebody_else_is_none(wrong: str) -> None:
    assert live.Place.read(wrong) is None
    assert live.Place.read(str(live.Place("1-2", "3-4"))) == live.Place("1-2", "3-4")

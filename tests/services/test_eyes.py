"""What `trustbatch top` sees through a control plane, and what it says where another server answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services import eyes
from services.eyes import HttpSource, RedisSource
from services.verdict import verdict
from shared.config import Config
from shared.control import ControlState, Latest
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client
from tests.services.control_plane.test_live import serving
from tests.services.rows import step

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyes, "TIMEOUT_S", 30.0)


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Another HTTP server than ours."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(body: bytes, code: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_through_a_control_plane_it_says_what_redis_says(config: Config, client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    control.set_phase("running")
    control.announce(control.take_epoch(), Latest(3, 2, 3), 0, [])
    control.beat("learner", {"kind": "learner", "state": "paused"}, 600)
    control.beat("rollout:r0", {"kind": "rollout", "state": "paused"}, 600)
    control.add_history(step(1, token_ess=0.93))
    control.set_paused(True, by="controller")
    with serving(config) as (address, _):
        there, here = HttpSource(address), RedisSource(config)
        said = verdict(there.status())
        assert (said.level, said.sentence, said.parts) == (
            "idle",
            "Paused by the controller: nothing is drawn or trained until the run is resumed.",
            verdict(here.status()).parts,
        )
        assert there.steps() == here.steps()
        assert [row["token_ess"] for row in there.history(10)] == [0.93]
        here.close()


@pytest.mark.parametrize("body", [b"{}", b"[]", b"7", b"null", b'{"steps_total": "many"}', b'{"steps": [1]}'])
def test_json_of_another_kind_is_said_to_be_that(body: bytes) -> None:
    with answering(says(body)) as address:
        source = HttpSource(address)
        for ask in (source.steps, source.status, lambda: source.history(1)):
            with pytest.raises(StreamError, match="answers like another release's control plane"):
                ask()


@pytest.mark.parametrize("reply", [b"-ERR wrong number of arguments\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>", b""])
def test_what_is_no_control_plane_is_said_to_be_none(reply: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(reply)

    with answering(answer) as address, pytest.raises(StreamError, match=f"no control plane answers at {address}"):
        HttpSource(address).steps()


def test_a_token_is_not_carried_on_to_where_an_answer_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(eyes.TOKENS[0], "read")
    seen: list[str | None] = []

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        says(json.dumps({"steps_total": 1}).encode())(handler)

    with (
        answering(elsewhere) as there,
        answering(says(b"", 302, Location=f"{there}/v1/status")) as address,
        pytest.raises(StreamError, match=f"{address} sends on to {there}/v1/status: give the control plane's own"),
    ):
        HttpSource(address).steps()
    assert seen == []

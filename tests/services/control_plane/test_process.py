"""The control plane as a process: it takes a free port, announces itself, outlives Redis, and leaves in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.config import load_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import connect
from tests.conftest import RedisServer

pytestmark = pytest.mark.system  # each starts processes

ROOT = Path(__file__).parents[3]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*overrides: str) -> subprocess.Popen[str]:
        arguments = [part for override in ("control_plane.auth=none", *overrides) for part in ("--set", override)]
        command = [sys.executable, "-m", "services.control_plane", "--id", "here", *arguments]
        started.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def control_of(url: str) -> ControlState:
    return ControlState(connect(load_config(None, [f"redis.url={url}"], {})), Keys("run"))


def announced(control: ControlState) -> str:
    """The address in the heartbeat, waited for."""
    ends = time.monotonic() + 60
    while True:
        status = control.status_of("control-plane:here")
        if status:
            return str(status["address"])
        assert time.monotonic() < ends, "no heartbeat"
        time.sleep(0.05)


def get(address: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_port_zero_takes_a_free_port_and_announces_it(own_redis: RedisServer, start: Start) -> None:
    process = start(f"redis.url={own_redis.url}")
    control = control_of(own_redis.url)
    address = announced(control)
    assert get(address + "readyz")[0] == 200
    status = control.status_of("control-plane:here")
    assert status is not None
    assert (status["kind"], status["pid"], status["host"]) == ("control-plane", process.pid, socket.gethostname())


def test_it_outlives_redis_and_recovers(own_redis: RedisServer, start: Start) -> None:
    start(f"redis.url={own_redis.url}", "admission.lease_s=1")
    address = announced(control_of(own_redis.url))
    own_redis.kill()
    code, problem = get(address + "v1/status")
    assert code == 503
    assert "Redis cannot be reached" in str(problem["detail"])
    own_redis.start()
    assert announced(control_of(own_redis.url)) == address, "it announces itself again"
    assert get(address + "v1/status")[0] == 200


def test_sigterm_ends_it_in_order_also_while_somebody_watches(own_redis: RedisServer, start: Start) -> None:
    process = start(f"redis.url={own_redis.url}")
    control = control_of(own_redis.url)
    address = announced(control)
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port)) as watcher:
        watcher.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert watcher.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert control.members() == {}, "it left"
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["serving"], "only JSON lines"


def test_a_taken_port_is_a_plain_refusal(own_redis: RedisServer, start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(f"redis.url={own_redis.url}", f"control_plane.port={port}")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"control_plane.port {port}: cannot listen there: Address already in use; port 0 takes a free one" in said
    assert "Traceback" not in said


def test_without_an_address_of_redis_it_refuses_to_start(start: Start) -> None:
    process = start()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said == "redis.url is not set: the control plane needs the Redis of the run that it shows\n"

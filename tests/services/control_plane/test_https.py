"""The control plane as a process with tokens and https: what it answers, and that no secret leaves it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from shared.config import load_config
from shared.config.load import dump_config
from tests.certificates import Authority, authority
from tests.conftest import RedisServer
from tests.services.control_plane.test_process import ROOT, announced, control_of

pytestmark = pytest.mark.system

READ, OPERATE, PASSWORD = "sesame-read-0123456789", "sesame-operate-0123456", "sesame-redis-012345678"
SECRETS = {
    "TRUSTBATCH__CONTROL_PLANE__READ_TOKEN": READ,
    "TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN": OPERATE,
    "TRUSTBATCH__REDIS__PASSWORD": PASSWORD,
}


class Plane:
    """One process and what it ever said."""

    def __init__(self, server: RedisServer, ours: Authority) -> None:
        certificate, key = ours.sign("plane")
        files = (f"control_plane.tls_certificate={certificate}", f"control_plane.tls_key={key}")
        self.overrides = (f"redis.url={server.url}", *files)
        sets = [word for override in self.overrides for word in ("--set", override)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.control_plane", "--id", "here", *sets],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SECRETS, "PYTHONPATH": str(ROOT)},
        )
        self.trust = ssl.create_default_context(cafile=ours.certificate)
        self.said = ""
        self.port = 0

    def ask(self, method: str, path: str, token: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.trust)
        given = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.request(method, path, headers=given)
        answer = connection.getresponse()
        text = answer.read().decode()
        self.said += text + str(answer.getheaders())
        connection.close()
        return answer.status, text


@pytest.fixture
def plane(own_redis: RedisServer, tmp_path: Path) -> Iterator[Plane]:
    found = Plane(own_redis, authority(tmp_path / "ours"))
    control = control_of(own_redis.url)
    address = announced(control)
    assert address.startswith("https://127.0.0.1:")
    found.port = int(address.rsplit(":", 1)[1].strip("/"))
    admin = redis.Redis.from_url(own_redis.url)
    admin.config_set("requirepass", PASSWORD)
    admin.close()
    yield found
    found.process.kill()
    found.process.communicate()


def test_it_speaks_https_with_both_roles_and_no_secret_leaves_it(plane: Plane, own_redis: RedisServer) -> None:
    assert plane.ask("GET", "/healthz")[0] == 200
    assert plane.ask("GET", "/v1/status")[0] == 401
    assert plane.ask("GET", "/v1/status", "sesame-wrong-0123456789")[0] == 401
    status, text = plane.ask("GET", "/v1/status", READ)
    assert (status, json.loads(text)["members"][0]["address"]) == (200, f"https://127.0.0.1:{plane.port}/")
    assert plane.ask("POST", "/v1/pause", READ)[0] == 403
    assert plane.ask("POST", "/v1/pause", OPERATE)[0] == 200
    for path in ("/", "/metrics", "/openapi.json", "/v1/history", "/v1/nothing", f"/v1/status?token={OPERATE}"):
        plane.ask("GET", path, READ)

    with socket.create_connection(("127.0.0.1", plane.port)) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(100), "http is not answered"
    raw = redis.Redis.from_url(own_redis.url, password=PASSWORD)
    held = b"".join(raw.dump(key) or b"" for key in raw.keys())  # noqa: SIM118  # a command of Redis
    raw.close()
    own_redis.kill()
    assert plane.ask("GET", "/v1/status", READ)[0] == 503
    command = Path(f"/proc/{plane.process.pid}/cmdline").read_text()
    plane.process.send_signal(signal.SIGTERM)
    out, log = plane.process.communicate(timeout=60)
    shown = dump_config(load_config(None, plane.overrides, SECRETS))
    everything = {"answers": plane.said, "log": log, "config": shown, "command": command}
    assert out == ""
    for where, text in everything.items():
        assert text, where
        for secret in SECRETS.values():
            assert secret not in text, where
    assert b"sesame" not in held


def test_headers_without_end_are_cut_off(plane: Plane) -> None:
    assert plane.ask("GET", "/healthz", "", **{"X-Long": "x" * 15_000})[0] == 200
    for many in ({"X-Long": "x" * 40_000}, {f"X-{n}": "x" * 100 for n in range(90)} | {"X-Z": "x" * 9000}):
        try:
            status, _ = plane.ask("GET", "/healthz", "", **many)
        except (ConnectionError, http.client.HTTPException, ssl.SSLError):
            status = 400  # closed while the headers were still being sent
        assert status in (400, 431)
    assert plane.ask("GET", "/healthz")[0] == 200


def test_many_silent_connections_are_bounded(plane: Plane) -> None:
    opened = []
    try:
        for _ in range(300):
            plain = socket.create_connection(("127.0.0.1", plane.port))
            opened.append(plane.trust.wrap_socket(plain, server_hostname="127.0.0.1"))
        answer = plane.ask("GET", "/v1/status", READ)[0]
        assert answer == 503, "busy, and said"
    finally:
        for one in opened:
            one.close()
    ends = time.monotonic() + 60
    while plane.ask("GET", "/v1/status", READ)[0] != 200:
        assert time.monotonic() < ends
        time.sleep(0.1)

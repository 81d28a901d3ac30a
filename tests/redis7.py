"""A redis-server of version 7 or newer, for what 6.2 (or a build without TLS) does not have."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import free_port

FETCHED = Path(__file__).parents[1] / ".cache" / "redis" / "redis-server"


def binary() -> str:
    """Its path; skips the test where there is none."""
    for found in (shutil.which("redis-server"), str(FETCHED) if FETCHED.exists() else None):
        if found is None:
            continue
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"v=(\d+)", said)
        if version and int(version[1]) >= 7:
            return found
    pytest.skip("no redis-server >= 7 on PATH or in .cache/redis (deploy/redis/fetch.sh puts one there)")


class Redis7:
    """A real server with options of one's own, ended by its own handle."""

    def __init__(self, folder: Path, *options: str, **credentials: Any) -> None:
        self.port = free_port()
        self._log = folder / "redis.log"
        command = [binary(), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--logfile", str(self._log)]
        port = () if "--tls-port" in options else ("--port", str(self.port))
        self._command = [*command, *port, *(option.replace("PORT", str(self.port)) for option in options)]
        self._credentials = credentials
        try:
            self.start()
        except BaseException:
            self.kill()
            raise

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            client = redis.Redis("127.0.0.1", self.port, socket_timeout=2, **self._credentials)
            try:
                client.ping()
                return
            except redis.RedisError:
                assert self.process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)
            finally:
                client.close()

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self.process.kill()
        self.process.wait()

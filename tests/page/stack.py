"""A real Redis, a real control plane and a real Chromium, for the tests, the benchmark and the pictures of the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from shared.config import load_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client, connect
from tests.conftest import RedisServer, free_port

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
SETTINGS = ("rollout.max_lag=8", "learner.steps=600", "control_plane.requests_per_minute=100000")


def chromium() -> str | None:
    """The system's Chromium; None where there is none."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


class Plane:
    """A control plane on a port that stays its own, so that it can come back."""

    def __init__(self, redis_url: str, run_id: str, *settings: str) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/"
        given = (f"redis.url={redis_url}", f"run.id={run_id}", f"control_plane.port={self.port}", *SETTINGS, *settings)
        self._arguments = [part for setting in given for part in ("--set", setting)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 60) -> None:
        """Starts it and waits until it answers."""
        import urllib.request

        command = [sys.executable, "-m", "services.control_plane", "--id", "page", *self._arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(self.address + "readyz", timeout=2):
                    return
            except OSError:
                assert self._process.poll() is None, "the control plane ended"
                assert time.monotonic() < ends, "the control plane does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """SIGKILL, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Stack:
    """Redis and a control plane of one run."""

    def __init__(self, folder: Path, run_id: str, settings: Sequence[str] = ("control_plane.auth=none",)) -> None:
        self.redis = RedisServer(folder)
        self.client: Client = connect(load_config(None, [f"redis.url={self.redis.url}"], {}))
        self.control = ControlState(self.client, Keys(run_id))
        self.plane = Plane(self.redis.url, run_id, *settings)

    def close(self) -> None:
        """Ends both."""
        self.plane.stop()
        self.client.close()
        self.redis.kill()


@contextmanager
def open_stack(run_id: str, *settings: str) -> Iterator[Stack]:
    """Redis in a folder of its own; the control plane is still to be started."""
    with ExitStack() as after:
        folder = Path(after.enter_context(tempfile.TemporaryDirectory()))
        stack = Stack(folder, run_id, settings or ("control_plane.auth=none",))
        after.callback(stack.close)
        yield stack

"""Whole runs by the command that a person types, watched from outside: files, Redis, /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from shared.config import load_config
from shared.control import ControlState
from shared.errors import TrustbatchError
from shared.keys import Keys
from shared.redis_client import connect

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "configs" / "demo.yaml"
TRUSTBATCH = [str(Path(sys.executable).parent / "trustbatch")]
T = TypeVar("T")


def wait_for(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    """The first true thing that `look` sees, within the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    """True for a process that exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """All processes below a process, now."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = set[int](), [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found.update(below)
        queue.extend(below)
    return found


class Run:
    """One `trustbatch up` in a folder of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self._overrides = [f"run.folder={folder}", f"run.id={folder.name}", *overrides]
        self.process: subprocess.Popen[str] | None = None
        self._others: list[subprocess.Popen[str]] = []

    # -- commands -------------------------------------------------------------------------------
    def start(self, *arguments: str) -> Run:
        """Starts `trustbatch up`; its output goes to a file beside the run folder."""
        sets = [word for override in self._overrides for word in ("--set", override)]
        command = [*TRUSTBATCH, "up", "--config", str(DEMO), *sets, *arguments]
        with self.output_file.open("a") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, env=self._environment()
            )
        return self

    def join(self, server_id: str, *overrides: str) -> subprocess.Popen[str]:
        """Starts one more rollout server, as from another terminal."""
        sets = [word for override in overrides for word in ("--set", override)]
        config = str(self.folder / "config.yaml")
        command = [*TRUSTBATCH, "rollout", "--config", config, "--server-id", server_id, *sets]
        log = self.folder / "logs" / f"rollout-{server_id}.jsonl"
        with log.open("a") as output:
            server = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, env=self._environment()
            )
        self._others.append(server)
        return server

    def wait(self, seconds: float) -> int:
        """The exit code of `trustbatch up`."""
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Runs to the end, which must be a success; returns the summary."""
        assert self.start().wait(seconds) == 0, self.output
        return self.summary

    def kill_everything(self) -> None:
        """The last resort of a failed test."""
        for process in [*([self.process] if self.process else []), *self._others]:
            for pid in [*descendants(process.pid), process.pid]:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    # -- what it left and what it says ----------------------------------------------------------
    @property
    def output_file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".out")

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return loaded

    def rows(self, name: str = "history.jsonl") -> list[dict[str, Any]]:
        """The whole lines of one of the run's JSON lines files."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def last_step(self) -> int:
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def reach_step(self, step: int, seconds: float = 120) -> None:
        """Waits for a step, and fails at once if the run ends before."""
        self.wait_for(f"step {step}", seconds, lambda: self.last_step >= step)

    def wait_for(self, what: str, seconds: float, look: Callable[[], T | None]) -> T:
        """The first true thing that `look` sees; fails at once, with what the run said, if it ends before."""

        def there() -> T | None:
            assert self.process is not None
            found = look()
            assert found or self.process.poll() is None, self.output
            return found

        return wait_for(what, seconds, there)

    def pid_of(self, component: str) -> int:
        """The process of a component, by its own heartbeat."""
        return int(self.wait_for(f"a heartbeat of {component}", 60, lambda: self.members().get(component))["pid"])

    def members(self) -> dict[str, dict[str, Any]]:
        """The living components' status, empty while Redis is not there."""
        if not (self.folder / "config.yaml").exists():
            return {}
        try:
            client = connect(load_config(self.folder / "config.yaml", [], {}))
            members = ControlState(client, Keys(self.folder.name)).members()
            client.close()
        except TrustbatchError:
            return {}
        return {name: status for name, status in members.items() if status}

    def everything(self) -> set[int]:
        """Every process of the run now, the supervisor included."""
        assert self.process is not None
        return {self.process.pid, *descendants(self.process.pid)}


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs, and ends what is left of them."""
    runs: list[Run] = []

    def make(name: str, *overrides: str) -> Run:
        runs.append(Run(tmp_path / name, *overrides))
        return runs[-1]

    yield make
    for run in runs:
        run.kill_everything()

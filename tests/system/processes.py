"""Single processes of a run, started by a test and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def processes(*commands: list[str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Runs them until the block ends."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        started = [
            subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=output, env=environ)
            for command in commands
        ]
        try:
            yield started
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(timeout=60)


def wait_for(there: Callable[[], bool], what: str, running: list[subprocess.Popen[bytes]], log: Path) -> None:
    ends = time.monotonic() + 180
    while not there():
        assert time.monotonic() < ends, f"waited for {what}: {log.read_text()[-3000:]}"
        assert all(process.poll() is None for process in running), log.read_text()[-3000:]
        time.sleep(0.02)

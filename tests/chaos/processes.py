"""Processes of a scenario, by pid: started, stopped, killed, measured. Nothing else is ever signalled."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from services.children import Child, ChildSpec, start

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def wait_for(what: str, seconds: float, look: Callable[[], T | None], every: float = 0.02) -> T:
    """The first true thing that `look` sees. Raises TimeoutError that says what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return found


def start_python(name: str, log: Path, arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Child:
    """Starts a module of the project; it dies with this process."""
    spec = ChildSpec(
        name=name,
        argv=[sys.executable, "-m", *arguments],
        log=log,
        environ={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environ or {})},
    )
    return start(spec)


def send(child: Child, signum: signal.Signals) -> None:
    """A signal for a child of ours, if it lives."""
    if child.exit_code() is None:
        os.kill(child.pid, signum)


def ended(child: Child, seconds: float) -> int:
    """Waits for the end; the exit code."""
    wait_for(f"{child.name} to end", seconds, lambda: child.exit_code() is not None)
    code = child.exit_code()
    assert code is not None
    return code


def kill(child: Child) -> None:
    """SIGKILL, and waits until it is gone."""
    send(child, signal.SIGKILL)
    ended(child, 10)


def rss_mib(pid: int, peak: bool = False) -> float:
    """Resident memory of a process, or the most that it ever had; 0 if it is gone."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))

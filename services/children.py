"""Child processes that start in groups of their own, stop in order, and leave nothing behind.

A child is a group leader from its first moment, so a Ctrl-C in the terminal reaches only the supervisor, and
what the child has started dies with its group. Whatever kills the supervisor, the kernel tells the children:
trustbatch's own entry points arrange that themselves (`shared.process.guard`, through TRUSTBATCH_PARENT_PID),
for any other program it is arranged before exec.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services import logs
from shared.process import die_with_parent

PARENT_ENV = "TRUSTBATCH_PARENT_PID"
POLL_S = 0.05
KILLED_S = 1.0  # for the kernel to end what was killed


class _Process(Protocol):
    """What a child needs of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...


@dataclass(frozen=True)
class ChildSpec:
    """What to start, and how."""

    name: str
    argv: Sequence[str]
    log: Path
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    guarded: bool = True  # the program calls shared.process.guard itself
    stdin: bytes = b""  # written to the program, then closed
    keep_open: Sequence[int] = ()  # file descriptors that the program inherits


@dataclass(frozen=True)
class Child:
    """A started process."""

    name: str
    log: Path
    process: _Process
    started_at: float  # unix seconds

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self.process.poll()

    def ended(self) -> str:
        """How it ended, in words."""
        code = self.exit_code()
        if code is None:
            return "is running"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"

    def terminate(self) -> None:
        """Asks the process to stop; it stops its own children."""
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """Ends whatever is left of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def tail(self, lines: int = 15) -> list[str]:
        """The last lines of its log, readable."""
        return logs.tail(self.log, lines)


def start(spec: ChildSpec) -> Child:
    """Starts a child. Call it from the main thread: the kernel's parent-death signal follows that thread."""
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    environ = {**spec.environ, PARENT_ENV: str(os.getpid())}
    with spec.log.open("ab") as log:
        process = subprocess.Popen(
            list(spec.argv),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
            pass_fds=tuple(spec.keep_open),
            preexec_fn=None if spec.guarded else die_with_parent,  # noqa: PLW1509 - the supervisor has no threads
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already; whoever polls it says so
        process.stdin.write(spec.stdin)
        process.stdin.close()
    return Child(spec.name, spec.log, process, time.time())


def death_notice(dead: Sequence[Child]) -> str:
    """Who died, of what, and the last that they said."""
    lines = []
    for child in dead:
        lines.append(f"{child.name} {child.ended()}; its last log lines ({child.log}):")
        lines += [f"  {line}" for line in child.tail()] or ["  (it wrote nothing)"]
    return "\n".join(lines)


def stop_in_order(
    stages: Sequence[Sequence[Child]],
    stage_s: float,
    total_s: float,
    hurry: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Stops children stage by stage, then kills what is left of every group.

    Args:
        stages: each stage is asked to stop when the one before it has ended or had its time.
        stage_s: how long the next stage waits for the one before it.
        total_s: from the first request until the last resort.
        hurry: while true, nobody is waited for any longer.

    Returns:
        The names of those that had to be killed.

    """
    children = [child for stage in stages for child in stage]
    ends = time.monotonic() + total_s
    for stage in stages:
        for child in stage:
            child.terminate()
        _wait(stage, min(ends, time.monotonic() + stage_s), hurry)
    _wait(children, ends, hurry)
    killed = [child.name for child in children if child.exit_code() is None]
    for child in children:
        child.kill_group()
    _wait(children, time.monotonic() + KILLED_S, lambda: False)
    return killed


def _wait(children: Sequence[Child], until: float, hurry: Callable[[], bool]) -> None:
    while any(child.exit_code() is None for child in children) and time.monotonic() < until and not hurry():
        time.sleep(POLL_S)

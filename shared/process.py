"""Processes that die together, stop in order, and say why.

Every long-lived process calls `guard()` first. It makes the process the leader of its own process group and
starts a tiny watcher: when the process is gone, however it died, the watcher kills what is left of the group
(the engine's children). `die_with_parent` is for children of the supervisor: the kernel sends them SIGTERM
when the supervisor is gone, and the watcher SIGKILL after the grace period.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType

from shared.errors import DeadlineError

UNFINISHED = 75  # exit code of an orderly stop before the run is over, for those who ask for it (EX_TEMPFAIL)
GRACE_S = 7.0  # from the end of the parent, or from SIGTERM, to SIGKILL
_PR_SET_PDEATHSIG = 1


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Asks the kernel to send this process a signal when its parent dies. Survives exec. Linux only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def guard(parent_pid: int | None = None) -> None:
    """Ties this process's group to this process, and this process to its parent if one is named.

    Args:
        parent_pid: the supervisor; SIGTERM follows its end at once, SIGKILL to the group after GRACE_S.

    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    if parent_pid is not None:
        die_with_parent()
        if os.getppid() != parent_pid:  # it died before the kernel was told
            raise SystemExit(f"the supervisor (pid {parent_pid}) is gone")
    leader, parent = os.pidfd_open(os.getpid()), os.pidfd_open(parent_pid) if parent_pid is not None else -1
    if os.fork() == 0:
        _watch(leader, parent, os.getpgrp())
    os.close(leader)
    if parent >= 0:
        os.close(parent)


def _watch(leader: int, parent: int, group: int) -> None:
    """The watcher's whole life; never returns."""
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    os.closerange(3, min(leader, parent) if parent >= 0 else leader)
    watched = [descriptor for descriptor in (leader, parent) if descriptor >= 0]
    ready, _, _ = select.select(watched, [], [])
    if leader not in ready:
        select.select([leader], [], [], GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    os._exit(0)


class StopFlag:
    """Set by SIGTERM and SIGINT; the loops look at it between two units of work."""

    def __init__(self) -> None:
        self.reason = ""
        self._callbacks: list[Callable[[], None]] = []

    def install(self) -> StopFlag:
        """Takes over the two signals."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        return self

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Called from the signal handler; must only wake something up."""
        self._callbacks.append(callback)

    def __bool__(self) -> bool:
        return bool(self.reason)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(signum).name
        for callback in self._callbacks:
            callback()


class Deadline:
    """A bounded wait that says what it waits for."""

    def __init__(self, waits_for: str, seconds: float) -> None:
        self.waits_for = waits_for
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    def check(self) -> None:
        """Raises DeadlineError when the time is over."""
        if self.remaining == 0.0:
            raise DeadlineError(f"waited {self.seconds:g} s for {self.waits_for}, in vain")

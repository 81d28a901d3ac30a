"""Processes that die together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import DeadlineError
from shared.process import Deadline

ROOT = Path(__file__).parents[2]

GUARDED = """
import os, subprocess, sys, time
from shared.process import guard
guard(int(sys.argv[1]) if len(sys.argv) > 1 else None)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""

SUPERVISOR = """
import os, subprocess, sys, time
code = sys.argv[1]
child = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def read_pid(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def wait_until_gone(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_a_guarded_process_its_children_end_too(signum: signal.Signals) -> None:
    process = start(GUARDED)
    child = read_pid(process)
    process.send_signal(signum)
    process.wait()
    wait_until_gone(child, 60)


def test_when_the_supervisor_is_killed_its_child_and_the_child_s_child_end() -> None:
    supervisor = start(SUPERVISOR, GUARDED)
    child = read_pid(supervisor)
    grandchild = read_pid(supervisor)  # the child prints into the supervisor's output
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    wait_until_gone(child, 60)
    wait_until_gone(grandchild, 60)


def test_a_deadline_says_what_it_waited_for() -> None:
    deadline = Deadline("Redis at redis://127.0.0.1:1", 0.01)
    time.sleep(0.02)
    assert deadline.remaining == 0
    with pytest.raises(DeadlineError, match=r"waited 0\.01 s for Redis at redis://127\.0\.0\.1:1, in vain"):
        deadline.check()
    Deadline("nothing", 60).check()

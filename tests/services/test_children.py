"""Child processes of their own groups: how they end, in which order they stop, what their logs say."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.children import Child, ChildSpec, start, stop_in_order

POLITE = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""

Start = Callable[..., Child]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Start]:
    children: list[Child] = []

    def run(code: str, name: str = "child", **settings: object) -> Child:
        spec = ChildSpec(name, [sys.executable, "-c", code], tmp_path / f"{name}.jsonl", guarded=False, **settings)  # type: ignore[arg-type]
        children.append(start(spec))
        return children[-1]

    yield run
    for child in children:
        child.kill_group()


def until(done: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 60
    while not done():
        assert time.monotonic() < ends, what
        time.sleep(0.01)


def test_a_child_says_how_it_ended(begin: Start) -> None:
    left, killed = begin("raise SystemExit(5)", "a"), begin("import os; os.kill(os.getpid(), 9)", "b")
    until(lambda: left.exit_code() is not None and killed.exit_code() is not None, "both to end")
    assert left.ended() == "left with exit code 5"
    assert killed.ended() == "was killed by SIGKILL"


def test_output_and_errors_go_to_its_log_line_by_line_readable(begin: Start) -> None:
    code = """
import sys
print('{"event": "loaded", "level": "info", "timestamp": "2026-01-01T01:02:03Z", "run": "r", "component": "c", "n": 3}')
print("plain", file=sys.stderr, flush=True)
"""
    child = begin(code)
    until(lambda: child.exit_code() is not None, "it to end")
    assert sorted(child.tail()) == ["01:02:03 info    loaded n=3", "plain"]


def test_standard_input_is_what_was_given_and_then_closed(begin: Start) -> None:
    child = begin("import sys; print(sys.stdin.read()[::-1])", stdin=b"port 7")
    until(lambda: child.exit_code() is not None, "it to end")
    assert child.tail() == ["7 trop"]


def test_stages_stop_one_after_the_other(begin: Start, tmp_path: Path) -> None:
    code = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2)
    with open({out!r}, "a") as file: file.write({name!r})
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""
    out = tmp_path / "order"
    first, second = (begin(code.format(out=str(out), name=name), name) for name in "ab")
    until(lambda: first.tail() == second.tail() == ["ready"], "both to be ready")
    assert stop_in_order([[first], [second]], stage_s=60.0, total_s=120.0) == []
    assert out.read_text() == "ab"


def test_who_will_not_stop_is_killed_when_the_time_is_over(begin: Start) -> None:
    child = begin(STUBBORN, "stubborn")
    until(lambda: child.tail() == ["ready"], "it to be ready")
    assert stop_in_order([[child]], stage_s=0.2, total_s=0.4) == ["stubborn"]
    assert child.exit_code() == -signal.SIGKILL


def test_hurry_ends_every_wait(begin: Start) -> None:
    child = begin(STUBBORN, "stubborn")
    until(lambda: child.tail() == ["ready"], "it to be ready")
    assert stop_in_order([[child]], stage_s=3600.0, total_s=3600.0, hurry=lambda: True) == ["stubborn"]


def test_what_a_child_has_started_dies_with_it(begin: Start) -> None:
    child = begin(PARENT)
    until(lambda: bool(child.tail()), "the grandchild's pid")
    grandchild = Path("/proc") / child.tail()[0]
    assert grandchild.exists()
    stop_in_order([[child]], stage_s=60.0, total_s=60.0)
    until(
        lambda: not grandchild.exists() or "\nState:\tZ" in (grandchild / "status").read_text(), "the grandchild to die"
    )

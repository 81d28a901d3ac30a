"""The learner as a process of its own: `python -m learner`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.config.load import dump_config
from shared.probe import ask
from shared.process import UNFINISHED
from tests.learner.conftest import MakeWorld
from tests.learner.world import World

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.system


class Process:
    """A learner process, ended by its own handle."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        with log.open("a") as file:
            self.handle = subprocess.Popen(
                [sys.executable, "-m", "learner", "--config", str(config), "--again"],
                cwd=ROOT,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            assert self.handle.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < ends, self._log.read_text()[-2000:]
            time.sleep(0.005)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[World], Process]]:
    processes: list[Process] = []

    def starter(world: World) -> Process:
        path = tmp_path / "config.yaml"
        path.write_text(dump_config(world.config))
        processes.append(Process(path, tmp_path / "learner.log"))
        return processes[-1]

    yield starter
    for process in processes:
        process.handle.kill()
        process.handle.wait()


def test_kills_at_any_moment_lose_no_group_and_apply_none_twice(
    make_world: MakeWorld, start: Callable[[World], Process]
) -> None:
    world = make_world(
        "admission.max_staleness=1000", "learner.steps=60", "learner.checkpoint_every=3", "evaluation.deadline_s=0.1"
    )
    process = start(world)
    process.until(lambda: world.control.latest() is not None)
    groups = [world.group(index, 0) for index in world.lease(240)]
    for group in groups:
        world.put(group)
    for step, delay in ((11, 0.0), (32, 0.013)):
        process.until(lambda step=step: len(world.lines("history.jsonl")) >= step)  # type: ignore[misc]
        time.sleep(delay)
        process.handle.kill()
        process.handle.wait()
        process = start(world)
        process.until(lambda: world.control.phase()[0] == "running" and bool(world.control.status_of("learner")))
    assert process.handle.wait(60) == 0
    assert world.control.phase()[0] == "finished"
    assert [row["step"] for row in world.lines("history.jsonl")] == list(range(1, 61))
    assert world.applied == dict.fromkeys(range(240), 1)
    assert world.drops == {}
    assert world.backlog.unapplied == 0


def test_sigterm_ends_it_in_order(make_world: MakeWorld, start: Callable[[World], Process], tmp_path: Path) -> None:
    world = make_world("learner.publish_every=5", "learner.checkpoint_every=500")
    process = start(world)
    process.until(lambda: world.control.phase()[0] == "running")
    world.append(8)
    process.until(lambda: len(world.lines("history.jsonl")) == 2)
    status = world.control.status_of("learner")
    assert status is not None
    assert {"kind", "pid", "host", "state", "since", "step", "policy_version", "epoch", "metrics"} <= status.keys()
    with urllib.request.urlopen(status["metrics"], timeout=60) as answer:
        assert b"trustbatch_steps_total 2.0" in answer.read()
    for probe in ("livez", "readyz"):
        assert ask(status["metrics"].replace("metrics", probe))[0]
    process.handle.send_signal(signal.SIGTERM)
    assert process.handle.wait(60) == UNFINISHED
    assert world.control.phase() == ("stopped", "SIGTERM")
    assert world.latest == 1
    assert "learner" not in world.control.members()
    lines = [json.loads(line) for line in (tmp_path / "learner.log").read_text().splitlines() if line.startswith("{")]
    assert {line["component"] for line in lines} == {"learner"}


def test_a_failure_is_one_line_of_json_and_exit_code_1(
    make_world: MakeWorld, start: Callable[[World], Process], tmp_path: Path
) -> None:
    world = make_world("learner.idle_deadline_s=0.1")
    process = start(world)
    assert process.handle.wait(60) == 1
    text = (tmp_path / "learner.log").read_text()
    assert "Traceback" not in text
    last = json.loads(text.splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "DeadlineError")
    assert "for groups" in last["reason"]
    assert world.control.phase()[0] == "failed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.steps=0", "learner.steps"),
        ("redis.url=null", "redis.url is not set"),
        ("redis.username=sesame", "Redis refuses redis.username and redis.password"),
    ],
)
def test_a_configuration_that_cannot_work_is_plain_text_and_exit_code_2(
    redis_url: str, override: str, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "learner", "--set", f"redis.url={redis_url}", "--set", override],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "sesame" not in done.stderr

"""Two learners of one run: the second believes the first dead, and the first comes back. Only one of them writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from learner.loop import Learner
from shared.config.load import dump_config
from shared.errors import FencedError, StoreError
from tests.conftest import RedisServer
from tests.learner.conftest import MakeWorld
from tests.learner.world import World, weights

ROOT = Path(__file__).parents[2]
PATIENT = ("admission.max_staleness=100", "learner.steps=100", "learner.retain_versions=50")


def collected(learner: Learner) -> None:
    """A trained batch, nothing of it written yet."""
    assert learner.training.collect()
    learner.training.train(learner.training.intake.take(learner.training.lineage))


def stopped_before(owner: Any, name: str, meanwhile: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """The next call of owner.name is as if the process were stopped right before it, and `meanwhile` happened."""
    original = getattr(owner, name)

    def late(*arguments: Any, **named: Any) -> Any:
        if getattr(owner, name) is late:  # a command that was bound before is tried again
            patch.setattr(owner, name, original)
            meanwhile()
        return original(*arguments, **named)

    patch.setattr(owner, name, late)


class TakeOver:
    """Starts another learner, which trains one batch and saves it."""

    def __init__(self, world: World, step: int = 1) -> None:
        self.world, self.step = world, step
        self.learner: Learner | None = None

    def __call__(self) -> None:
        self.learner = self.world.learner()
        for _ in range(20):
            if self.learner.training.step >= self.step:
                break
            self.learner.iterate()
        self.learner.training.write_checkpoint()

    def is_the_only_one(self, groups: int) -> None:
        """The run is the other learner's alone."""
        assert self.learner is not None
        world, training = self.world, self.learner.training
        assert world.latest == training.lineage.latest
        assert world.applied == dict.fromkeys(range(groups), 1)
        assert [row["step"] for row in world.lines("history.jsonl")] == list(range(1, groups // 4 + 1))
        manifest, _ = world.store.hold(world.latest, "r0")
        assert manifest.policy_version == world.latest
        newest = training.parts.checkpoints.newest()
        assert newest is not None
        assert newest.name.startswith("e0002-")
        assert newest.state.step == training.step
        assert world.control.phase() == ("running", "")


def test_stopped_between_the_look_at_the_epoch_and_the_version_s_folder(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(*PATIENT)
    old, other = world.learner(), TakeOver(world)
    world.append(4)
    collected(old)
    stopped_before(old.training.parts.publisher._store, "begin", other, monkeypatch)
    with pytest.raises(StoreError, match="version 1 is published already"):
        old.training.publish(old.evaluations)
    other.is_the_only_one(4)


@pytest.mark.parametrize("call", ["files.save_others", "files.tensors", "sequence_logprobs"])
def test_stopped_while_it_writes_a_version(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    world = make_world(*PATIENT)
    old, other = world.learner(), TakeOver(world)
    world.append(4)
    collected(old)
    *within, name = call.split(".")
    policy = old.training.parts.policy
    stopped_before(getattr(policy, within[0]) if within else policy, name, other, monkeypatch)
    with pytest.raises((FencedError, StoreError)):  # a torn folder may have been removed under its hands
        old.training.publish(old.evaluations)
    other.is_the_only_one(4)
    assert world.latest == 3, "version 1 is whose folder it was; nobody serves it"


def test_stopped_between_announcing_and_deleting_old_versions(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("admission.max_staleness=100", "learner.steps=100", "learner.retain_versions=1")
    old, other = world.learner(), TakeOver(world)
    world.append(4)
    collected(old)
    stopped_before(old.training.parts.publisher, "retain", other, monkeypatch)
    old.training.publish(old.evaluations)
    other.is_the_only_one(4)
    with pytest.raises(FencedError):
        old.training.record()


def test_stopped_between_the_look_at_the_epoch_and_the_line_of_history(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(*PATIENT)
    old, other = world.learner(), TakeOver(world)
    world.append(4)
    collected(old)
    stopped_before(old.training.parts.files.history, "append", other, monkeypatch)
    with pytest.raises(FencedError):
        old.training.record()
    other.is_the_only_one(4)
    assert [row["step"] for row in world.control.history()] == [1]


def test_stopped_between_the_look_at_the_epoch_and_the_checkpoint(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it still writes is of an older epoch: no restore takes it while one of a newer epoch is there."""
    world = make_world(*PATIENT)
    old, other = world.learner(), TakeOver(world)
    world.append(4)
    collected(old)
    stopped_before(old.training.parts.checkpoints, "write", other, monkeypatch)
    old.training.write_checkpoint()
    old.training.ledger.deletable = [entry_id.decode() for entry_id, _ in world.client.xrange(world.keys.groups)]
    with pytest.raises(FencedError):
        old.training.delete_finished()
    other.is_the_only_one(4)
    assert world.backlog.groups == 4
    assert other.learner is not None
    expected = weights(other.learner.training)
    assert (weights(world.learner().training) == expected).all()


def test_a_fenced_learner_does_not_end_the_other_one_s_run(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT, "learner.max_nonfinite_steps=1")
    old = world.learner()
    other = TakeOver(world, step=0)
    other()
    with pytest.raises(FencedError):
        old.halt()
    old._fail(RuntimeError("anything"))
    assert world.control.phase() == ("running", "")
    assert old._is_fenced()
    assert other.learner is not None
    assert not other.learner._is_fenced()


# -- processes --------------------------------------------------------------------------------------
class Process:
    """A learner process; its log is JSON lines."""

    def __init__(self, config: Path, name: str) -> None:
        self.log = config.with_name(f"{name}.log")
        with self.log.open("w") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "learner", "--config", str(config)],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.end()


def wait(what: str, look: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.system
def test_a_learner_process_stopped_past_its_lease_comes_back_to_a_run_that_is_another_s(
    make_world: MakeWorld, own_redis: RedisServer, tmp_path: Path, processes: list[Process]
) -> None:
    world = make_world(
        *PATIENT, "admission.lease_s=1", "learner.checkpoint_every=1", "learner.idle_deadline_s=60", url=own_redis.url
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(world.config))

    def step() -> int:
        return len(world.lines("history.jsonl"))

    first = Process(path, "first")
    processes.append(first)
    wait("the first to run", lambda: world.control.phase()[0] == "running")
    world.append(8)
    wait("its steps", lambda: step() == 2)
    world.append(3)
    first.popen.send_signal(signal.SIGSTOP)
    second = Process(path, "second")
    processes.append(second)
    wait("the second to take over", lambda: int(world.client.get(world.keys.epoch)) == 2)
    wait(
        "the second to run", lambda: (world.control.status_of("learner") or {}).get("epoch") == 2 and world.latest >= 3
    )
    world.append(5)
    wait("its steps", lambda: step() == 4)
    first.popen.send_signal(signal.SIGCONT)
    assert first.popen.wait(timeout=60) == 1
    fenced = [row for row in first.rows if row.get("event") == "fenced"]
    assert fenced, first.log.read_text()
    assert "another learner has taken over this run" in fenced[0]["reason"]
    world.append(4)
    wait("another step", lambda: step() == 5)
    assert [row["step"] for row in world.lines("history.jsonl")] == [1, 2, 3, 4, 5]
    assert world.applied == dict.fromkeys(range(20), 1)
    assert world.lines("lost.jsonl") == []
    assert world.control.phase() == ("running", "")
    second.popen.send_signal(signal.SIGTERM)
    assert second.popen.wait(timeout=60) == 0
    checkpoints = [p.name for p in (world.config.run.folder / "checkpoints").glob("e*-n*")]
    assert max(checkpoints).startswith("e0002-")

"""Taking over a run."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from learner.checkpoint import CheckpointStore
from learner.startup import await_predecessor, take_epoch
from shared.control import ControlState
from shared.errors import FencedError
from shared.keys import Keys
from shared.redis_client import Client
from tests.learner.conftest import MakeWorld
from tests.learner.world import World


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


def status(pid: int, host: str | None = None) -> dict[str, object]:
    return {"kind": "learner", "pid": pid, "host": host or socket.gethostname(), "state": "training step 3"}


def test_a_dead_learners_heartbeat_is_waited_out(control: ControlState) -> None:
    control.beat("learner", status(1, "elsewhere"), 0.5)
    await_predecessor(control, 60)
    assert control.status_of("learner") is None


def test_a_dead_process_of_this_machine_is_not_waited_for(control: ControlState) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        control.beat("learner", status(pid), 30)
        await_predecessor(control, 30)  # a living one would be an error


def test_versions_that_restores_published_are_known_from_the_store_where_redis_has_forgotten(world: World) -> None:
    world.learner()
    world.learner()
    world.client.delete(world.keys.parents, world.keys.latest)
    lineage = world.learner().training.lineage
    assert [lineage.depth(version) for version in range(3)] == [0, 0, 0]
    assert (lineage.latest, lineage.advanced().staleness(1)) == (2, 1)


def test_what_a_restore_publishes_is_told_to_be_a_copy_of_its_parent(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    assert world.control.descent() == {0: -1, 1: 0}
    learner.training.write_checkpoint()
    learner = world.learner()
    assert (world.control.parents(), world.control.descent()) == ({0: -1, 1: 0, 2: 1}, {0: -1, 1: 0, 2: 0})
    world.client.delete(world.keys.parents, world.keys.latest)
    learner.training.reopen()
    assert world.control.descent() == {0: -1, 1: 0, 2: 0}, "a Redis that forgot is told so too"


def test_a_living_learner_keeps_its_run_and_its_name(world: World) -> None:
    world.control.set_phase("running")
    parent = os.getppid()
    world.control.beat("learner", status(parent), 60)
    learner = world.unstarted()
    learner.config = world.config.model_copy(
        update={"admission": world.config.admission.model_copy(update={"lease_s": 0.2})}
    )
    with pytest.raises(FencedError, match=rf"another learner is alive \(pid {parent} .*'training step 3'"):
        learner.run()
    assert world.control.phase() == ("running", "")
    assert world.control.status_of("learner") == status(parent)


def test_an_epoch_is_above_every_checkpoints_also_when_redis_has_forgotten(make_world: MakeWorld) -> None:
    world = make_world("learner.checkpoint_every=1")
    for _ in range(3):
        learner = world.learner()
    world.append(4)
    learner.iterate()
    world.abandon()
    world.client.delete(world.keys.epoch)
    store = CheckpointStore(world.config.run.folder / "checkpoints", 2, print)
    assert take_epoch(world.control, store) == 4


def test_the_files_of_an_abandoned_branch_are_moved_aside(make_world: MakeWorld) -> None:
    world = make_world("learner.checkpoint_every=2", "evaluation.every=1")
    learner = world.learner()
    for _ in range(3):
        world.append(4)
        learner.iterate()
        world.answer_evaluations(0.5)
    learner.iterate()
    failing = world.lease(1)[0]
    world.writer.append_failure(failing, f"{world.config.run.id}:{failing}", "no answer")
    learner.iterate()
    assert [row["policy_version"] for row in world.lines("evaluations.jsonl")] == [0, 1, 2, 3]
    assert world.drops == {failing: "failure"}
    learner = world.learner()
    assert learner.training.lineage.latest == 4
    assert [row["policy_version"] for row in world.lines("evaluations.jsonl")] == [0, 1, 2]
    assert [row["policy_version"] for row in world.lines("evaluations.abandoned.jsonl")] == [3]
    assert [row["step"] for row in world.lines("history.jsonl")] == [1, 2]
    assert world.drops == {}
    world.answer_evaluations(0.6)
    for _ in range(5):
        learner.iterate()
    assert world.drops == {failing: "failure"}, "it is found in the stream again"
    assert [row["policy_version"] for row in world.lines("evaluations.jsonl")] == [0, 1, 2, 4]


def test_after_a_power_loss_no_lag_leads_to_a_version_that_it_has_torn(make_world: MakeWorld) -> None:
    world = make_world("rollout.lag=4", "learner.checkpoint_every=4")
    learner = world.learner()
    for _ in range(5):
        world.append(4)
        learner.iterate()
    assert sorted(world.control.parents()) == [0, 1, 2, 3, 4, 5]
    for version in (2, 4, 5):  # version 4 is the checkpoint's
        shard = world.store.folder(version) / "model.safetensors"
        shard.write_bytes(bytes(shard.stat().st_size))
    (world.store.root / "boot").write_bytes(b"an earlier start of the machine")
    learner = world.learner()
    parents = world.control.parents()
    assert sorted(parents) == [0, 1, 3, 6]
    assert parents[6] == 4, "its weights are those of the checkpoint, published anew"
    assert learner.training.lineage.advanced().staleness(5) == 0
    assert world.store.versions() == [0, 1, 3, 6]
    world.store.hold(6, "r0")

"""Killed at any stage, torn on disk, cut off from Redis: every group is applied once in the surviving lineage."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from learner.intake import Held
from learner.loop import Learner
from learner.minibatches import split
from learner.model import PolicyModel
from learner.objectives import objectives_of
from learner.step import make_optimizer, take_step
from learner.training import Training
from shared.control import Latest
from shared.errors import StreamError
from shared.types import Group
from tests.conftest import RedisServer
from tests.learner.conftest import MakeWorld
from tests.learner.world import World, weights

pytestmark = pytest.mark.system

BATCHES = 6
STAGES = ("collect", "train", "publish", "record", "write_checkpoint", "delete_finished")
PATIENT = ("admission.max_staleness=100", f"learner.steps={BATCHES}")


def drawn(world: World) -> list[Group]:
    """Groups for the whole run, all drawn by version 0 and appended at once."""
    groups = [world.group(index, 0) for index in world.lease(4 * BATCHES)]
    for group in groups:
        world.put(group)
    return groups


def uninterrupted(world: World, groups: Sequence[Group]) -> torch.Tensor:
    """The weights after these groups, each applied once and in order, computed without a learner."""
    learner = world.config.learner
    policy = PolicyModel.load(world.config.model.path, "float32", torch.device("cpu"))
    optimizer = make_optimizer(policy, learner)
    for step in range(BATCHES):
        held = [Held("", group, b"") for group in groups[4 * step : 4 * step + 4]]
        for minibatch in split(held, learner, world.config.run.seed, step):
            take_step(policy, optimizer, minibatch.step_batch, objectives_of(learner), learner, step + 1)
    return torch.cat([p.detach().flatten() for p in policy.named_parameters().values()])


def go_until(learner: Learner, step: int, last_stage: str) -> None:
    """Works up to and including one stage of one step, as `iterate` does; then the process is as if killed."""
    training = learner.training
    while training.step < step:
        collect(training)
        if training.step == step - 1 and last_stage == "collect":
            return
        training.train(training.intake.take(training.lineage))
        due = {"publish": training.publish_due, "record": True, "write_checkpoint": training.checkpoint_due}
        for stage in STAGES[1:]:
            if stage == "publish" and due["publish"]:
                training.publish(learner.evaluations)
            elif stage == "record":
                training.record()
            elif stage == "write_checkpoint" and due["write_checkpoint"]:
                training.write_checkpoint()
            elif stage == "delete_finished" and due["write_checkpoint"]:
                training.delete_finished()
            if training.step == step and stage == last_stage:
                return


def collect(training: Training) -> None:
    """Reads until a batch is complete: pending entries of an earlier life may fill several reads."""
    for _ in range(20):
        if training.collect():
            return
    pytest.fail("no batch came together")


def finish_and_check(world: World, groups: Sequence[Group], expected: torch.Tensor) -> None:
    """Starts again, trains to the end, and compares with the run that nothing interrupted."""
    learner = world.learner()
    while learner.iterate():
        pass
    learner.finish()
    assert torch.equal(weights(learner.training), expected)
    rows = world.lines("history.jsonl")
    assert [row["step"] for row in rows] == list(range(1, BATCHES + 1))
    assert world.applied == dict.fromkeys((group.prompt_index for group in groups), 1)
    assert list(learner.training.ledger.finished.pairs()) == [(0, 4 * BATCHES - 1)]
    assert world.backlog.unapplied == 0
    assert world.drops == {}


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_after_any_stage_loses_no_group_and_applies_none_twice(
    make_world: MakeWorld, stage: str, step: int
) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    groups = drawn(world)
    expected = uninterrupted(world, groups)
    go_until(learner, step, stage)
    finish_and_check(world, groups, expected)


def test_kill_after_kill_after_kill(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    groups = drawn(world)
    expected = uninterrupted(world, groups)
    for step, stage in ((1, "record"), (2, "write_checkpoint"), (3, "publish"), (4, "train"), (5, "collect")):
        go_until(learner, step, stage)
        learner = world.learner()
    finish_and_check(world, groups, expected)
    assert world.latest > BATCHES
    assert len(world.lines("history.abandoned.jsonl")) >= 2


def test_restored_weights_are_published_at_once_above_every_known_version(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    drawn(world)
    go_until(learner, 5, "record")
    assert world.latest == 5
    restored = world.learner()
    latest = world.control.latest()
    assert latest is not None
    assert (latest.policy_version, latest.parent, latest.step) == (6, 4, 4)
    assert restored.training.step == 4
    assert world.store.manifest(6).parent == 4
    abandoned = world.lines("history.abandoned.jsonl")
    assert [row["step"] for row in abandoned] == [5]
    assert 6 in world.control.pending_evaluations()


def tear(path: Path) -> None:
    """Overwrites the end of a file."""
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_falling_back_from_a_torn_checkpoint_loses_nothing(make_world: MakeWorld, file: str) -> None:
    world = make_world(*PATIENT, "learner.checkpoint_every=1")
    learner = world.learner()
    groups = drawn(world)
    expected = uninterrupted(world, groups)
    go_until(learner, 4, "delete_finished")
    assert world.backlog.groups == 4 * BATCHES - 4 * 3, "the newest checkpoint's own groups are still there"
    world.abandon()
    newest = learner.training.parts.checkpoints.names()[-1]
    tear(learner.training.parts.checkpoints.root / newest / file)
    learner = world.learner()
    assert learner.training.step == 3
    assert (learner.training.parts.checkpoints.root / f"{newest}.torn").is_dir()
    assert [row["step"] for row in world.lines("history.abandoned.jsonl")] == [4]
    finish_and_check(world, groups, expected)


def test_a_synchronous_run_goes_on_after_a_kill_without_dropping_what_its_own_versions_drew(
    make_world: MakeWorld,
) -> None:
    world = make_world("admission.max_staleness=0", "learner.checkpoint_every=3")
    learner = world.learner()
    for _ in range(5):
        world.append(4)
        assert learner.iterate()
    world.append(2)
    learner = world.learner()
    assert learner.training.step == 3
    go_until(learner, 5, "delete_finished")
    world.append(2)
    go_until(learner, 6, "delete_finished")
    assert world.drops == {}
    assert world.applied == dict.fromkeys(range(24), 1)


def test_a_second_start_without_any_checkpoint_applies_everything_again(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT, "learner.checkpoint_every=6")
    learner = world.learner()
    groups = drawn(world)
    expected = uninterrupted(world, groups)
    go_until(learner, 3, "record")
    learner = world.learner()
    assert (learner.training.step, world.control.parents()[4]) == (0, 0)
    finish_and_check(world, groups, expected)


def test_an_outage_of_redis_loses_nothing_and_applies_nothing_twice(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(*PATIENT, url=own_redis.url)
    learner = world.learner()
    groups = drawn(world)
    expected = uninterrupted(world, groups)
    go_until(learner, 2, "train")
    own_redis.kill()
    back = threading.Timer(0.7, own_redis.start)
    back.start()
    learner.training.publish(learner.evaluations)
    back.join()
    assert learner.heartbeat.status["state"].startswith("waiting for Redis, to")
    learner.training.record()
    while learner.iterate():
        own_redis.kill()
        own_redis.start()
    learner.finish()
    assert torch.equal(weights(learner.training), expected)
    assert world.applied == dict.fromkeys(range(4 * BATCHES), 1)
    assert [row["step"] for row in world.control.history()] == list(range(1, BATCHES + 1))
    assert world.backlog.unapplied == 0


def test_an_announcement_whose_answer_was_lost_still_frees_the_credit(world: World) -> None:
    learner = world.learner()
    world.append(4)
    training = learner.training
    training.collect()
    training.train(training.intake.take(training.lineage))
    answers: list[str] = []
    publisher = training.parts.publisher
    announce = publisher.announce

    def announce_then_lose_the_answer(
        latest: Latest, oldest_kept: int, applied: Sequence[int], copy: bool = False
    ) -> None:
        announce(latest, oldest_kept, applied, copy)
        answers.append("lost")
        if len(answers) == 1:
            raise StreamError("Redis cannot be reached: the connection was reset")

    publisher.announce = announce_then_lose_the_answer  # type: ignore[method-assign]
    training.publish(learner.evaluations)
    assert len(answers) == 2
    assert world.latest == 1
    assert world.backlog.unapplied == 0


def test_a_redis_that_lost_its_last_second_hears_of_the_version_again(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    world.client.hset(world.keys.latest, mapping={"policy_version": 0, "parent": -1, "step": 0})
    learner.training.reopen()
    assert world.latest == 1


def test_settings_of_another_model_are_refused_by_name(make_world: MakeWorld) -> None:
    world = make_world("learner.checkpoint_every=1")
    learner = world.learner()
    world.append(4)
    learner.iterate()
    parts = learner.training.parts
    checkpoint = parts.checkpoints.newest()
    assert checkpoint is not None
    del checkpoint.tensors["model"]["model.norm.weight"]
    from learner.checkpoint import restore_tensors
    from shared.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"another model than model.path \(model.norm.weight\)"):
        restore_tensors(checkpoint.tensors, parts.policy, parts.optimizer)

"""Log ratios split into what the engine does and where the learner has gone since, on a real run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.batch import batch_rewards, build_step
from learner.split import sampled_groups, sampled_version, steps_between
from shared.heartbeat import Heartbeat
from shared.types import Trajectory
from tests import builders
from tests.learner.conftest import MakeWorld
from tests.learner.world import World, weights

pytestmark = pytest.mark.system

OFF = 0.03  # nats by which the engine of a test is off


def off(t: Trajectory) -> Trajectory:
    return replace(t, behavior_logprobs=t.behavior_logprobs - np.float32(OFF))


def world_of(make_world: MakeWorld) -> World:
    return make_world("learner.floor_every=1", "learner.floor_groups=2", "learner.groups_per_batch=2")


def test_what_the_engine_is_off_by_is_told_from_what_the_learner_has_moved(make_world: MakeWorld) -> None:
    world = world_of(make_world)
    learner = world.learner()
    for version in (0, 0, 0):
        for index in world.lease(2):
            drawn = world.group(index, version)
            world.put(replace(drawn, trajectories=tuple(map(off, drawn.trajectories))))
        learner.iterate()
    rows = world.lines("history.jsonl")
    assert [row["split_staleness"] for row in rows] == [0, 1, 2]
    assert [row["engine_nats"] for row in rows] == pytest.approx([OFF] * 3, abs=1e-5)
    drift = [row["drift_nats"] for row in rows]
    assert drift[0] < 1e-6
    assert min(drift[1:]) > 1e-3
    assert not list((world.config.run.folder / "policy" / "held").glob("learner*/v*")), "the copy is let go"


def test_the_older_copy_computes_in_the_precision_of_training(make_world: MakeWorld) -> None:
    world = make_world("learner.floor_every=1", "learner.groups_per_batch=2", "learner.matrix_dtype=bfloat16")
    learner = world.learner()
    world.append(2)
    learner.iterate()
    [row] = world.lines("history.jsonl")
    assert row["drift_nats"] < 1e-6


def test_parts_of_the_older_version_that_come_are_progress(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Heartbeat] = []

    def progress(heartbeat: Heartbeat) -> None:
        came.append(heartbeat)

    monkeypatch.setattr(Heartbeat, "progress", progress)
    world = make_world("learner.floor_every=1", "learner.groups_per_batch=2", "learner.publish_every=2")
    learner = world.learner()
    came.clear()
    world.append(2)
    learner.iterate()
    assert set(came) == {learner.heartbeat}


def test_a_split_leaves_training_as_it_is(make_world: MakeWorld) -> None:
    found, folder = [], make_world().config.run.folder
    for every in (1, 0):
        world = make_world(f"learner.floor_every={every}", "learner.groups_per_batch=2", f"run.id=split{every}",
                           f"run.folder={folder}{every}")  # fmt: skip
        learner = world.learner()
        for _ in range(2):
            world.append(2, version=0)
            learner.iterate()
        found.append(weights(learner.training))
        assert (world.lines("history.jsonl")[1]["engine_nats"] is None) == (every == 0)
    assert torch.equal(*found)


def test_a_version_that_is_gone_costs_the_sample_and_nothing_else(make_world: MakeWorld) -> None:
    world = world_of(make_world)
    learner = world.learner()
    folder = world.store.folder(0) / "model.safetensors"
    world.append(2)
    folder.write_bytes(b"torn")
    learner.iterate()
    [row] = world.lines("history.jsonl")
    assert (row["skipped"], row["engine_nats"], row["drift_nats"]) == ("", None, None)
    assert learner.metrics.registry.get_sample_value("trustbatch_split_failures_total") == 1


def test_the_sample_is_of_the_version_that_drew_most_and_is_there() -> None:
    groups = [builders.group(0, version=1), builders.group(1, version=2), builders.group(2, version=2)]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    assert sampled_version(batch, {1, 2}) == 2
    assert sampled_version(batch, {1, 7}) == 1
    assert sampled_version(batch, {7}) is None
    assert sampled_groups(batch, 2, 4) == [1, 2]
    assert sampled_groups(batch, 2, 1) == [1]


def test_it_is_off_for_large_models_and_stores_elsewhere_unless_asked_for(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learner import split

    world = make_world()
    policy = world.learner().training.parts.policy
    far = world.config.model_copy(update={"store": world.config.store.model_copy(update={"url": "s3://bucket/run"})})
    assert steps_between(world.config, policy) == 20
    assert steps_between(far, policy) == 0
    monkeypatch.setattr(split, "LARGEST", 1000)
    assert steps_between(world.config, policy) == 0
    asked = world.config.learner.model_copy(update={"floor_every": 3})
    assert steps_between(far.model_copy(update={"learner": asked}), policy) == 3

"""Policies at work in the learner: what it chooses from what waits, what it drops, what it lets servers ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import shared.stream
from learner.training import Training
from tests.learner.conftest import MakeWorld
from tests.learner.world import World

SMALL = ("learner.groups_per_batch=2", "learner.retain_versions=20", "learner.checkpoint_every=100")


def held(training: Training) -> list[int]:
    return [h.group.prompt_index for h in training.intake.held]


def trained(world: World) -> list[list[int]]:
    """The prompt indices of every step."""
    return [sorted(row["prompt_indices"]) for row in world.lines("history.jsonl")]


@pytest.mark.parametrize(("select", "most"), [("oldest", 2), ("newest", 6)])
def test_who_chooses_reads_what_is_there_up_to_its_window(make_world: MakeWorld, select: str, most: int) -> None:
    world = make_world(*SMALL, "admission.window=3", f"admission.select={select}")
    training = world.learner().training
    world.append(9)
    training.intake.read(training.rules)
    assert held(training) == list(range(most))


def test_nobody_waits_for_more_groups_while_there_is_a_batch(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(*SMALL, "admission.window=3", "admission.select=newest")
    training = world.learner().training
    monkeypatch.setattr(shared.stream, "BLOCK_S", 3600.0)  # whoever waits, waits until the connection times out
    world.append(5)
    assert training.intake.read(training.rules) == 5
    assert training.intake.read(training.rules) == 0


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("oldest", [[0, 1], [2, 3], [4, 5]]),
        ("newest", [[4, 5], [2, 3], [0, 1]]),
        ("{name: mixed, newest_share: 0.5}", [[0, 5], [1, 4], [2, 3]]),
    ],
)
def test_the_policy_selects_the_groups_of_every_step(
    make_world: MakeWorld, select: str, expected: list[list[int]]
) -> None:
    world = make_world(*SMALL, f"admission.select={select}")
    learner = world.learner()
    world.append(6)
    for _ in expected:
        learner.iterate()
    assert trained(world) == expected
    assert world.backlog.unapplied == 0
    assert world.drops == {}


def test_the_stalest_goes_first_though_it_came_last(make_world: MakeWorld) -> None:
    world = make_world(*SMALL, "admission.select=stalest")
    learner = world.learner()
    world.append(2)
    learner.iterate()
    fresh, late = world.append(2), world.append(2, version=0)
    learner.iterate()
    learner.iterate()
    assert trained(world)[1:] == [late, fresh]


def test_what_is_passed_over_until_it_is_too_stale_is_dropped_counted_and_gives_its_credit_back(
    make_world: MakeWorld,
) -> None:
    world = make_world(*SMALL, "admission.max_staleness=1", "admission.select=newest", "admission.window=4")
    learner = world.learner()
    world.append(7)
    for _ in range(3):
        learner.iterate()
    assert trained(world) == [[5, 6], [3, 4]]
    assert world.drops == dict.fromkeys([0, 1, 2], "too_stale")
    assert [(row["staleness"], row["lag"]) for row in world.lines("dropped.jsonl")] == [(2, 0)] * 3
    assert (world.backlog.unapplied, held(learner.training)) == (0, [])
    assert set(range(7)) == {i for i in range(9) if i in learner.training.ledger.finished}


def test_groups_that_were_not_selected_when_the_learner_died_are_neither_lost_nor_trained_on_twice(
    make_world: MakeWorld,
) -> None:
    world = make_world(*SMALL, "admission.select=newest")
    learner = world.learner()
    world.append(6)
    learner.iterate()
    assert len(held(learner.training)) == 4
    learner.training.write_checkpoint()
    again = world.learner()
    for _ in range(2):
        again.iterate()
    assert trained(world) == [[4, 5], [2, 3], [0, 1]]
    assert set(world.applied.values()) == {1}


def test_keep_trains_on_everything_however_stale(make_world: MakeWorld) -> None:
    world = make_world(*SMALL, "admission.max_staleness=1", "admission.evict=keep")
    learner = world.learner()
    world.append(8)
    for _ in range(4):
        learner.iterate()
    rows = world.lines("history.jsonl")
    assert [row["staleness_max"] for row in rows] == [0, 1, 2, 3]
    assert world.drops == {}


def test_ess_lowers_the_credit_of_the_servers_while_the_data_are_far_off(make_world: MakeWorld) -> None:
    admit = "admission.admit={name: ess, target: 0.99999, in_order: true}"
    world = make_world(*SMALL, admit, "admission.max_staleness=5")
    learner = world.learner()

    def announced(version: int) -> tuple[int, bool]:
        """Credit and order after a step on groups of that version."""
        world.append(2, version)
        learner.iterate()
        latest = world.control.latest()
        assert latest is not None
        assert latest.depth == latest.policy_version == learner.training.step
        return latest.credit, latest.in_order

    assert announced(0) == (6, True)
    assert announced(0) == (3, True)
    assert announced(0) == (1, True)
    assert announced(world.latest) == (2, True)
    assert announced(world.latest) == (3, True)


def test_every_step_since_the_version_before_counts_for_the_credit(make_world: MakeWorld) -> None:
    """The first batch is far off, and written down already when the version is announced; the second one is not."""
    admit = "admission.admit={name: ess, target: 0.99}"
    world = make_world(*SMALL, admit, "admission.max_staleness=5", "learner.publish_every=2", "learner.learning_rate=0")
    learner = world.learner()
    for _ in range(2):
        world.put_changed(lambda t: replace(t, behavior_logprobs=t.behavior_logprobs - np.float32(1)))
    learner.iterate()
    world.append(2)
    learner.iterate()
    assert [row["token_ess"] > 0.99 for row in world.lines("history.jsonl")] == [False, True]
    latest = world.control.latest()
    assert latest is not None
    assert (latest.policy_version, latest.credit) == (1, 3)


def test_a_skipped_step_is_no_reason_for_more_credit(make_world: MakeWorld) -> None:
    world = make_world(*SMALL, "admission.admit={name: ess, target: 0.5}", "admission.max_staleness=5")
    learner = world.learner()
    training = learner.training
    world.append(2)
    training.collect()
    training.train(training.intake.take(training.lineage))
    [good] = training.book.records
    for record in (replace(good, skipped="non-finite loss"), good):
        training.announcer.stepped(record)
    training.publish(learner.evaluations)
    latest = world.control.latest()
    assert latest is not None
    assert latest.credit == 3


def test_a_step_says_where_its_staleness_comes_from_and_how_each_arm_does(make_world: MakeWorld) -> None:
    world = make_world(*SMALL)
    learner = world.learner()
    world.append(2)
    learner.iterate()
    world.append(2)
    [late, lagging] = world.lease(2)
    world.put(world.group(late, 0, arm="control"))
    world.put(world.group(lagging, 0, lag=1))
    learner.iterate()
    learner.iterate()
    row = world.lines("history.jsonl")[2]
    assert (row["staleness_mean"], row["staleness_max"]) == (2.0, 2)
    assert [row[f"{part}_mean"] for part in ("lag", "flight", "queue")] == [0.5, 0.5, 1.0]
    assert [row[f"{part}_max"] for part in ("lag", "flight", "queue")] == [1, 1, 1]
    assert list(row["by_arm"]) == ["control", "lag 1"]
    for arm in row["by_arm"].values():
        assert (arm["groups"], arm["trajectories"], arm["tokens"]) == (1, 4, 18)
        assert (arm["reward_mean"], arm["length_mean"], arm["staleness_mean"]) == (0.5, 4.5, 2.0)
        assert 0 < arm["token_ess"] < 1

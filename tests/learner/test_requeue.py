"""Dead letters through a whole learner: they outlast its death, and get another chance when somebody asks for it."""

from __future__ import annotations

import pytest

from learner.loop import Learner
from learner.training import Training
from services.facts import read_facts
from services.history import read_history
from services.report import summarize
from shared.letters import letters, requeue, totals
from tests.learner.conftest import MakeWorld
from tests.learner.test_intake import read_all
from tests.learner.world import World, drawn_by

RUBBISH = b"\x93rubbish"


def bury(world: World, training: Training, payload: bytes = RUBBISH) -> int:
    [index] = world.lease(1)
    world.put_bytes(index, payload)
    read_all(training)
    return index


def train(learner: Learner, step: int) -> None:
    """Up to a step; a new learner reads what is pending first."""
    for _ in range(20):
        if learner.training.step == step:
            return
        learner.iterate()
    pytest.fail(f"step {learner.training.step} of {step}")


def only_letter(world: World) -> str:
    [kept] = letters(world.client, world.keys)
    return kept.id


def test_a_dead_letter_just_before_a_crash_is_not_drawn_again_and_counts_once(world: World) -> None:
    learner = world.learner()
    index = bury(world, learner.training)
    learner = world.learner()  # the first one died before any checkpoint
    assert learner.training.ledger.dropped == {"undecodable": 1}
    assert world.lease(1) == [1], "the prompt has ended"
    assert world.drops == {index: "undecodable"}, "the line survives, since what it says does"
    assert (world.backlog.appended, world.backlog.dead_letters, world.lines("lost.jsonl")) == (1, 1, [])
    world.put(world.group(1))
    world.append(3)
    learner.iterate()
    assert world.applied == dict.fromkeys(range(1, 5), 1)
    folder = world.config.run.folder
    found = summarize(world.config.run.id, read_history(folder), read_facts(world.client, world.keys))
    assert (found["groups_lost"], found["groups_unaccounted"], found["groups_dropped"]) == (0, 0, {"undecodable": 1})


def test_a_requeued_group_is_applied_once_the_learner_can_take_it(make_world: MakeWorld) -> None:
    """It came before its version: a server that was ahead of a learner which had fallen back."""
    world = make_world("learner.groups_per_batch=1", "learner.checkpoint_every=1", "learner.retain_versions=9")
    learner = world.learner()
    index = world.put_changed(drawn_by(1))
    learner.iterate()
    assert world.drops == {index: "newer_version"}
    world.append(1)
    learner.iterate()  # publishes version 1, and a checkpoint knows of the group's end
    learner = world.learner()
    assert list(learner.training.ledger.buried.pairs()) == [(index, index)]
    assert requeue(world.client, world.keys, only_letter(world)) == "requeued"
    train(learner, step=2)
    assert world.applied == {index: 1, index + 1: 1}
    assert list(learner.training.ledger.buried.pairs()) == []
    assert (world.backlog.dead_letters, world.backlog.unapplied) == (0, 0)


def test_what_is_still_bad_is_buried_again(world: World) -> None:
    learner = world.learner()
    index = bury(world, learner.training)
    assert requeue(world.client, world.keys, only_letter(world)) == "requeued"
    assert world.backlog.unapplied == 1
    read_all(learner.training)
    assert world.backlog.unapplied == 0
    found = totals(world.client, world.keys)["undecodable"]
    assert (found.count, found.requeued) == (2, 1)
    assert list(learner.training.ledger.buried.pairs()) == [(index, index)]


def test_a_requeued_group_survives_the_learner_that_has_not_applied_it(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=2", "learner.checkpoint_every=2", "learner.retain_versions=9")
    learner = world.learner()
    index = world.put_changed(drawn_by(1))
    read_all(learner.training)
    world.append(2)
    learner.iterate()
    learner.training.write_checkpoint()
    assert requeue(world.client, world.keys, only_letter(world)) == "requeued"
    read_all(learner.training)
    assert [held.group.prompt_index for held in learner.training.intake.held] == [index]
    learner = world.learner()
    world.append(1)
    train(learner, step=2)
    assert world.applied == dict.fromkeys(range(4), 1)


def test_an_entry_of_a_group_that_was_applied_gets_no_second_chance(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    fields = dict(world.client.xrange(world.keys.groups)[0][1])
    world.client.xadd(world.keys.groups, fields)
    read_all(learner.training)
    assert learner.training.ledger.duplicates == 1
    assert world.applied == dict.fromkeys(range(4), 1)

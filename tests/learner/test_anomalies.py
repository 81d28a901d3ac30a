"""What somebody else does to the run's Redis: a real learner detects it, counts it exactly, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from learner.loop import Learner
from services.facts import read_facts
from services.history import read_history
from services.report import summarize
from shared.errors import FencedError, OutOfMemoryError
from shared.stream import CONSUMER_GROUP, FORGOTTEN, TAKEN_OUT
from tests.conftest import RedisServer, append_only_file, cut_to
from tests.learner.conftest import MakeWorld
from tests.learner.test_fencing import stopped_before
from tests.learner.world import World

pytestmark = pytest.mark.system

PATIENT = ("admission.max_staleness=100", "learner.steps=100", "learner.idle_deadline_s=20")


@pytest.fixture
def forgetful_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis without persistence: it comes back empty."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


def lost(world: World) -> list[tuple[int, str]]:
    return [(row["prompt_index"], row["cause"]) for row in world.lines("lost.jsonl")]


def summary(world: World) -> dict[str, Any]:
    folder = world.config.run.folder
    return summarize(world.config.run.id, read_history(folder), read_facts(world.client, world.keys))


def balanced(world: World, groups_lost: int) -> None:
    """The report finds the same number of lost groups, and nothing that it cannot explain."""
    found = summary(world)
    told = (found["groups_lost"], found["groups_unaccounted"], found["groups_applied_twice"])
    assert told == (groups_lost, 0, 0), found


def train_on(world: World, learner: Learner, batches: int) -> None:
    """New groups, until so many more batches were trained on."""
    end = learner.training.step + batches
    for _ in range(30 * batches):
        if learner.training.step == end:
            return
        if world.backlog.unapplied < 4:
            world.append(4)
        learner.iterate()
    pytest.fail(f"step {learner.training.step} of {end}: {world.backlog}")


def wait_until_nothing_is_missing(learner: Learner) -> None:
    for _ in range(4):
        learner.iterate()


def test_entries_trimmed_before_they_were_read_are_named_and_drawn_again(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    train_on(world, learner, 3)
    indices = world.append(3)
    world.client.xtrim(world.keys.groups, maxlen=0, approximate=False)
    wait_until_nothing_is_missing(learner)
    assert lost(world) == [(index, TAKEN_OUT) for index in indices]
    [event] = world.control.events(1)
    assert event["text"].startswith(
        "3 acknowledged groups are lost, somebody took their entries out of the stream: prompts 12"
    )
    assert world.append(3) == indices, "drawn again"
    train_on(world, learner, 2)
    assert world.applied == dict.fromkeys(range(20), 1)
    balanced(world, groups_lost=3)


def test_one_deleted_entry_among_many_is_named(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    world.append(3)
    entries = world.client.xrange(world.keys.groups)
    world.client.xdel(world.keys.groups, entries[1][0])
    wait_until_nothing_is_missing(learner)
    assert [index for index, _ in lost(world)] == [1]
    train_on(world, learner, 2)
    assert world.applied == dict.fromkeys(range(8), 1)
    balanced(world, groups_lost=1)


def test_groups_that_the_learner_holds_are_not_lost_with_their_entries(make_world: MakeWorld) -> None:
    """Held in memory, or applied: deleting their pending entries loses nothing while the learner lives."""
    world = make_world(*PATIENT)
    learner = world.learner()
    train_on(world, learner, 1)
    world.append(3)
    learner.iterate()
    assert len(learner.training.intake.held) == 3
    world.client.delete(world.keys.groups)
    world.append(1)
    wait_until_nothing_is_missing(learner)
    train_on(world, learner, 3)
    assert lost(world) == []
    assert world.applied == dict.fromkeys(range(20), 1)
    balanced(world, groups_lost=0)


def test_what_was_held_and_deleted_is_named_by_the_next_learner_if_this_one_dies(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    train_on(world, learner, 2)
    world.append(3)
    learner.iterate()
    world.client.xtrim(world.keys.groups, maxlen=0, approximate=False)
    learner = world.learner()
    learner.iterate()
    assert [index for index, _ in lost(world)] == [8, 9, 10]
    train_on(world, learner, 2)
    assert world.applied == dict.fromkeys(range(16), 1)
    balanced(world, groups_lost=3)


def test_finished_entries_that_somebody_took_out_are_noticed_at_the_next_deletion(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT, "learner.checkpoint_every=1")
    learner = world.learner()
    train_on(world, learner, 1)
    waiting = world.append(2)
    world.client.xtrim(world.keys.groups, maxlen=0, approximate=False)
    world.append(4)
    assert lost(world) == []
    learner.iterate()
    learner.iterate()
    assert [index for index, _ in lost(world)] == waiting
    balanced(world, groups_lost=2)


def test_a_flushed_redis_is_filled_again_and_what_it_forgot_is_named(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(*PATIENT, url=own_redis.url)
    learner = world.learner()
    train_on(world, learner, 3)
    world.append(3)
    learner.iterate()
    assert [held.group.prompt_index for held in learner.training.intake.held] == [12, 13, 14]
    unread = world.append(5)
    world.client.flushall()
    learner.iterate()
    assert world.writer.confirm() == 17, "the learner has twelve of them in its ledger, and three in hand besides"
    train_on(world, learner, 3)
    assert [index for index, _ in lost(world)] == unread
    assert {cause for _, cause in lost(world)} == {FORGOTTEN}
    assert world.applied == dict.fromkeys(range(24), 1)
    assert world.control.phase() == ("running", "")
    assert world.latest == 6
    assert learner.training.parts.epoch == 1, "no other learner had taken the run"
    balanced(world, groups_lost=5)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("provision", "begin_batch"),
        ("publisher", "write"),
        ("publisher", "announce"),
        ("history", "add"),
        ("checkpoints", "write"),
        ("reader", "delete"),
    ],
)
def test_a_flush_in_the_middle_of_an_iteration_loses_nothing_of_the_batch(
    make_world: MakeWorld, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, owner: str, name: str
) -> None:
    world = make_world(*PATIENT, "learner.checkpoint_every=1", url=own_redis.url)
    learner = world.learner()
    train_on(world, learner, 2)
    world.append(4)
    stopped_before(getattr(learner.training.parts, owner), name, world.client.flushall, monkeypatch)
    learner.iterate()
    learner.iterate()
    assert learner.training.step == 3
    assert world.latest == 3
    assert world.writer.confirm() == 12
    train_on(world, learner, 2)
    assert lost(world) == []
    assert world.applied == dict.fromkeys(range(20), 1)
    assert (world.backlog.unapplied, world.control.phase()) == (0, ("running", ""))
    balanced(world, groups_lost=0)


def test_a_redis_without_persistence_that_comes_back_empty_is_survived(
    make_world: MakeWorld, forgetful_redis: RedisServer
) -> None:
    world = make_world(*PATIENT, url=forgetful_redis.url)
    learner = world.learner()
    train_on(world, learner, 3)
    unread = world.append(2)
    forgetful_redis.kill()
    forgetful_redis.start()
    learner.iterate()  # it hears of the restart by what Redis does not know any more
    assert world.latest == 3
    assert world.writer.confirm() == 14, "the server claims all that it knows of; the learner has twelve of them"
    train_on(world, learner, 2)
    assert [index for index, _ in lost(world)] == unread
    assert world.applied == dict.fromkeys(range(20), 1)
    balanced(world, groups_lost=2)


def test_a_power_loss_that_takes_the_last_second_is_named_group_by_group(
    make_world: MakeWorld, own_redis: RedisServer, tmp_path: Path
) -> None:
    """What is cut: a batch that was appended, applied and announced; three groups that nobody has read."""
    world = make_world(*PATIENT, url=own_redis.url)
    learner = world.learner()
    train_on(world, learner, 2)
    size = append_only_file(tmp_path).stat().st_size
    train_on(world, learner, 1)
    unread = world.append(3)
    own_redis.kill()
    cut_to(tmp_path, size)
    own_redis.start()
    assert world.latest == 2, "Redis is back in the past"
    assert world.writer.confirm() == 7
    train_on(world, learner, 3)
    assert lost(world) == [(index, FORGOTTEN) for index in unread]
    assert world.applied == dict.fromkeys(range(24), 1)
    assert world.latest == 6
    balanced(world, groups_lost=3)


def test_a_power_loss_that_takes_the_learner_s_epoch_does_not_end_it(
    make_world: MakeWorld, own_redis: RedisServer, tmp_path: Path
) -> None:
    world = make_world(*PATIENT, url=own_redis.url)
    train_on(world, world.learner(), 1)
    size = append_only_file(tmp_path).stat().st_size
    learner = world.learner()
    assert learner.training.parts.epoch == 2
    own_redis.kill()
    cut_to(tmp_path, size)
    own_redis.start()
    learner.iterate()
    assert int(world.client.get(world.keys.epoch)) == 2
    train_on(world, learner, 2)
    assert world.applied == dict.fromkeys(range(12), 1)
    balanced(world, groups_lost=0)


def test_after_a_flush_the_older_of_two_learners_cannot_come_back(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(*PATIENT, url=own_redis.url)
    old = world.learner()
    train_on(world, old, 1)
    new = world.learner()
    world.client.flushall()
    with pytest.raises(FencedError):
        old.iterate()
    new.iterate()
    train_on(world, new, 1)
    assert int(world.client.get(world.keys.epoch)) == 2
    assert world.applied == dict.fromkeys(range(4), 1)
    assert [index for index, _ in lost(world)] == list(range(4)), (
        "what the old one had applied, and no checkpoint holds"
    )
    balanced(world, groups_lost=4)


def test_a_loss_is_named_once_though_the_learner_dies_while_it_writes_it_down(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    world.append(3)
    world.client.delete(world.keys.groups)
    learner.training.reopen()
    learner.training.losses.name(learner.training.parts.reader.claims())
    learner = world.learner()
    train_on(world, learner, 1)
    assert [index for index, _ in lost(world)] == [0, 1, 2]
    balanced(world, groups_lost=3)


def test_a_destroyed_consumer_group_costs_nothing(make_world: MakeWorld) -> None:
    world = make_world(*PATIENT)
    learner = world.learner()
    train_on(world, learner, 1)
    world.append(6)
    learner.training.collect()
    world.client.xgroup_destroy(world.keys.groups, CONSUMER_GROUP)
    train_on(world, learner, 3)
    assert lost(world) == []
    assert world.applied == dict.fromkeys(range(16), 1)
    assert learner.training.ledger.duplicates == 0, "what it had in hand already is not another delivery"
    balanced(world, groups_lost=0)


def test_foreign_keys_at_maxmemory_stop_the_servers_and_not_the_learner(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(*PATIENT, "learner.checkpoint_every=1", url=own_redis.url)
    learner = world.learner()
    indices = world.append(12)
    [leased] = world.lease(1)
    group = world.group(leased)
    world.client.set("somebody else's", b"x" * 2**20)
    world.client.config_set("maxmemory", world.client.info("memory")["used_memory"] - 2**19)
    with pytest.raises(OutOfMemoryError):
        world.put(group)
    for _ in range(3):
        assert learner.iterate()
    learner.training.write_checkpoint()
    learner.training.delete_finished()
    assert world.applied == dict.fromkeys(indices, 1)
    assert (world.latest, world.backlog.unapplied, world.backlog.groups) == (3, 0, 0), "credit and memory are freed"
    assert world.admission.renew() == 1, "the lease of the group that waits is kept"
    world.client.delete("somebody else's")
    world.put(group)
    train_on(world, learner, 1)
    assert lost(world) == []
    balanced(world, groups_lost=0)

"""What operators want of a learner that runs: taken before the next batch, within bounds, and said."""

from __future__ import annotations

from typing import Any

import pytest

from learner import adjust
from learner.loop import Learner
from learner.recording import FOLDER, decode, recorded_files
from shared import letters as dead_letters
from shared.budgets import Budgets
from shared.errors import StreamError
from shared.letters import letters
from shared.series import TIERS, Series
from shared.wishes import OBJECTIVE, Wishes
from tests.conftest import RedisServer
from tests.learner.conftest import MakeWorld
from tests.learner.test_requeue import bury
from tests.learner.world import World, weights

pytestmark = pytest.mark.system


def said(world: World) -> list[str]:
    return [event["text"] for event in world.control.events() if event["by"] == "learner"]


def train(world: World, learner: Learner, groups: int = 4) -> None:
    step = learner.training.step
    world.append(groups)
    for _ in range(20):
        if learner.training.step > step:
            return
        learner.iterate()
    pytest.fail("no step")


def test_a_factor_of_the_learning_rate_counts_from_the_next_step_and_is_in_its_record(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4", "learner.learning_rate=0.5")
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    train(world, learner)
    wishes.make(OBJECTIVE, b'{"learning_rate_factor": 0.25}', "ann")
    train(world, learner)
    rows = world.control.history()
    assert [row["learning_rate"] for row in rows] == [0.5, 0.125]
    assert [row["settings"]["learning_rate_factor"] for row in rows] == [1.0, 0.25]
    assert learner.heartbeat.status["objective"]["learning_rate_factor"] == 0.25
    assert said(world) == ["from step 2: learning rate x 0.25"]
    learner = world.learner()
    assert learner.training.parts.adjusted.learner.learning_rate == 0.5
    learner.iterate()
    assert learner.training.parts.adjusted.learner.learning_rate == 0.125, "a wish outlives restarts"


def test_a_live_knob_is_what_the_objective_then_has(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4", "learner.objective={name: grpo, entropy_weight: 0.01}")
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    told = {knob["name"]: knob["value"] for knob in learner.heartbeat.status["objective"]["knobs"]}
    assert told == {"eps_low": 0.2, "eps_high": 0.2, "entropy_weight": 0.01, "ref_kl_weight": 0.0}
    wishes.make(OBJECTIVE, b'{"knobs": {"eps_high": 0.1, "entropy_weight": 0.0}}', "ann")
    train(world, learner)
    trained = learner.training.parts.adjusted.objectives.trained
    assert (dict(trained.knobs), trained.needs) == ({"entropy_weight": 0.0, "eps_high": 0.1}, frozenset())
    assert world.control.history()[-1]["settings"]["eps_high"] == 0.1
    [recorded] = recorded_files(world.config.run.folder / FOLDER)
    kept = decode((world.config.run.folder / FOLDER / recorded.name).read_bytes())
    assert kept.knobs == {"entropy_weight": 0.0, "eps_high": 0.1}, "what is replayed is what was done"
    wishes.make(OBJECTIVE, b"", "ann")
    learner.iterate()
    assert dict(learner.training.parts.adjusted.objectives.trained.knobs) == {"entropy_weight": 0.01}


NOT_TAKEN = [
    (b'{"learning_rate_factor": 2}', "learning_rate_factor must be above 0 and at most 1, not 2"),
    (b'{"learning_rate_factor": 0}', "learning_rate_factor must be above 0"),
    (b'{"learning_rate_factor": true}', "learning_rate_factor must be above 0"),
    (b'{"knobs": {"kl_estimator": 1}}', "kl_estimator of p3o may not change while the run goes on"),
    (b'{"knobs": {"entropy_weight": 99}}', "entropy_weight must be a number from 0 to 10"),
    (b'{"knobs": {"entropy_weight": 0.1}}', "that needs entropy, which the run was not started with"),
    (b'{"knobs": {"entropy_weight": "much"}}', "knobs must be numbers by name"),
    (b"\xff", "it cannot be read"),
]


def test_what_cannot_be_taken_is_said_and_changes_nothing(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4")
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    for text, why in NOT_TAKEN:
        wishes.make(OBJECTIVE, text, "ann")
        learner.training.parts.adjusted.hear(0)
        assert why in said(world)[0]
        assert why in learner.heartbeat.status["objective"]["refused"]
    before = weights(learner.training)
    train(world, learner)
    assert not before.equal(weights(learner.training))
    assert world.control.history()[-1]["settings"]["learning_rate_factor"] == 1.0


def test_narrower_credit_is_announced_and_nothing_that_was_drawn_is_dropped(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4", "admission.max_staleness=3", "admission.admit=in_order")
    learner = world.learner()
    waiting = world.append(12)
    narrow = Budgets(0, int(world.config.admission.max_bytes))
    world.control.wish_admission(narrow.wish(world.config), "ann")
    while learner.training.step < 3:
        learner.iterate()
    latest = world.control.latest()
    assert latest is not None
    assert (latest.credit, world.drops) == (1, {})
    assert world.applied == dict.fromkeys(waiting, 1)
    assert [row["settings"]["max_staleness"] for row in world.control.history()] == [0, 0, 0]


def test_a_letter_that_somebody_wants_back_goes_back_once(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4")
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    bury(world, learner.training)
    [letter] = letters(world.client, world.keys)
    assert wishes.requeue(letter.id, "ann")
    assert not wishes.requeue(letter.id, "bob"), "it is asked for already"
    assert wishes.requeue("1-1", "ann")
    learner.iterate()
    assert wishes.requeues() == {}
    assert set(said(world)) == {f"dead letter {letter.id}: requeued", "dead letter 1-1: there is no such dead letter"}
    asked = [event["by"] for event in world.control.events() if event["text"].endswith("back into the stream")]
    assert asked == ["ann", "ann"]


def test_a_letter_waits_where_redis_is_at_maxmemory_and_the_run_goes_on(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(url=own_redis.url)
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    bury(world, learner.training)
    [letter] = letters(world.client, world.keys)
    wishes.requeue(letter.id, "ann")
    world.client.config_set("maxmemory", 1)
    for _ in range(2):
        assert learner.iterate()
    assert (list(wishes.requeues()), said(world)) == ([letter.id], [])
    world.client.config_set("maxmemory", 0)
    learner.iterate()
    assert (wishes.requeues(), said(world)) == ({}, [f"dead letter {letter.id}: requeued"])


def test_a_letter_that_went_back_unheard_is_told_as_requeued(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("learner.groups_per_batch=4")
    learner, wishes = world.learner(), Wishes(world.client, world.keys)
    bury(world, learner.training)
    [letter] = letters(world.client, world.keys)
    wishes.requeue(letter.id, "ann")

    def without_answer(*arguments: Any) -> str:
        monkeypatch.setattr(adjust, "requeue", dead_letters.requeue)
        dead_letters.requeue(*arguments)
        raise StreamError("Redis cannot be reached: connection reset")

    monkeypatch.setattr(adjust, "requeue", without_answer)
    learner.iterate()
    assert said(world) == [f"dead letter {letter.id}: requeued"]


def test_steps_that_a_restore_does_again_are_in_redis_once(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=4", "learner.checkpoint_every=2")
    learner = world.learner()
    for _ in range(5):
        train(world, learner)
    learner = world.learner()  # of the checkpoint of step 4
    assert [row["step"] for row in world.control.history()] == [1, 2, 3, 4]
    for _ in range(2):
        train(world, learner)
    assert [row["step"] for row in world.control.history()] == [1, 2, 3, 4, 5, 6]
    series = Series(world.client, world.keys.series)
    assert series.read("steps", ["step"], [])["step"].mean.tolist() == [1, 2, 3, 4, 5, 6]
    for tier in TIERS:
        assert sum(series.read(tier, ["step"], series.blocks(tier))["step"].count) == 6

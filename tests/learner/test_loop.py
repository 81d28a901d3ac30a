"""The learner on a real Redis: what one iteration does, how a run ends, what stops it."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from learner.loop import Learner
from shared import scripts
from shared.errors import DeadlineError, FencedError
from shared.keys import RUNS
from shared.log import configure
from shared.store import PolicyStore
from tests.conftest import RedisServer
from tests.learner.conftest import MakeWorld
from tests.learner.world import World, weights

pytestmark = pytest.mark.system


def test_a_new_run_publishes_its_model_as_version_0_and_asks_for_its_evaluation(world: World) -> None:
    learner = world.learner()
    assert world.latest == 0
    manifest = world.store.manifest(0)
    assert manifest.parent == -1
    assert world.store.hold(0, "r0")[0] == manifest
    assert world.control.pending_evaluations() == [0]
    assert world.control.phase() == ("running", "")
    assert learner.heartbeat.status["epoch"] == 1


def test_a_learner_brings_the_scripts_of_its_release_to_a_redis_that_ran_on(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    """Those of the release before are there: nothing that the learner itself runs is missed."""
    world = make_world(url=own_redis.url)
    digests = {source: hashlib.sha1(source.encode()).hexdigest() for source in scripts.ALL}
    new = (scripts.LEASE, scripts.WANT_FILES, scripts.CLAIM_LOST)
    world.client.script_flush()
    for source in digests.keys() - set(new):
        world.client.script_load(source)
    assert not any(world.client.script_exists(*(digests[source] for source in new)))
    world.learner()
    assert all(world.client.script_exists(*digests.values()))


def test_a_user_that_may_not_put_the_run_on_the_list_trains_all_the_same(
    make_world: MakeWorld, own_redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(url=own_redis.url)
    world.client.execute_command("ACL", "SETUSER", "default", "resetkeys", f"~trustbatch:{{{world.config.run.id}}}:*")
    learner = world.unstarted()
    learner.log = configure(world.config.run.id, "learner", "warning")
    learner.start()
    assert world.control.phase() == ("running", "")
    assert f'"key": "{RUNS}"' in capsys.readouterr().err


def test_one_iteration_trains_publishes_and_frees_the_credit(world: World) -> None:
    learner = world.learner()
    before = weights(learner.training)
    indices = world.append(4)
    assert world.backlog.unapplied == 4
    assert learner.iterate()
    assert not torch.equal(before, weights(learner.training))
    assert world.latest == 1
    assert world.backlog.unapplied == 0
    assert world.backlog.groups == 4, "applied groups stay until two checkpoints hold them"
    [row] = world.lines("history.jsonl")
    assert sorted(row["prompt_indices"]) == indices
    assert row["step"] == 1
    assert row["policy_version"] == 0
    assert row["tokens"] == 4 * (3 + 4 + 5 + 6)
    assert row["skipped"] == ""
    assert row["publish_s"] > 0
    assert world.control.history() == [row]


def test_every_step_says_what_waits_though_a_checkpoint_is_always_due(make_world: MakeWorld) -> None:
    world = make_world("learner.checkpoint_every=1")
    learner = world.learner()
    world.append(12)
    for _ in range(3):
        learner.iterate()
    rows = world.lines("history.jsonl")
    assert [row["backlog_groups"] for row in rows] == [12, 8, 4]
    assert [row["backlog_bytes"] > 0 for row in rows] == [True] * 3


def test_groups_of_the_same_weights_show_the_numerics_floor_and_full_trust(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    world.append(4, version=0)
    learner.iterate()
    fresh, stale = world.lines("history.jsonl")
    assert fresh["floor_max_nats"] < 1e-5
    assert fresh["token_ess"] > 0.999999
    assert fresh["staleness_max"] == 0
    assert stale["floor_max_nats"] is None
    assert stale["staleness_mean"] == 1.0
    assert stale["token_ess"] < 0.9999


def test_entries_are_deleted_when_the_second_checkpoint_is_durable(make_world: MakeWorld) -> None:
    world = make_world("learner.checkpoint_every=1")
    learner = world.learner()
    held = []
    for _ in range(3):
        world.append(4)
        learner.iterate()
        held.append(world.backlog.groups)
    assert held == [4, 4, 4], "each checkpoint deletes what the one before it had finished"
    assert world.backlog.bytes > 0
    learner.training.write_checkpoint()
    learner.training.delete_finished()
    assert world.backlog.groups == 0
    assert world.backlog.bytes == 0


def test_minibatches_and_passes_make_that_many_steps_and_apply_each_group_once(make_world: MakeWorld) -> None:
    world = make_world(
        "learner.minibatches=2", "learner.passes=3", "learner.publish_every=6", "learner.checkpoint_every=6",
        "learner.steps=12",
    )  # fmt: skip
    learner = world.learner()
    indices = world.append(4)
    learner.iterate()
    rows = world.lines("history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [len(row["prompt_indices"]) for row in rows] == [0, 0, 0, 0, 2, 2]
    assert sorted(world.applied.elements()) == indices
    assert world.latest == 1
    first, second, again, *_ = rows
    assert first["token_ess"] > 0.999999
    assert second["token_ess"] < first["token_ess"], "the second minibatch is drawn before the first one's step"
    assert again["token_ess"] < first["token_ess"], "ratios are computed anew in each pass"
    assert [row["floor_max_nats"] is None for row in rows] == [False, True, True, True, True, True]


def test_a_run_ends_after_its_steps_with_a_model_that_transformers_can_load(make_world: MakeWorld) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = make_world("learner.steps=2", "evaluation.deadline_s=10")
    learner = world.learner()
    for _ in range(2):
        world.append(4)
        assert learner.iterate()
    assert not learner.iterate()
    answering = threading.Timer(0.3, world.answer_evaluations, [0.5])
    answering.start()
    learner.finish()
    answering.join()
    assert world.control.phase() == ("finished", "all 2 steps are done")
    assert [row["policy_version"] for row in world.lines("evaluations.jsonl")] == [0, 2]
    trained = AutoModelForCausalLM.from_pretrained(world.config.run.folder / "model", dtype=torch.float32)
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, learner.training.parts.policy.named_parameters()[name]), name
    assert AutoTokenizer.from_pretrained(world.config.run.folder / "model").chat_template
    assert learner.training.parts.checkpoints.names(), "the end is a checkpoint too"


def test_a_last_evaluation_that_never_comes_ends_the_run_and_is_said(make_world: MakeWorld) -> None:
    world = make_world("learner.steps=1")
    learner = world.learner()
    world.append(4)
    learner.iterate()
    learner.finish()
    phase, reason = world.control.phase()
    assert phase == "finished"
    assert "evaluation of version 1 did not come within 0.2 s" in reason


def test_the_target_accuracy_ends_the_run(make_world: MakeWorld) -> None:
    world = make_world("learner.target_heldout_accuracy=0.6", "evaluation.every=1")
    learner = world.learner()
    world.answer_evaluations(0.2)
    world.append(4)
    assert learner.iterate()
    world.answer_evaluations(0.7)
    learner.iterate()
    assert not learner.iterate()
    learner.finish()
    phase, reason = world.control.phase()
    assert phase == "finished"
    assert "0.700 of version 1 reached the target 0.6" in reason


def test_waiting_in_vain_ends_the_run_and_names_what_was_missing(make_world: MakeWorld) -> None:
    world = make_world("learner.idle_deadline_s=0.1")
    learner = world.unstarted()
    with pytest.raises(DeadlineError, match=r"for groups \(0 of 4 are here, 0 are asked for\).*none, start one"):
        learner.run()
    phase, reason = world.control.phase()
    assert phase == "failed"
    assert "for groups" in reason
    assert "learner" not in world.control.members()


def test_a_version_that_nobody_can_prove_ends_the_synchronous_run_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world("learner.idle_deadline_s=0.3", "admission.max_staleness=0")
    world.control.beat("rollout:r0", {"kind": "rollout", "refused_version": 0, "refused_nats": 0.25}, 30)
    learner = world.unstarted()
    with pytest.raises(DeadlineError, match=r"rollout:r0 refuses version 0: its probe is off by 0\.25 nats"):
        learner.run()
    phase, reason = world.control.phase()
    assert phase == "failed"
    assert "refuses version 0" in reason


def iterate_for(learner: Learner, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        learner.iterate()


def test_unusable_groups_do_not_put_off_the_idle_deadline(make_world: MakeWorld) -> None:
    world = make_world("learner.idle_deadline_s=0.5")
    learner = world.learner()

    def feed() -> None:
        for index in world.lease(15):
            world.put_bytes(index, b"rubbish")
            time.sleep(0.1)

    feeding = threading.Thread(target=feed)
    feeding.start()
    with pytest.raises(DeadlineError, match="undecodable"):
        iterate_for(learner, seconds=1.2)
    feeding.join()


def test_a_pause_stops_training_until_it_is_taken_back(world: World) -> None:
    learner = world.learner()
    world.append(4)
    world.control.set_paused(True)
    assert learner.iterate()
    assert learner.training.step == 0
    assert world.control.phase() == ("paused", "by the operator")
    assert learner.heartbeat.status["state"] == "paused by the operator"
    world.control.set_paused(True, by="controller")
    assert learner.iterate()
    assert learner.heartbeat.status["state"] == "paused by the controller"
    world.control.set_paused(False)
    learner.iterate()
    assert learner.training.step == 1
    assert world.control.phase()[0] == "running"


def test_a_wished_version_is_published_before_its_interval_is_over_and_once(make_world: MakeWorld) -> None:
    world = make_world("learner.publish_every=4", "learner.checkpoint_every=100")
    learner, latest = world.learner(), []
    for step in range(3):
        if step == 1:
            world.client.hset(world.keys.desired, "publish_above", 0)
        world.append(4, version=0)
        learner.iterate()
        latest.append(world.latest)
    assert latest == [0, 1, 1]


def test_an_orderly_stop_publishes_and_saves_what_was_trained(make_world: MakeWorld) -> None:
    world = make_world("learner.publish_every=4", "learner.checkpoint_every=100")
    learner = world.unstarted()
    thread = threading.Thread(target=learner.run)
    thread.start()
    deadline = time.monotonic() + 60
    while world.control.phase()[0] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    world.append(8)
    while len(world.lines("history.jsonl")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    world.stop.reason = "SIGTERM"
    thread.join(60)
    assert not thread.is_alive()
    assert world.control.phase() == ("stopped", "SIGTERM")
    assert world.latest == 1
    assert world.backlog.unapplied == 0
    assert world.learner().training.step == 2


def test_a_stop_during_an_outage_is_not_a_failure(make_world: MakeWorld, own_redis: RedisServer) -> None:
    world = make_world(url=own_redis.url)
    learner = world.unstarted()
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(1) as pool:
        life = pool.submit(learner.run)
        while world.control.phase()[0] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        own_redis.kill()
        while not learner.heartbeat.status["state"].startswith("waiting for Redis"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        world.stop.reason = "SIGTERM"
        life.result(timeout=60)


def test_a_fenced_learner_can_neither_publish_nor_record_nor_checkpoint_nor_delete(world: World) -> None:
    old = world.learner()
    world.append(4)
    assert old.training.collect()
    old.training.train(old.training.intake.take(old.training.lineage))
    old.training.ledger.deletable = [entry_id.decode() for entry_id, _ in world.client.xrange(world.keys.groups)]
    new = world.learner()
    stages = (old.training.collect, old.training.record, old.training.write_checkpoint, old.training.delete_finished)
    for stage in stages:
        with pytest.raises(FencedError):
            stage()
    with pytest.raises(FencedError):
        old.training.publish(old.evaluations)
    assert world.lines("history.jsonl") == []
    assert new.training.parts.checkpoints.names() == []
    assert world.latest == 1
    assert PolicyStore(world.config.run.folder / "policy").versions() == [0, 1]
    assert world.backlog.groups == 4
    assert new.iterate()
    assert world.latest == 2
    assert len(world.applied) == 4


@pytest.mark.parametrize("checkpoint_every", [1, 3, 7])
def test_the_synchronous_run_does_not_deadlock(make_world: MakeWorld, checkpoint_every: int) -> None:
    world = make_world("admission.max_staleness=0", f"learner.checkpoint_every={checkpoint_every}")
    learner = world.learner()
    world.admission._credit = replace(
        world.admission._credit, versions=1, groups_per_version=world.config.learner.groups_per_publish
    )
    for step in range(1, 9):
        indices = world.append(100)
        assert len(indices) == 4, "exactly one batch may be asked for"
        assert world.lease(1) == []
        learner.iterate()
        assert world.latest == step
    rows = world.lines("history.jsonl")
    assert {row["staleness_max"] for row in rows} == {0}
    assert min(row["token_ess"] for row in rows) > 0.9999


def test_shuffled_rewards_are_the_same_after_a_restart(make_world: MakeWorld) -> None:
    world = make_world("learner.shuffle_rewards=true")
    after: list[torch.Tensor] = []
    indices = None
    for _ in range(2):
        learner = world.learner()
        indices = indices or world.append(4, version=0)
        learner.iterate()
        after.append(weights(learner.training))
    assert torch.equal(*after)


def test_bytes_force_a_checkpoint_so_that_waiting_servers_get_room(make_world: MakeWorld) -> None:
    world = make_world("admission.max_bytes=1048576", "learner.checkpoint_every=1000")
    learner = world.learner()
    for _ in range(2):
        world.append(4)
        learner.iterate()
    assert world.backlog.groups == 8
    world.client.set(world.keys.bytes, 1048576 - 100)
    learner.iterate()
    learner.iterate()
    assert world.backlog.groups == 0, "two forced checkpoints free all that was finished"
    assert len(learner.training.parts.checkpoints.names()) == 2


def test_numbers_that_are_not_finite_reach_no_file_as_nan(world: World) -> None:
    learner = world.learner()
    with torch.no_grad():
        next(iter(learner.training.parts.policy.named_parameters().values())).fill_(math.nan)
    world.append(4)
    learner.iterate()
    text = (world.config.run.folder / "history.jsonl").read_text()
    assert "NaN" not in text
    [row] = world.lines("history.jsonl")
    assert row["token_ess"] is None
    assert "non-finite ESS" in row["skipped"]


def test_groups_that_were_delivered_but_never_received_are_read_again(world: World) -> None:
    learner = world.learner()
    world.append(4)
    stolen = world.client.xreadgroup("learner", "rank0", {world.keys.groups: ">"}, count=4)
    assert len(stolen[0][1]) == 4
    for _ in range(3):
        learner.iterate()
    assert learner.training.step == 1

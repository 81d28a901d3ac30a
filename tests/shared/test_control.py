"""Control state on a real Redis."""

import json
import time

import pytest

from shared.config import load_config
from shared.control import ControlState, EvaluationResult, Latest
from shared.errors import FencedError, StreamError
from shared.keys import Keys
from shared.redis_client import Client, connect
from shared.wishes import Wish, Wishes
from tests.conftest import RedisServer


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


def result(version: int) -> EvaluationResult:
    return EvaluationResult(version, 0.5, 64, 4.5, 1.0, "s0", 1.0)


def test_a_component_is_seen_until_its_heartbeat_runs_out_and_gone_when_it_leaves(control: ControlState) -> None:
    control.beat("learner", {"state": "training"}, ttl_s=30)
    control.beat("rollout:a", {"state": "generating"}, ttl_s=0.05)
    assert control.status_of("learner") == {"state": "training"}
    deadline = time.monotonic() + 60
    while control.status_of("rollout:a") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert control.members() == {"learner": {"state": "training"}, "rollout:a": None}
    control.leave("rollout:a")
    assert list(control.members()) == ["learner"]


def test_an_empty_run_answers(control: ControlState) -> None:
    assert control.latest() is None
    assert control.members() == {}
    assert control.phase() == ("starting", "")
    assert (control.history(), control.events(), control.evaluations(), control.paused()) == ([], [], [], False)


def test_ancestry_is_kept_for_the_versions_that_are_kept(control: ControlState) -> None:
    epoch = control.take_epoch()
    for version, parent in ((0, -1), (1, 0), (2, 1), (5, 1), (6, 5)):
        control.announce(epoch, Latest(version, parent, version), max(0, version - 4), [])
    assert control.parents() == {2: 1, 5: 1, 6: 5}


def test_history_and_events_come_back_in_order(control: ControlState) -> None:
    for step in range(5):
        control.add_history({"step": step})
    control.add_event("operator", "first", "test")
    control.add_event("operator", "second", "test")
    assert [row["step"] for row in control.history(last=3)] == [2, 3, 4]
    assert [event["text"] for event in control.events()] == ["second", "first"]


def test_an_evaluation_is_given_to_one_server_until_it_is_done(control: ControlState) -> None:
    assert not control.claim_evaluation(3, 30, "a")  # nobody asked for it
    control.request_evaluation(3)
    control.request_evaluation(3)
    assert control.pending_evaluations() == [3]
    control.beat("a", {}, 30)
    assert control.claim_evaluation(3, 30, "a")
    assert not control.claim_evaluation(3, 30, "b")
    assert control.claim_evaluation(3, 30, "a"), "its own claim, from before a restart"
    control.release_evaluation(3)
    assert control.claim_evaluation(3, 30, "b")
    control.finish_evaluation(3, result(4))
    assert control.pending_evaluations() == []
    assert control.evaluations() == [result(4)]


def test_a_claim_ends_with_its_time_or_with_its_claimer(control: ControlState) -> None:
    control.request_evaluation(3)
    control.beat("a", {}, 30)
    assert control.claim_evaluation(3, 0.05, "a")
    deadline = time.monotonic() + 60
    while not control.claim_evaluation(3, 30, "b"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert control.claim_evaluation(3, 30, "a"), "b has no heartbeat"


def test_phase_and_pause(control: ControlState) -> None:
    control.set_phase("failed", "no groups for 600 s")
    assert control.phase() == ("failed", "no groups for 600 s")
    control.set_paused(True)
    assert (control.paused(), control.paused_by()) == (True, "operator")
    control.set_paused(True, by="controller")
    assert control.paused_by() == "controller"
    control.set_paused(False)
    assert (control.paused(), control.paused_by()) == (False, "")


@pytest.mark.system
def test_whatever_is_wanted_is_one_event_whoever_asks_and_also_at_maxmemory(own_redis: RedisServer) -> None:
    client, keys = connect(load_config(None, [f"redis.url={own_redis.url}"], {})), Keys("run")
    control, wishes = ControlState(client, keys), Wishes(client, keys)
    control.beat("rollout:r0", {"kind": "rollout"}, 30)
    wishes.drain("r0", "ann", True)
    client.config_set("maxmemory", 1)
    assert [control.set_paused(True, "ann"), control.set_paused(True, "ann")] == [True, False]
    assert [control.set_paused(False, "ann"), control.set_paused(False, "bob")] == [True, False]
    assert [control.wish_lag(b"8", "ann", event="8"), control.wish_lag(b"8", "ann", event="8")] == [True, False]
    for _ in range(2):
        wishes.removed("r0", "ann")
    told = [(event["kind"], event["by"]) for event in reversed(control.events())]
    assert told == [(kind, "ann") for kind in ("drain", "pause", "resume", "lag", "remove")]
    assert (control.members(), wishes.draining()) == ({}, {})


def test_a_version_may_be_wished_for(control: ControlState, client: Client, keys: Keys) -> None:
    assert control.publish_above() == -1
    client.hset(keys.desired, "publish_above", 0)
    assert control.publish_above() == 0
    client.hset(keys.desired, "publish_above", "much")
    assert control.publish_above() == -1


def test_the_wish_for_recorded_bytes(control: ControlState, client: Client, keys: Keys) -> None:
    assert control.record_bytes() is None
    control.set_record_bytes(0)
    assert control.record_bytes() == 0
    control.set_record_bytes(2**40)
    assert control.record_bytes() == 2**40
    client.hset(keys.desired, "record_bytes", "much")
    assert control.record_bytes() is None


def test_a_wish_for_a_lag_may_be_repeated_and_says_who_and_when(control: ControlState) -> None:
    assert control.lag_wish() == Wish()
    assert control.wish_lag(b"8", "bob")
    assert control.wish_lag(b"8", "ann")
    assert not control.wish_lag(b"8", "ann")
    found = control.lag_wish()
    assert (found.text, found.by, time.time() - (found.at or 0) < 60) == (b"8", "ann", True)
    with pytest.raises(StreamError, match="somebody else has just changed the lag"):
        control.wish_lag(b"9", "bob", instead_of=b"7")
    assert control.wish_lag(b"9", "bob", instead_of=b"8")
    assert control.wish_lag(b"", "bob")
    assert not control.wish_lag(b"", "ann")
    assert control.lag_wish() == Wish()


@pytest.mark.parametrize("name", ["lag", "largest_lag"])
@pytest.mark.parametrize("said", [-1, 1025, True, "3", [3]])
def test_a_lag_that_no_server_can_be_asked_for_is_not_heard(control: ControlState, name: str, said: object) -> None:
    control.beat("rollout:r0", {"kind": "rollout", name: said}, 30)
    assert control.status_of("rollout:r0") == {"kind": "rollout"}


def test_examples_stay_within_their_bytes_and_a_step_that_comes_again_replaces_what_is_there(
    control: ControlState, client: Client, keys: Keys
) -> None:
    epoch = control.take_epoch()
    row = {"text": "x" * 100}
    size = len(json.dumps({"step": 1, **row}))
    for step in range(1, 8):
        control.add_examples(step, [{"step": step, **row}, {"step": step, **row}], epoch, 9 * size)
    assert [example["step"] for example in control.examples()] == [7, 7, 6, 6, 5, 5, 4, 4, 3]
    assert int(client.get(keys.examples_bytes)) == 9 * size
    control.add_examples(6, [{"step": 6, "text": "again"}], epoch, 9 * size)
    assert [example["step"] for example in control.examples(last=3)] == [6, 5, 5], "7 was of a branch that was left"
    assert control.examples(step=6) == [{"step": 6, "text": "again"}]
    assert int(client.get(keys.examples_bytes)) == 5 * size + len(json.dumps({"step": 6, "text": "again"}))
    control.take_epoch()
    with pytest.raises(FencedError):
        control.add_examples(8, [row], epoch, 1000)


def test_examples_that_somebody_else_has_taken_out_are_not_counted_any_more(
    control: ControlState, client: Client, keys: Keys
) -> None:
    row, epoch = {"text": "x" * 100}, control.take_epoch()
    size = len(json.dumps(row))
    control.add_examples(1, [row, row], epoch, 2 * size)
    client.delete(keys.examples)
    control.add_examples(2, [row], epoch, size)
    assert (control.examples(), int(client.get(keys.examples_bytes))) == ([], 0)
    control.add_examples(3, [row], epoch, size)
    assert (control.examples(), int(client.get(keys.examples_bytes))) == ([row], size)


def test_an_example_above_the_bound_leaves_nothing(control: ControlState) -> None:
    control.add_examples(1, [{"text": "x" * 100}], control.take_epoch(), 50)
    assert control.examples() == []

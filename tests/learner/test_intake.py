"""Whatever is not trained on leaves with its reason, its credit and, where something is wrong with it, a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from learner.training import Training
from shared.codec import encode_group
from shared.letters import letters
from shared.stream import Appended
from shared.types import SamplingSettings, Source, Trajectory, VersionSpan, group_id_for
from tests.conftest import RedisServer
from tests.learner.conftest import MakeWorld
from tests.learner.world import World, drawn_by

Change = Callable[[Trajectory], Trajectory]


def logprob(value: float) -> Change:
    def change(t: Trajectory) -> Trajectory:
        values = t.behavior_logprobs.copy()
        values[1] = value
        return replace(t, behavior_logprobs=values)

    return change


def sampling(**changes: float) -> Change:
    return lambda t: replace(t, sampling=replace(SamplingSettings(), **changes))  # type: ignore[arg-type]


def first_token(t: Trajectory, token: int) -> Trajectory:
    return replace(t, token_ids=np.array([token, *t.token_ids[1:]], dtype=np.int32))


BAD: dict[str, tuple[Change, str, str]] = {
    "nan": (logprob(float("nan")), "bad_logprobs", "nan on a trained token"),
    "minus infinity": (logprob(float("-inf")), "bad_logprobs", "-inf"),
    "plus infinity": (logprob(float("inf")), "bad_logprobs", "inf"),
    "sentinel": (logprob(-9999.0), "bad_logprobs", "-9999.0"),
    "probability above one": (logprob(0.1), "bad_logprobs", "0.1"),
    "greedy": (sampling(temperature=0.0), "bad_sampling", "sampling.temperature is 0.0"),
    "top_p": (sampling(top_p=0.9), "bad_sampling", "sampling.top_p is 0.9"),
    "top_k": (sampling(top_k=5), "bad_sampling", "sampling.top_k is 5"),
    "min_p": (sampling(min_p=0.1), "bad_sampling", "sampling.min_p is 0.1"),
    "penalty": (sampling(repetition_penalty=1.1), "bad_sampling", "repetition_penalty is 1.1"),
    "newer version": (drawn_by(7), "newer_version", "7 is newer than the learner's 0"),
    "reward": (lambda t: replace(t, reward=float("nan")), "bad_reward", "nan"),
    "unknown token": (lambda t: first_token(t, 10**6), "bad_tokens", "token_ids"),
    "negative token": (lambda t: first_token(t, -1), "bad_tokens", "token_ids"),
    "aborted": (lambda t: replace(t, finish_reason="abort"), "incomplete", "aborted"),
    "not drawn": (lambda t: replace(t, source=np.full(3, Source.ENVIRONMENT, np.uint8)), "bad_source", "environment"),
}


def read_all(training: Training) -> None:
    """Reads until the stream has nothing new."""
    for _ in range(10):
        if not training.intake.read(training.rules):
            return
    pytest.fail("there is always more")


@pytest.mark.parametrize("name", BAD)
def test_a_group_that_cannot_be_trained_on_is_dead_lettered_with_its_reason(world: World, name: str) -> None:
    change, reason, detail = BAD[name]
    training = world.learner().training
    index = world.put_changed(change)
    training.intake.read(training.rules)
    assert training.intake.held == []
    [(_, letter)] = world.client.xrange(world.keys.dead_letters)
    assert letter[b"reason"].decode() == reason
    assert detail in letter[b"error"].decode()
    assert b"trajectories[0]" in letter[b"error"]
    assert len(letter[b"payload"]) > 100
    [dropped] = world.lines("dropped.jsonl")
    assert (dropped["prompt_index"], dropped["reason"], dropped["length_mean"]) == (index, reason, 4.5)
    assert world.backlog.unapplied == 0, "its credit is free"
    assert world.backlog.groups == 0, "its entry is gone: the copy is kept"
    assert index in training.ledger.finished


def test_untrained_tokens_may_hold_anything(world: World) -> None:
    training = world.learner().training
    [index] = world.lease(1)
    good = world.group(index)
    t = good.trajectories[0]
    mask = np.array([True, False, True])
    values = np.array([t.behavior_logprobs[0], np.nan, t.behavior_logprobs[2]], dtype=np.float32)
    source = np.array([Source.POLICY, Source.ENVIRONMENT, Source.POLICY], dtype=np.uint8)
    odd = replace(t, loss_mask=mask, behavior_logprobs=values, source=source)
    world.put(replace(good, trajectories=(odd, *good.trajectories[1:])))
    training.intake.read(training.rules)
    assert [h.group.prompt_index for h in training.intake.held] == [index]


def test_bytes_that_are_no_group_are_dead_lettered(world: World) -> None:
    training = world.learner().training
    [first, second] = world.lease(2)
    world.put_bytes(first, b"\x93rubbish")
    whole = encode_group(world.group(second))
    world.put_bytes(second, whole[: len(whole) // 2])
    training.intake.read(training.rules)
    assert world.drops == {first: "undecodable", second: "undecodable"}
    assert world.backlog.dead_letters == 2
    assert world.backlog.groups == 0


def test_a_group_of_another_run_is_refused_and_leaves_our_group_of_that_index_alone(world: World) -> None:
    training = world.learner().training
    [index] = world.lease(1)
    stranger = replace(world.group(index), group_id=group_id_for("other", index))
    fields = {"group_id": stranger.group_id, "prompt_index": index, "payload": encode_group(stranger)}
    world.client.xadd(world.keys.groups, fields)
    world.put(world.group(index))
    training.intake.read(training.rules)
    assert [h.group.prompt_index for h in training.intake.held] == [index]
    assert [row["reason"] for row in world.lines("dropped.jsonl")] == ["wrong_run"]
    assert world.backlog.dead_letters == 1


def test_a_payload_under_the_wrong_entry_is_refused(world: World) -> None:
    training = world.learner().training
    [first, second] = world.lease(2)
    world.put_bytes(first, encode_group(world.group(second)))
    training.intake.read(training.rules)
    assert world.drops == {first: "wrong_run"}
    assert first in training.ledger.finished
    assert second not in training.ledger.finished


def test_an_entry_without_an_index_is_refused(world: World) -> None:
    training = world.learner().training
    world.client.xadd(world.keys.groups, {"group_id": "?", "prompt_index": "?", "payload": b"?"})
    training.intake.read(training.rules)
    assert world.drops == {-1: "wrong_run"}
    assert world.backlog.groups == 0


def test_a_failure_entry_frees_its_credit_at_once_and_its_entry_late(world: World) -> None:
    learner = world.learner()
    training = learner.training
    [index] = world.lease(1)
    stored = world.writer.append_failure(index, group_id_for(world.config.run.id, index), "scorer: timed out")
    assert stored is Appended.STORED
    training.intake.read(training.rules)
    [dropped] = world.lines("dropped.jsonl")
    assert (dropped["reason"], dropped["detail"]) == ("failure", "scorer: timed out")
    assert (world.backlog.unapplied, world.backlog.groups, world.backlog.dead_letters) == (0, 1, 0)
    for expected in (1, 0):
        training.write_checkpoint()
        training.delete_finished()
        assert world.backlog.groups == expected


def test_the_gate_looks_at_the_oldest_token_and_at_the_lag_that_was_asked_for(make_world: MakeWorld) -> None:
    world = make_world("admission.max_staleness=1", "learner.groups_per_batch=1", "learner.retain_versions=9")
    learner = world.learner()
    training = learner.training
    for _ in range(4):
        world.append(1)
        learner.iterate()
    assert training.lineage.latest == 4
    cases = [(3, 0, True), (2, 0, False), (2, 1, True), (0, 3, True), (0, 2, False)]
    for oldest, lag, good in cases:
        [index] = world.lease(1)
        drawn = world.group(index, oldest, lag=lag)
        first, *others = drawn.trajectories
        mixed = replace(first, versions=(VersionSpan(oldest, 0, 1), VersionSpan(4, 1, 3)))
        world.put(replace(drawn, trajectories=(mixed, *(drawn_by(4)(t) for t in others))))
        training.intake.read(training.rules)
        assert bool(training.intake.take(training.lineage)) is good, (oldest, lag)
        if not good:
            assert world.drops[index] == "too_stale"
    [row, _] = world.lines("dropped.jsonl")
    assert row["detail"] == "its oldest token is 2 versions old; allowed: lag 0 + max_staleness 1"
    assert (row["length_mean"], row["reward_mean"], row["staleness"], row["lag"]) == (4.5, 0.5, 2, 0)


def test_a_group_that_was_finished_is_skipped_counted_and_deleted_late(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    payload = encode_group(world.group(0, 0))
    entry = {"group_id": group_id_for(world.config.run.id, 0), "prompt_index": 0, "payload": payload}
    world.client.xadd(world.keys.groups, entry)
    training = learner.training
    training.intake.read(training.rules)
    assert training.intake.held == []
    assert training.ledger.duplicates == 1
    assert world.drops == {}
    for _ in range(2):
        training.write_checkpoint()
        training.delete_finished()
    assert world.backlog.groups == 0


def test_never_more_than_a_batch_is_held(world: World) -> None:
    training = world.learner().training
    indices = world.append(11)
    read_all(training)
    assert [h.group.prompt_index for h in training.intake.held] == indices[:4], "the oldest come first"
    pending = world.client.xpending(world.keys.groups, "learner")["pending"]
    assert pending == 4


def test_an_entry_moves_to_the_dead_letters_even_where_redis_is_at_maxmemory(
    make_world: MakeWorld, own_redis: RedisServer
) -> None:
    world = make_world(url=own_redis.url)
    training = world.learner().training
    [index] = world.lease(1)
    world.put_bytes(index, b"rubbish")
    world.client.config_set("maxmemory", 1)
    training.intake.read(training.rules)
    [kept] = letters(world.client, world.keys)
    assert (kept.prompt_index, kept.payload) == (index, b"rubbish")
    assert (world.backlog.groups, world.backlog.bytes, world.backlog.unapplied) == (0, 0, 0)


def test_groups_of_a_skipped_step_end_with_that_reason_and_too_many_end_the_run(make_world: MakeWorld) -> None:
    from shared.errors import TrainingError

    world = make_world("learner.max_nonfinite_steps=2")
    learner = world.learner()
    finite = world.append(4)
    learner.iterate()
    for parameter in learner.training.parts.policy.named_parameters().values():
        parameter.data.fill_(float("nan"))
    skipped = world.append(8, version=0)
    learner.iterate()
    assert world.latest == 1, "weights that did not change are not published again"
    assert world.backlog.unapplied == 4
    assert world.drops == dict.fromkeys(skipped[:4], "non_finite_step")
    with pytest.raises(TrainingError, match="2 steps in a row were skipped"):
        learner.iterate()
    assert sorted(world.applied) == finite
    assert world.drops == dict.fromkeys(skipped, "non_finite_step")
    assert [row["step"] for row in world.lines("history.jsonl")] == [1, 2, 3]

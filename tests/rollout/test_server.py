"""The rollout server on a real Redis, a real store and transformers' own generation."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rollout.engines.transformers import TransformersEngine
from rollout.server import _first_of
from shared.codec import encode_group
from shared.config import Config
from shared.config.rollout import SamplingConfig
from shared.errors import ConfigError, DeadlineError, EngineError, EnvironmentFailure, StoreError
from shared.store import PolicyStore
from shared.stream import backlog
from shared.types import Float32Array, Int32Array, Source
from tests.conftest import RedisServer
from tests.rollout.models import byte_tokenizer, logprobs_of
from tests.rollout.run import Run, parts_of, serving, small, until, versions_of
from tests.rollout.worlds import HELDOUT, Hanging

pytestmark = [pytest.mark.asyncio, pytest.mark.system]


async def test_groups_arrive_whole_and_tell_the_truth(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    groups = run.groups()
    assert sorted(group.prompt_index for group in groups) == list(range(8))
    for group in groups:
        assert group.group_id == f"{run.config.run.id}:{group.prompt_index}"
        assert (group.group_size, group.environment, group.server_id, group.lag) == (4, "parity", "r0", 0)
        assert group.started_at <= group.completed_at
        for t in group.trajectories:
            assert t.versions[0].policy_version == 0
            assert len(t.versions) == 1
            assert t.loss_mask.all()
            assert (t.source == Source.POLICY).all()
            assert t.reward == float(t.token_ids[0] % 2 == 0) == t.rewards["even"]
            whole = [*group.prompt_ids.tolist(), *t.token_ids.tolist()]
            expected = logprobs_of(run.model, whole)[len(group.prompt_ids) - 1 :]
            np.testing.assert_allclose(t.behavior_logprobs, expected, atol=1e-4)


async def test_groups_hold_expert_answers_beside_their_own_completions(config: Config, tiny_model: Path) -> None:
    task = "environment={kind: reasoning_gym, dataset: chain_sum}"
    run = Run(small(config, tiny_model, task, "rollout.sampling.max_tokens=12", "rollout.experts=2"))
    run.publish()
    tokenizer = byte_tokenizer()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    assert parts.metrics.environment_failures._metrics == {}
    for group in run.groups():
        assert (group.group_size, len(group.trajectories)) == (4, 6)
        assert all((t.source == Source.POLICY).all() for t in group.trajectories[:4])
        for t in group.trajectories[4:]:
            assert (t.reward, t.rewards, t.finish_reason) == (1.0, {"chain_sum": 1.0}, "stop")
            assert t.token_ids[-1] == tokenizer.eos_token_id
            assert (t.source == Source.EXPERT).all()
            assert t.loss_mask.all()
            assert not t.behavior_logprobs.any()
            assert t.sampling == group.trajectories[0].sampling
        assert len(encode_group(group)) <= run.config.group_bytes_bound
    drawn = [t for group in run.groups() for t in group.own]
    assert parts.metrics.tokens_sampled._value.get() == sum(t.length for t in drawn), "an expert's are not sampled"
    assert versions_of(run.groups()) == {0}


async def test_a_server_without_an_expert_refuses_to_start_where_one_is_wanted(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.experts=1"))
    run.publish()
    with pytest.raises(ConfigError, match=r"rollout\.experts is 1, but parity gives no expert answers"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=10)
    assert run.entries == run.read() == []


async def test_no_more_is_asked_for_than_there_is_credit_and_the_wait_says_why(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.state_of() == "waiting for staleness credit", "the server to say so", server)
        assert (run.unapplied(), run.leased()) == (8, 0)
        status = run.control.status_of("rollout:r0")
        assert status is not None
        assert (status["in_flight"], status["groups"], status["policy_version"]) == (0, 8, 0)
        assert status["proof_max_nats"] < 1e-5
        run.reader.release([0, 1, 2])
        await until(lambda: run.unapplied() == 8, "the freed credit to be used", server)
    assert sorted(entry.prompt_index for entry in run.read()) == list(range(11))
    assert parts.metrics.wait_seconds.labels("staleness credit")._value.get() > 0
    assert run.control.members() == {}


async def test_a_new_version_is_loaded_proven_and_served(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        run.publish(applied=list(range(8)))
        await until(lambda: run.unapplied() == 8, "the groups of the next version", server)
    fresh = [group for group in run.groups() if group.prompt_index >= 8]
    assert versions_of(fresh[-4:]) == {1}
    t = fresh[-1].trajectories[0]
    whole = [*fresh[-1].prompt_ids.tolist(), *t.token_ids.tolist()]
    np.testing.assert_allclose(t.behavior_logprobs, logprobs_of(run.model, whole)[2:], atol=1e-4)


async def test_the_synchronous_run_draws_every_group_by_the_version_that_it_updates(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "admission.max_staleness=0"))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        for version in range(5):
            await until(lambda: run.unapplied() == 4, f"the groups of version {version}", server)
            batch = run.groups()[-4:]
            assert versions_of(batch) == {version}
            run.step(0.01)
            run.publish(applied=[group.prompt_index for group in batch])


async def test_a_lag_serves_an_ancestor_of_the_latest(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model, "rollout.lag=2"))
    for _ in range(4):
        run.publish()
        run.step()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert versions_of(run.groups()) == {1}
    assert {group.lag for group in run.groups()} == {2}


async def test_a_restored_learner_s_lineage_is_followed_although_its_numbers_jump(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.lag=1"))
    for _ in range(3):
        run.publish()
        run.step()
    run.publish(restored_from=1)
    run.control.request_evaluation(2)  # of the abandoned branch: answered by a later version, or not at all
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
        assert run.version == 13
        assert versions_of(run.groups()) == {1}
        assert run.control.evaluations() == []
        run.publish(applied=list(range(8)))
        await until(lambda: run.unapplied() == 8, "groups of the new branch", server)
        await until(lambda: bool(run.control.evaluations()), "the answer", server)
    assert versions_of(run.groups()) <= {1, 13}
    assert run.control.evaluations()[0].policy_version == 13


async def test_groups_that_end_while_a_version_is_unproven_wait_for_the_proof(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine, with a proof that takes its time: what it drew meanwhile is not in the stream."""
    run = Run(small(config, tiny_model))
    run.publish()
    proving, go_on = asyncio.Event(), asyncio.Event()
    truly = TransformersEngine.logprobs

    async def slowly(self: TransformersEngine, token_ids: Int32Array) -> Float32Array:
        if self.policy_version == 1:
            proving.set()
            await go_on.wait()
        return await truly(self, token_ids)

    monkeypatch.setattr(TransformersEngine, "logprobs", slowly)
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        run.control.set_paused(True)  # until the new version is loaded, so that it draws all that is still to come
        run.publish(applied=list(range(8)))
        await asyncio.wait_for(proving.wait(), 10)
        run.control.set_paused(False)
        await until(lambda: run.leased() == 4, "groups of the unproven version", server)
        await asyncio.sleep(0.3)
        assert versions_of(run.groups()) == {0}
        go_on.set()
        await until(lambda: run.unapplied() == 8, "the groups to be appended", server)
    assert versions_of(run.groups()[8:]) == {1}
    assert parts.metrics.environment_failures.labels("engine")._value.get() == 0, "they waited, nothing was thrown away"


async def test_an_evaluation_is_answered_by_one_version_and_not_trained_on(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: bool(run.control.evaluations()), "the result", server)
        await until(lambda: run.unapplied() == 8, "groups", server)
    [result] = run.control.evaluations()
    assert (result.policy_version, result.prompts, result.server_id) == (0, 8, "r0")
    assert result.accuracy == sum(best_is_even(run, HELDOUT + i) for i in range(8)) / 8
    assert 1 <= result.mean_length <= 6
    assert run.control.pending_evaluations() == []
    assert all(entry.prompt_index < HELDOUT for entry in run.read())


def best_is_even(run: Run, index: int) -> bool:
    """What greedy decoding answers first, by the model itself."""
    prompt = [10, 11, index % 200]
    with torch.no_grad():
        return int(run.model(torch.tensor([prompt])).logits[0, -1].argmax()) % 2 == 0


async def test_an_evaluation_beyond_the_lag_is_a_detour_that_no_group_takes(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store, which does not answer at first: groups do not mind."""
    asked_by: list[threading.Thread] = []
    truly = PolicyStore.versions

    def at_last(self: PolicyStore) -> list[int]:
        asked_by.append(threading.current_thread())
        if len(asked_by) == 1:
            raise StoreError("no answer")
        return truly(self)

    monkeypatch.setattr(PolicyStore, "versions", at_last)
    run = Run(small(config, tiny_model, "rollout.lag=1", "admission.max_staleness=4000"))
    run.publish()
    run.step()
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() > 8, "groups before the detour", server)
        run.control.request_evaluation(1)
        await until(lambda: bool(run.control.evaluations()), "the result", server)
        until_then = run.unapplied()
        await until(lambda: run.unapplied() > until_then + 8, "groups after the detour", server)
    [result] = run.control.evaluations()
    assert result.policy_version == 1
    assert versions_of(run.groups()) == {0}
    assert len(asked_by) > 1
    assert threading.main_thread() not in asked_by, "groups are drawn while the store takes its time"


async def test_an_evaluation_that_was_begun_is_given_back_by_a_server_that_stops(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "environment.path=tests.rollout.worlds:Hanging"))
    run.publish()
    Hanging.release.clear()
    run.control.set_paused(True)  # no groups
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "evaluating version 0", "the evaluation", server)
    Hanging.release.set()
    assert run.control.claim_evaluation(0, 1.0, "rollout:another")


async def test_an_evaluation_that_fails_is_given_back_and_said(config: Config, tiny_model: Path) -> None:
    broken = [HELDOUT, HELDOUT + 1]
    overrides = ["environment.path=tests.rollout.worlds:Failing", f"environment.params.broken={broken}"]
    run = Run(small(config, tiny_model, *overrides))
    run.publish()
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: len(run.control.events()) == 3, "three attempts", server)
        await until(lambda: run.unapplied() == 8, "groups, which go on", server)
    assert "ZeroDivisionError: the scorer is broken" in run.control.events()[0]["text"]
    assert run.control.evaluations() == []
    assert run.control.claim_evaluation(0, 1.0, "rollout:another"), "another server can claim it"


async def test_a_prompt_whose_scorer_fails_ends_as_a_failure_and_never_as_reward_0(
    config: Config, tiny_model: Path
) -> None:
    overrides = ["environment.path=tests.rollout.worlds:Failing", "environment.params.broken=[2, 5]"]
    run = Run(small(config, tiny_model, *overrides))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    failed = {entry.prompt_index: entry.failure for entry in run.read() if entry.failure}
    assert set(failed) == {2, 5}
    assert failed[2] == "raised: parity: ZeroDivisionError: the scorer is broken"
    assert {group.prompt_index for group in run.groups()} == {0, 1, 3, 4, 6, 7}
    assert parts.metrics.environment_failures.labels("raised")._value.get() == 6  # two prompts, three attempts each


async def test_what_the_engine_refuses_or_the_environment_cannot_make_ends_its_prompt_only(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "environment.path=tests.rollout.worlds:Odd"))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    failed = {entry.prompt_index: entry.failure for entry in run.read() if entry.failure}
    assert set(failed) == {2, 5}
    assert failed[2].startswith("engine: cannot draw 4 completions")
    assert failed[5] == "raised: parity: LookupError: no such question"


async def test_an_environment_that_only_fails_stops_the_server(config: Config, tiny_model: Path) -> None:
    overrides = ["environment.path=tests.rollout.worlds:Failing", f"environment.params.broken={list(range(99))}"]
    run = Run(small(config, tiny_model, *overrides))
    run.publish()

    async def serve() -> None:
        async with serving(parts_of(run.config)) as server:
            while not server.done():
                run.reader.release([entry.prompt_index for entry in run.read()])
                await asyncio.sleep(0.05)

    with pytest.raises(
        EnvironmentFailure, match=r"3\d groups failed, none succeeded between them.*the scorer is broken"
    ):
        await serve()
    assert run.leased() == 0


async def test_a_hanging_scorer_fails_its_group_and_the_server_ends_all_the_same(
    config: Config, tiny_model: Path
) -> None:
    overrides = ["environment.path=tests.rollout.worlds:Hanging", "rollout.reward_deadline_s=0.1"]
    run = Run(small(config, tiny_model, *overrides, "rollout.groups_in_flight=1"))
    run.publish()
    Hanging.release.clear()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: len(run.read()) == 1, "the first prompt's end", server)
    Hanging.release.set()
    assert run.entries[0].failure == "deadline: parity: no answer within 0.1 s"


async def test_a_paused_run_stands_still_and_says_so(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    run.control.set_paused(True)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "paused by the operator", "the server to say so", server)
        assert (run.unapplied(), run.leased()) == (0, 0)
        run.control.set_paused(False)
        await until(lambda: run.unapplied() == 8, "groups", server)


async def test_two_servers_share_the_prompts_without_overlap(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model, "admission.max_staleness=5", "rollout.groups_in_flight=2"))
    run.publish()
    run.control.set_paused(True)
    async with serving(parts_of(run.config, "r0")) as first:
        await until(lambda: run.state_of("r0").startswith("paused"), "the first to be there", first)
        async with serving(parts_of(run.config, "r1")) as second:
            await until(lambda: run.state_of("r1").startswith("paused"), "the second to be there", second)
            run.control.set_paused(False)
            await until(lambda: run.unapplied() == 24, "all credit to be used", first)
    groups = run.groups()
    assert sorted(group.prompt_index for group in groups) == list(range(24))
    assert {group.server_id for group in groups} == {"r0", "r1"}


async def test_the_end_of_the_run_ends_the_server_in_order(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
        run.control.set_phase("finished")
        await asyncio.wait_for(server, 5)
    assert run.control.members() == {}


async def test_a_run_that_is_over_before_it_has_a_version_ends_the_server(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "waiting for the first published version", "the wait", server)
        run.control.set_phase("failed", "the learner gave up")
        await asyncio.wait_for(server, 5)


async def test_leases_of_a_former_life_are_given_out_again_at_once(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    crashed = parts_of(run.config)
    assert crashed.admission.lease(3, served_version=0).indices == (0, 1, 2)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    assert sorted(entry.prompt_index for entry in run.read()) == list(range(8))


async def test_a_lease_that_redis_brings_back_is_given_out_again(config: Config, tiny_model: Path) -> None:
    """A Redis that lost its last second knows a lease again whose group it had acknowledged."""
    run = Run(small(config, tiny_model, "admission.lease_s=1"))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
        [forgotten] = [entry for entry in run.read() if entry.prompt_index == 3]
        run.client.xdel(run.keys.groups, forgotten.entry_id)
        run.client.srem(run.keys.unapplied, 3)
        run.client.hset(run.keys.owners, "3", "r0")
        run.client.zadd(run.keys.leases, {"3": 1e13})
        await until(lambda: run.client.xlen(run.keys.groups) == 8, "the prompt to be drawn again", server)
    assert run.leased() == 0


async def test_an_id_in_use_is_refused_and_its_owner_stays_on_the_list(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "state": "generating groups"}
    run.control.beat("rollout:r0", owner, 30)
    with pytest.raises(ConfigError, match=r"server id 'r0' is in use by process \d+ on .*; choose another"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=5)
    assert run.control.status_of("rollout:r0") == owner


async def test_a_torn_version_is_not_loaded_and_the_proven_one_goes_on(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        manifest_of_0 = run.store.folder(0)
        run.publish()
        weights = run.store.folder(1) / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-4] + b"torn")
        failures = parts.metrics.sync_failures.labels("store")._value
        before = failures.get()
        await until(lambda: failures.get() > before, "a refusal", server)
        assert manifest_of_0.exists()
        weights.write_bytes(whole)
        await until(lambda: parts.status.heartbeat.status["policy_version"] == 1, "the healed version", server)


async def test_a_version_that_stays_unreadable_stops_the_server(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.sync.SYNC_DEADLINE_S", 0.3)
    run = Run(small(config, tiny_model))
    run.publish()
    (run.store.folder(0) / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"for 0.3 s no version could be read: version 0: model.safetensors"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=5)


async def test_a_run_without_a_learner_is_left_after_the_idle_deadline(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.follow.LEARNER_POLL_S", 0.05)
    run = Run(small(config, tiny_model, "learner.idle_deadline_s=0.5"))
    run.publish()
    run.control.beat("learner", {"state": "training"}, 1.0)

    async def serve() -> None:
        async with serving(parts_of(run.config)) as server:
            await until(lambda: run.unapplied() == 8, "groups, while there is a learner", server)
            await asyncio.wait({server}, timeout=5)

    with pytest.raises(DeadlineError, match=r"waited 0\.5 s for a learner's heartbeat, in vain"):
        await serve()


async def test_an_outage_of_redis_is_waited_out_and_loses_no_prompt(
    config: Config, tiny_model: Path, own_redis: RedisServer
) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    run = Run(small(there, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        own_redis.kill()
        await until(lambda: "waiting for Redis" in parts.status.heartbeat.status["state"], "the wait", server)
        own_redis.start()
        run.reader.release(list(range(8)))
        await until(lambda: run.unapplied() == 8, "the next groups", server)
    assert sorted(entry.prompt_index for entry in run.read()) == list(range(16))


async def test_a_full_redis_is_back_pressure(config: Config, tiny_model: Path, own_redis: RedisServer) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    run = Run(small(there, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    run.client.config_set("maxmemory", 1)
    async with serving(parts) as server:
        await until(lambda: run.state_of() == "waiting for Redis memory", "the server to say so", server)
        run.client.config_set("maxmemory", 0)
        await until(lambda: run.unapplied() == 8, "groups", server)


async def test_greedy_training_is_refused_before_anything_is_loaded(config: Config, tiny_model: Path) -> None:
    good = small(config, tiny_model)
    greedy = good.rollout.model_copy(update={"sampling": SamplingConfig(temperature=0)})
    run = Run(good.model_copy(update={"rollout": greedy}))
    with pytest.raises(ConfigError, match=r"rollout\.sampling\.temperature is 0"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=5)


async def test_an_unknown_dataset_is_refused_before_the_engine_is_loaded(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = "environment={kind: reasoning_gym, dataset: no_such_task}"
    run = Run(small(config, tiny_model, environment))
    run.publish()
    loaded: list[str] = []
    monkeypatch.setattr("rollout.server.build_engine", lambda *_: loaded.append("engine"))
    with pytest.raises(ConfigError, match=r"environment\.dataset is 'no_such_task'"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=20)
    assert loaded == []


async def test_what_fails_together_is_one_error() -> None:
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))

    async def fail(reason: str) -> str:
        raise EngineError(reason)

    async def fail_when_ended() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            raise EngineError("the third")

    with pytest.raises(EngineError, match="the first"):
        await _first_of(fail("the first"), fail("the second"), fail_when_ended())
    gc.collect()
    assert said == []


async def test_what_redis_holds_stays_within_what_admission_reckons_with(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert all(0 < entry.size <= run.config.group_bytes_bound for entry in run.read())
    assert backlog(run.client, run.keys).bytes == sum(entry.size for entry in run.entries)

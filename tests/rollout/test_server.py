"""The rollout server on a real Redis, a real store and transformers' own generation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from shared.codec import encode_group
from shared.config import Config
from shared.stream import backlog
from shared.types import Source
from tests.rollout.models import byte_tokenizer, logprobs_of
from tests.rollout.run import Run, parts_of, serving, small, until, versions_of

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
        await asyncio.wait_for(server, 60)
    assert run.control.members() == {}


async def test_a_run_that_is_over_before_it_has_a_version_ends_the_server(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "waiting for the first published version", "the wait", server)
        run.control.set_phase("failed", "the learner gave up")
        await asyncio.wait_for(server, 60)


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


async def test_what_redis_holds_stays_within_what_admission_reckons_with(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert all(0 < entry.size <= run.config.group_bytes_bound for entry in run.read())
    assert backlog(run.client, run.keys).bytes == sum(entry.size for entry in run.entries)

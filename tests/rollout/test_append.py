from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollout.append import Appender
from rollout.environments.failure import Failure
from rollout.parts import Parts
from shared.config import Config
from shared.errors import DeadlineError, EnvironmentFailure, StreamError
from shared.stream import Appended, GroupWriter
from tests import builders
from tests.conftest import RedisServer
from tests.rollout.run import Run, parts_of, small

pytestmark = pytest.mark.asyncio


@pytest.fixture
def run(config: Config, tiny_model: Path) -> Run:
    run = Run(small(config, tiny_model, "learner.idle_deadline_s=0.2"))
    run.publish()
    return run


@pytest.fixture
def parts(run: Run) -> Parts:
    """A server that holds leases on prompts 0 to 3."""
    parts = parts_of(run.config)
    assert parts.admission.lease(4, served_version=0).indices == (0, 1, 2, 3)
    return parts


def discarded(parts: Parts, reason: str) -> float:
    value: float = parts.metrics.groups_discarded.labels(reason)._value.get()
    return value


async def test_a_group_is_stored_once_and_what_is_not_taken_is_counted(run: Run, parts: Parts) -> None:
    appender = Appender(parts)
    assert await appender.append(builders.group(0, size=4)) is Appended.STORED
    assert await appender.append(builders.group(0, size=4)) is Appended.DUPLICATE
    assert await appender.append(builders.group(9, size=4)) is Appended.LEASE_LOST
    assert [entry.prompt_index for entry in run.read()] == [0]
    assert (discarded(parts, "duplicate"), discarded(parts, "lease lost")) == (1, 1)
    assert parts.metrics.groups_appended._value.get() == 1
    assert parts.metrics.tokens_sampled._value.get() == 3 + 4 + 5 + 6


class LosesTheFirstAnswer(GroupWriter):
    """Redis takes the group, and the connection breaks before it can say so."""

    lost = False

    def append(self, prompt_index: int, group_id: str, payload: bytes) -> Appended:
        answer = super().append(prompt_index, group_id, payload)
        if not self.lost:
            self.lost = True
            raise StreamError("Redis cannot be reached: connection reset")
        return answer


async def test_an_append_whose_answer_was_lost_counts_as_stored(run: Run, parts: Parts) -> None:
    unlucky = replace(parts, writer=LosesTheFirstAnswer(run.client, run.keys, "r0"))
    assert await Appender(unlucky).append(builders.group(0, size=4)) is Appended.STORED
    assert [entry.prompt_index for entry in run.read()] == [0]
    assert discarded(parts, "duplicate") == 0
    value = parts.metrics.registry.get_sample_value
    names = ("rollout_appends_resent", "redis_outages", "redis_retries")
    assert [value(f"trustbatch_{name}_total") for name in names] == [1, 1, 1]


async def test_a_group_waits_while_redis_is_full(config: Config, tiny_model: Path, own_redis: RedisServer) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    run = Run(small(there, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    parts.admission.lease(1, served_version=0)
    run.client.config_set("maxmemory", 1)
    appending = asyncio.ensure_future(Appender(parts).append(builders.group(0, size=4)))
    done, _ = await asyncio.wait({appending}, timeout=0.3)
    assert not done
    assert parts.status.heartbeat.status["state"] == "waiting for room in Redis, which is at maxmemory"
    run.client.config_set("maxmemory", 0)
    assert await asyncio.wait_for(appending, 5) is Appended.STORED
    assert parts.metrics.registry.get_sample_value("trustbatch_rollout_appends_resent_total") == 0


async def test_the_wait_for_a_full_redis_has_an_end(config: Config, tiny_model: Path, own_redis: RedisServer) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    run = Run(small(there, tiny_model, "learner.idle_deadline_s=0.2"))
    run.publish()
    parts = parts_of(run.config)
    parts.admission.lease(1, served_version=0)
    run.client.config_set("maxmemory", 1)
    with pytest.raises(DeadlineError, match=r"waited 0.2 s for room in Redis, which is at maxmemory"):
        await Appender(parts).append(builders.group(0, size=4))


async def test_a_group_beyond_its_byte_credit_is_an_infrastructure_failure(parts: Parts) -> None:
    group = replace(builders.group(0, size=4), prompt_ids=np.zeros(5000, dtype=np.int32))
    with pytest.raises(EnvironmentFailure, match=r"takes 2\d,\d+ bytes; credit is for"):
        await Appender(parts).append(group)


async def test_a_prompt_is_tried_three_times_and_then_ends_as_a_failure(run: Run, parts: Parts) -> None:
    appender = Appender(parts)
    error = Failure("deadline", "too slow" + "!" * 2000)
    for _ in range(2):
        assert not await appender.give_up(0, error)
        assert parts.admission.lease(1, served_version=0).indices == (0,)
    assert await appender.give_up(0, error)
    [entry] = run.read()
    assert (entry.prompt_index, entry.failure[:18]) == (0, "deadline: too slow")
    assert len(entry.failure) == 1000
    assert run.leased() == 3
    assert discarded(parts, "failure: deadline") == 3
    retried = parts.metrics.registry.get_sample_value("trustbatch_rollout_groups_retried_total", {"reason": "deadline"})
    assert retried == 2

"""What a rollout server refuses, outlives or ends for."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from pathlib import Path

import pytest

from rollout.server import _first_of
from shared.config import Config
from shared.config.rollout import SamplingConfig
from shared.errors import ConfigError, DeadlineError, EngineError, EnvironmentFailure
from tests.conftest import RedisServer
from tests.rollout.run import Run, parts_of, serving, small, until
from tests.rollout.worlds import Hanging

pytestmark = [pytest.mark.asyncio, pytest.mark.system]


async def test_a_server_without_an_expert_refuses_to_start_where_one_is_wanted(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.experts=1"))
    run.publish()
    with pytest.raises(ConfigError, match=r"rollout\.experts is 1, but parity gives no expert answers"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=60)
    assert run.entries == run.read() == []


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


async def test_an_id_in_use_is_refused_and_its_owner_stays_on_the_list(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "state": "generating groups"}
    run.control.beat("rollout:r0", owner, 30)
    with pytest.raises(ConfigError, match=r"server id 'r0' is in use by process \d+ on .*; choose another"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=60)
    assert run.control.status_of("rollout:r0") == owner


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
            await asyncio.wait({server}, timeout=60)

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
            await asyncio.wait({server}, timeout=60)


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
            await asyncio.wait({server}, timeout=60)
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

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.patience import Patience
from shared.config import Config
from shared.errors import AccessError, OutOfMemoryError, StreamError
from shared.redis_client import connect
from tests.conftest import RedisServer
from tests.rollout.run import parts_of, small

pytestmark = pytest.mark.asyncio


async def test_an_outage_that_lasts_too_long_is_an_error_that_says_what_was_wanted(
    config: Config, tiny_model: Path, own_redis: RedisServer
) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    parts = parts_of(small(there, tiny_model))
    own_redis.kill()
    patience = Patience(parts.status, parts.log, parts.metrics.redis, outage_s=0.1)
    with pytest.raises(StreamError, match=r"waited 0.1 s for Redis to say hello: Redis cannot be reached"):
        await patience("say hello", parts.admission.held)
    assert parts.status.heartbeat.status["state"] == "waiting for Redis to say hello"


async def test_a_full_redis_is_left_to_the_caller(config: Config, tiny_model: Path, own_redis: RedisServer) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    parts = parts_of(small(there, tiny_model))
    parts.control.set_phase("running")
    connect(there).config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        await parts.patience("ask", lambda: parts.admission.lease(1, 0))


async def test_refused_credentials_are_not_waited_out(config: Config, tiny_model: Path, own_redis: RedisServer) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    parts = parts_of(small(there, tiny_model))
    client = connect(there)
    client.config_set("requirepass", "sesame")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(AccessError, match=r"redis\.password"):
        await parts.patience("say where the run stands", parts.control.phase)

"""The thread that renews leases also notices what Redis has forgotten, although the server has nothing to append."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rollout.membership import LeaseKeeper
from shared.keys import Keys
from shared.redis_client import Client
from tests.shared.test_stream import Bench


def wait(what: str, look: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def bench(client: Client, keys: Keys) -> Bench:
    return Bench(client, keys)


def test_an_idle_server_claims_what_redis_has_forgotten_and_gives_the_lease_back(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(2)
    keeper = LeaseKeeper(bench.admission, bench.writer, 0.3)
    keeper.start()
    # Redis as it was before the second append: its index is a lease of this server
    bench.client.delete(bench.keys.groups)
    bench.client.srem(bench.keys.unapplied, "1")
    bench.client.hset(bench.keys.acknowledged, "s0", 1)
    bench.client.hset(bench.keys.owners, "1", "s0")
    bench.client.zadd(bench.keys.leases, {"1": time.time() * 1000 + 60_000})
    wait("the claim", lambda: [claim.prompt_index for claim in reader.claims()] == [1])
    assert bench.admission.held() == []
    assert bench.admission.lease(1, 0).indices == (1,)
    keeper.stop()

"""What a server says after Redis has forgotten some of what it had acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.acknowledged import Acknowledged
from shared.config import Config, load_config
from shared.errors import DataLossError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.redis_client import Client, connect
from shared.stream import FORGOTTEN, Appended, GroupWriter, backlog
from tests.conftest import RedisServer, append_only_file, cut_to
from tests.shared.test_stream import Bench


def test_what_was_forgotten_is_told_once() -> None:
    memory = Acknowledged()
    for count, index in ((1, 10), (2, 11), (3, 12)):
        assert memory.add(index, count, 0)
    known, times_lost = memory.now()
    assert (known, memory.forgotten(1, times_lost)) == (3, [11, 12])
    assert memory.forgotten(1, times_lost) == [], "another thread that saw the same loss tells nothing"
    assert memory.now() == (1, 1)
    assert not memory.add(13, 4, times_lost), "an answer from before the loss: it may be lost as well"
    assert memory.add(14, 2, 1)
    assert memory.forgotten(1, 1) == [14]


def test_only_the_newest_are_remembered() -> None:
    memory = Acknowledged(most=3)
    for number in range(1, 9):
        memory.add(number, number, 0)
    assert memory.forgotten(0, 0) == [6, 7, 8]


@pytest.fixture
def bench(client: Client, keys: Keys) -> Bench:
    return Bench(client, keys)


def test_a_server_that_nobody_forgot_claims_nothing(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(3)
    assert bench.writer.confirm() == 0
    again = GroupWriter(bench.client, bench.keys, "s0")
    assert again.confirm() == 0, "a new life of the same server begins with nothing to claim"
    (index,) = bench.admission.lease(1, 0).indices
    assert again.append(index, "t:3", b"x") is Appended.STORED
    assert reader.claims() == []


def test_after_a_flush_the_next_append_names_what_is_gone(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(3)
    (drawing,) = bench.admission.lease(1, 0).indices
    bench.client.delete(*bench.client.keys(f"trustbatch:{{{bench.keys.run_id}}}:*"))
    assert bench.writer.append(drawing, "t:3", b"x") is Appended.LEASE_LOST
    assert [(c.prompt_index, c.cause) for c in reader.claims()] == [(0, FORGOTTEN), (1, FORGOTTEN), (2, FORGOTTEN)]
    assert bench.writer.confirm() == 0
    with pytest.raises(DataLossError, match="does not remember this learner"):
        reader.settle(3, [])
    reader.open(Intervals())
    reader.settle(3, [])
    assert reader.claims() == []


def test_a_lease_that_came_back_with_a_power_loss_is_given_back_and_its_group_is_named(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    config: Config = load_config(None, [f"redis.url={own_redis.url}", "run.id=cut"], {})
    client = connect(config)
    bench = Bench(client, Keys("cut"))
    reader = bench.reader()
    bench.append(2)
    indices = list(bench.admission.lease(3, 0).indices)
    size = append_only_file(tmp_path).stat().st_size
    for index in indices[:2]:
        bench.writer.append(index, f"t:{index}", b"x")
    assert bench.admission.held() == indices[2:]
    own_redis.kill()
    cut_to(tmp_path, size)
    own_redis.start()
    assert bench.admission.held() == indices, "a living server holds leases that it knows nothing of"
    assert bench.writer.confirm() == 2
    assert [claim.prompt_index for claim in reader.claims()] == indices[:2]
    assert bench.admission.held() == indices[2:]
    assert client.zcard(bench.keys.drawing) == 1
    assert (backlog(client, bench.keys).appended, bench.admission.lease(2, 0).indices) == (2, tuple(indices[:2]))
    client.close()


def test_a_group_that_redis_still_has_is_not_claimed(bench: Bench) -> None:
    """Its first answer was lost, so that the server counts it later than Redis does."""
    reader = bench.reader()
    bench.append(1)
    assert bench.writer.append(0, "t:0", b"x") is Appended.DUPLICATE
    bench.client.hset(bench.keys.acknowledged, "s0", 0)
    assert bench.writer.confirm() == 0
    assert reader.claims() == []

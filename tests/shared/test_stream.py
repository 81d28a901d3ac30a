"""The stream on a real Redis: what was acknowledged stays until it is deleted, whoever dies."""

import pytest

from shared.admission import Admission, Credit
from shared.config import Config, load_config
from shared.control import ControlState, Latest
from shared.errors import FencedError, OutOfMemoryError, StreamError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.redis_client import Client, connect, server_version
from shared.stream import Appended, Deleted, GroupReader, GroupWriter, backlog
from tests.conftest import RedisServer

CREDIT = Credit(versions=2, groups_per_version=500, max_bytes=2**30, group_bytes=1_000, lease_s=30)


class Bench:
    """A learner's and a server's ends of one stream."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.control = ControlState(client, keys)
        self.epoch = self.control.take_epoch()
        self.control.announce(self.epoch, Latest(0, -1, 0), 0, [])
        self.admission = Admission(client, keys, "s0", CREDIT)
        self.writer = GroupWriter(client, keys, "s0")

    def reader(self, *finished: tuple[int, int]) -> GroupReader:
        reader = GroupReader(self.client, self.keys, self.epoch)
        reader.open(Intervals(finished))
        return reader

    def append(self, count: int, body: bytes = b"x") -> list[int]:
        indices = list(self.admission.lease(count, 0).indices)
        for index in indices:
            assert self.writer.append(index, f"t:{index}", body) is Appended.STORED
        return indices


@pytest.fixture
def bench(client: Client, keys: Keys) -> Bench:
    return Bench(client, keys)


def test_groups_arrive_in_order_with_their_bodies_and_failures_with_their_reason(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(2, b"\x00\xff")
    (index,) = bench.admission.lease(1, 0).indices
    bench.writer.append_failure(index, "t:2", "scorer timed out")
    entries = reader.read(10)
    assert [(e.prompt_index, e.group_id, e.payload, e.failure) for e in entries] == [
        (0, "t:0", b"\x00\xff", ""),
        (1, "t:1", b"\x00\xff", ""),
        (2, "t:2", b"", "scorer timed out"),
    ]
    assert reader.read(10) == []


def test_an_entry_says_which_version_was_the_latest_when_it_was_appended(bench: Bench) -> None:
    reader = bench.reader()
    (first, second) = bench.admission.lease(2, 0).indices
    bench.writer.append(first, f"t:{first}", b"x")
    bench.control.announce(bench.epoch, Latest(7, 0, 1), 0, [])
    bench.writer.append_failure(second, f"t:{second}", "scorer timed out")
    stranger = {"group_id": "t:1", "prompt_index": "1", "payload": b"x"}
    bench.client.xadd(bench.keys.groups, stranger)
    bench.client.xadd(bench.keys.groups, {**stranger, "latest": "-3"})
    assert [entry.latest for entry in reader.read(10)] == [0, 7, -1, -1]


def test_who_need_not_wait_gets_what_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stream.BLOCK_S", 3600.0)  # whoever waits, waits for ever
    reader = bench.reader()
    assert reader.read(10, wait=False) == []
    bench.append(2)
    assert len(reader.read(10, wait=False)) == 2


def test_an_append_that_is_repeated_is_stored_once(bench: Bench) -> None:
    bench.append(1)
    assert bench.writer.append(0, "t:0", b"x") is Appended.DUPLICATE
    assert backlog(bench.client, bench.keys).groups == 1


def test_a_learner_that_died_gets_everything_again_that_it_had_not_deleted(bench: Bench) -> None:
    first = bench.reader()
    bench.append(5)
    read = first.read(3)
    first.delete([read[0].entry_id])
    second = bench.reader((0, 0))
    assert [e.prompt_index for e in second.read(2)] == [1, 2]  # its own pending ones first
    assert [e.prompt_index for e in second.read(9)] == [3, 4]
    assert second.read(9) == []


def test_opening_rebuilds_the_credits_from_ledger_stream_and_leases(bench: Bench) -> None:
    """Finished 0, 1 and 4; 2 and 5 in the stream; 6 leased; 3 nowhere: to be given out again."""
    bench.reader()
    bench.append(6, b"abc")
    (leased,) = bench.admission.lease(1, 0).indices
    entries = {e.prompt_index: e.entry_id for e in bench.reader().read(10)}
    bench.client.xdel(bench.keys.groups, entries[3], entries[0], entries[4])
    bench.client.set(bench.keys.bytes, 999)
    reader = bench.reader((0, 1), (4, 4))
    state = backlog(bench.client, bench.keys)
    assert (leased, state.groups, state.bytes, state.unapplied, state.leased) == (6, 3, 9, 2, 1)
    assert bench.admission.lease(3, 0).indices == (3, 7, 8)
    assert [e.prompt_index for e in reader.read(10)] == [1, 2, 5]


def test_a_flushed_redis_is_filled_from_the_ledger(bench: Bench) -> None:
    bench.reader()
    bench.append(3)
    bench.client.delete(*bench.client.keys(f"trustbatch:{{{bench.keys.run_id}}}:*"))
    fresh = Bench(bench.client, bench.keys)
    fresh.reader((0, 4), (6, 9))
    assert fresh.admission.lease(3, 0).indices == (5, 10, 11)


def test_a_lost_consumer_group_is_said_and_opening_again_reads_from_the_start(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(2)
    assert len(reader.read(10)) == 2
    bench.client.xgroup_destroy(bench.keys.groups, "learner")
    with pytest.raises(StreamError, match="NOGROUP"):
        reader.read(10)
    reader.open(Intervals())
    assert [e.prompt_index for e in reader.read(10)] == [0, 1]


def test_a_fenced_learner_can_neither_delete_nor_release_nor_publish(bench: Bench) -> None:
    reader = bench.reader()
    bench.append(1)
    (entry,) = reader.read(1)
    bench.control.take_epoch()
    with pytest.raises(FencedError, match="another learner has taken over"):
        reader.delete([entry.entry_id])
    with pytest.raises(FencedError):
        reader.release([0])
    with pytest.raises(FencedError):
        bench.control.announce(bench.epoch, Latest(1, 0, 1), 0, [])
    with pytest.raises(FencedError):
        reader.open(Intervals())
    assert backlog(bench.client, bench.keys).groups == 1


def test_versions_only_grow(bench: Bench) -> None:
    bench.control.announce(bench.epoch, Latest(5, 0, 9), 0, [])
    with pytest.raises(StreamError, match="version 5 is not above the latest, 5"):
        bench.control.announce(bench.epoch, Latest(5, 4, 10), 0, [])
    assert bench.control.latest() == Latest(5, 0, 9)


@pytest.mark.parametrize(
    "fields",
    [
        {"group_id": "x"},
        {"prompt_index": "9" * 30, "group_id": "t:0", "payload": "x"},
        {"group_id": "t:7", "prompt_index": "7", "payload": "never leased"},
        {"group_id": "t:1", "prompt_index": "9" * 12, "payload": "far beyond"},
        {"something": "else", "entirely": "", "a": "b", "c": "d"},
    ],
)
def test_what_somebody_else_put_into_the_stream_harms_nobody(bench: Bench, fields: dict[str, str]) -> None:
    """It has no index, costs no byte credit, can be deleted, and does not move the cursor."""
    reader = bench.reader()
    bench.append(2, b"abc")
    bench.client.xadd(bench.keys.groups, fields)
    reader = bench.reader()
    entries = reader.read(10)
    assert [e.prompt_index for e in entries] in ([0, 1, -1], [0, 1, 7])
    reader.delete([e.entry_id for e in entries])
    after = backlog(bench.client, bench.keys)
    assert (after.groups, after.bytes) == (0, 0)
    assert max(bench.admission.lease(5, 0).indices) < 20


def test_at_maxmemory_appends_wait_while_acknowledging_heartbeats_and_leases_go_on(own_redis: RedisServer) -> None:
    config: Config = load_config(None, [f"redis.url={own_redis.url}", "run.id=full"], {})
    client = connect(config)
    bench = Bench(client, Keys("full"))
    reader = bench.reader()
    bench.append(50, b"x" * 10_000)
    entries = reader.read(25)
    (lease,) = bench.admission.lease(1, 0).indices
    client.config_set("maxmemory", client.info("memory")["used_memory"])
    with pytest.raises(OutOfMemoryError, match="maxmemory"):
        bench.writer.append(lease, "t:50", b"y" * 10_000)
    with pytest.raises(OutOfMemoryError):
        bench.admission.lease(1, 0)
    assert bench.admission.renew() == 1
    bench.control.beat("rollout:s0", {"state": "waiting for memory"}, 30)
    bench.control.announce(bench.epoch, Latest(1, 0, 1), 0, [e.prompt_index for e in entries])
    assert reader.delete([e.entry_id for e in entries]) == Deleted(250_000, 0)
    assert bench.writer.append(lease, "t:50", b"y" * 10_000) is Appended.STORED
    client.close()


def test_what_redis_acknowledged_survives_its_sigkill(own_redis: RedisServer) -> None:
    config: Config = load_config(None, [f"redis.url={own_redis.url}", "run.id=durable"], {})
    client = connect(config)
    bench = Bench(client, Keys("durable"))
    bench.reader()
    bench.append(20)
    own_redis.kill()
    with pytest.raises(StreamError, match="Redis cannot be reached"):
        backlog(client, bench.keys)
    own_redis.start()
    assert backlog(client, bench.keys).appended == 20
    assert [e.prompt_index for e in bench.reader().read(99)] == list(range(20))
    client.close()


def test_the_server_s_version_is_known(client: Client) -> None:
    assert server_version(client) >= (6, 2)


def test_the_age_of_the_oldest_group_is_that_of_the_first_one_that_was_never_read(bench: Bench) -> None:
    reader = bench.reader()
    assert reader.oldest_s() is None
    bench.append(3)
    aged = reader.oldest_s()
    assert aged is not None
    assert 0 <= aged < 60
    reader.read(1)
    second = bench.client.xrange(bench.keys.groups)[1][0]
    seconds, micros = bench.client.time()
    now = reader.oldest_s()
    assert now is not None
    assert now >= seconds + micros / 1e6 - int(second.split(b"-")[0]) / 1000 - 0.002
    reader.read(10)
    assert reader.oldest_s() is None

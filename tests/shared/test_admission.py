"""Admission on a real Redis: two credits, leases that return, prompts neither skipped nor doubled."""

import time
from dataclasses import replace

import pytest

from shared.admission import Admission, Credit
from shared.control import ControlState, Latest
from shared.intervals import Intervals
from shared.keys import Keys
from shared.lag import Asked
from shared.redis_client import Client
from shared.stream import Appended, GroupReader, GroupWriter, backlog
from shared.wishes import Wishes

CREDIT = Credit(versions=3, groups_per_version=2, max_bytes=10_000, group_bytes=1_000, lease_s=30)


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


@pytest.fixture
def epoch(control: ControlState) -> int:
    """A learner that has published its starting model."""
    number = control.take_epoch()
    control.announce(number, Latest(0, -1, 0), 0, [])
    return number


@pytest.fixture
def reader(client: Client, keys: Keys, epoch: int) -> GroupReader:
    reader = GroupReader(client, keys, epoch)
    reader.open(Intervals())
    return reader


def server(client: Client, keys: Keys, name: str = "s0", credit: Credit = CREDIT) -> Admission:
    return Admission(client, keys, name, credit)


def test_nothing_is_given_before_the_first_version(client: Client, keys: Keys) -> None:
    grant = server(client, keys).lease(4, served_version=0)
    assert (grant.indices, grant.reason) == ((), "no published version yet")


def test_servers_share_the_prompts_without_overlap_up_to_the_staleness_credit(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    a, b = server(client, keys, "a"), server(client, keys, "b")
    first, second, third = a.lease(2, 0), b.lease(3, 0), a.lease(5, 0)
    assert (first.indices, first.reason) == ((0, 1), "")
    assert (second.indices, second.reason) == ((2, 3, 4), "")
    assert (third.indices, third.reason) == ((5,), "staleness credit")


def test_credit_returns_only_with_the_publish_that_the_groups_went_into(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    a, writer = server(client, keys), GroupWriter(client, keys, "s0")
    for index in a.lease(6, 0).indices:
        assert writer.append(index, f"t:{index}", b"x") is Appended.STORED
    assert a.lease(1, 0).indices == ()
    control.announce(epoch, Latest(1, 0, 1), 0, [0, 1, 2])
    assert a.lease(6, served_version=1).indices == (6, 7, 8)


def test_a_dropped_group_gives_its_credit_back_at_once(client: Client, keys: Keys, reader: GroupReader) -> None:
    a, writer = server(client, keys), GroupWriter(client, keys, "s0")
    for index in a.lease(6, 0).indices:
        writer.append(index, f"t:{index}", b"x")
    reader.release([4])
    assert a.lease(6, 0).indices == (6,)


def test_byte_credit_counts_what_redis_holds_and_a_bound_for_every_lease(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    tight = replace(CREDIT, groups_per_version=50, max_bytes=3_500)
    a, writer = server(client, keys, credit=tight), GroupWriter(client, keys, "s0")
    grant = a.lease(9, 0)
    assert (grant.indices, grant.reason) == ((0, 1, 2), "byte credit")
    for index in grant.indices:
        writer.append(index, f"t:{index}", b"x" * 900)
    assert a.lease(9, 0).indices == ()  # 2,700 held, 800 left
    entries = reader.read(10)
    reader.release([e.prompt_index for e in entries])
    assert a.lease(9, 0).reason == "byte credit"  # applied, but not yet deleted
    assert reader.delete([e.entry_id for e in entries]).bytes == 2_700
    assert a.lease(9, 0).indices == (3, 4, 5)


def test_every_version_that_a_server_is_behind_costs_it_a_version_s_worth_of_credit(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    """Its next group would be that much staler already: the bound on staleness would not hold."""
    for version in (1, 2, 3):
        control.announce(epoch, Latest(version, version - 1, version), 0, [])
    a = server(client, keys)
    assert a.lease(9, served_version=0).reason == "weights are behind"
    assert a.lease(9, served_version=1).indices == (0, 1)
    assert a.lease(9, served_version=2).indices == (2, 3)
    assert a.lease(9, served_version=3).indices == (4, 5)


def test_with_max_staleness_0_nothing_is_drawn_before_the_latest_version_is_served(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    a = server(client, keys, credit=replace(CREDIT, versions=1))
    control.announce(epoch, Latest(1, 0, 1), 0, [])
    assert a.lease(1, served_version=0).reason == "weights are behind"
    assert a.lease(9, served_version=1).indices == (0, 1)


def test_a_lag_that_was_asked_for_costs_nothing_and_is_counted_along_the_ancestry(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    """After a restore the numbers jump: 9 is the child of 2."""
    for version, parent in ((1, 0), (2, 1), (9, 2), (10, 9)):
        control.announce(epoch, Latest(version, parent, version), 0, [])
    lagging, lag = server(client, keys, credit=replace(CREDIT, versions=1)), Asked(2)
    assert lagging.lease(9, 1, lag).reason == "weights are behind"
    assert lagging.lease(9, 7, lag).reason == "weights are behind"  # of no known ancestor
    assert lagging.lease(9, 9, lag).reason == "weights are ahead"
    assert lagging.lease(9, 10, lag).reason == "weights are ahead"
    assert lagging.lease(1, 2, lag).indices == (0,)


def test_a_lag_beyond_the_oldest_version_asks_for_the_oldest(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    a = server(client, keys, credit=replace(CREDIT, versions=1))
    assert a.lease(1, 0, Asked(5)).indices == (0,)
    control.announce(epoch, Latest(1, 0, 1), 0, [])
    assert a.lease(9, 1, Asked(5)).reason == "weights are ahead"
    assert a.lease(1, 0, Asked(5)).indices == (1,)
    control.announce(epoch, Latest(2, 1, 2), 1, [])  # 0 is not kept any more
    assert a.lease(9, 0, Asked(5)).reason == "weights are behind"


def test_a_lag_ends_before_a_gap_in_the_store(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    """Versions up to 4 are kept for a checkpoint, 5 and 6 are gone, 7 to 10 are kept: 6 is never asked for."""
    for version in range(1, 11):
        control.announce(epoch, Latest(version, version - 1, version, oldest=7 if version == 10 else -1), 0, [])
    assert control.latest() == Latest(10, 9, 10, oldest=7)
    assert control.descent()[7] == -1
    assert control.parents()[7] == 6, "a learner that restores still sees the whole ancestry"
    a = server(client, keys, credit=replace(CREDIT, versions=1))
    assert a.lease(9, 4, Asked(6)).reason == "weights are behind"
    assert a.lease(9, 8, Asked(6)).reason == "weights are ahead"
    assert a.lease(1, 7, Asked(6)).indices == (0,)
    assert a.lease(1, 8, Asked(2)).indices == (1,)


def test_a_version_that_a_restore_published_again_is_no_publish_of_its_own(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    """20 has the weights of 2, and 21 is one publish after both."""
    for version, parent in ((1, 0), (2, 1), (3, 2), (20, 2), (21, 20)):
        control.announce(epoch, Latest(version, parent, version), 0, [], copy=version == 20)
    assert control.parents() == {0: -1, 1: 0, 2: 1, 3: 2, 20: 2, 21: 20}
    assert control.descent() == {0: -1, 1: 0, 2: 1, 3: 2, 20: 1, 21: 20}
    a = server(client, keys, credit=replace(CREDIT, versions=1, groups_per_version=9))
    given = {
        (lag, version)
        for lag in range(5)
        for version in (0, 1, 2, 3, 20, 21)
        if a.lease(1, version, Asked(lag)).indices
    }
    assert given == {(0, 21), (1, 20), (1, 2), (2, 1), (3, 0), (4, 0)}


def test_a_lease_is_for_the_lag_that_is_wanted_when_it_is_taken(
    client: Client, keys: Keys, control: ControlState, epoch: int, reader: GroupReader
) -> None:
    a = server(client, keys)
    assert a.lease(1, 0, Asked(0, wish=b"")).indices == (0,)
    control.wish_lag(b"4", "operator")
    assert a.lease(1, 0, Asked(0, wish=b"")).reason == "another lag is asked for"
    assert a.lease(1, 0, Asked(4, wish=b"4")).indices == (1,)
    assert a.lease(1, 0).indices == (2,), "whoever follows no wish"
    assert a.lease(1, 0, Asked(4, wish=b"4", version=0)).indices == (3,)
    control.announce(epoch, Latest(1, 0, 1), 0, [])
    assert a.lease(1, 0, Asked(4, wish=b"4", version=0)).reason == "another lag is asked for"
    assert a.lease(1, 0, Asked(4, wish=b"4")).indices == (4,)


def test_an_operator_and_the_end_of_the_run_stop_admission(
    client: Client, keys: Keys, control: ControlState, reader: GroupReader
) -> None:
    control.set_paused(True)
    assert server(client, keys).lease(1, 0).reason == "paused by the operator"
    control.set_paused(True, by="controller")
    assert server(client, keys).lease(1, 0).reason == "paused by the controller"
    Wishes(client, keys).drain("s0", "operator", True)
    assert server(client, keys).lease(1, 0).reason == "draining", "a pause does not hide a drain"
    assert server(client, keys, "s1").lease(1, 0).reason == "paused by the controller"
    Wishes(client, keys).drain("s0", "operator", False)
    control.set_paused(False)
    assert server(client, keys).lease(1, 0).indices == (0,)
    control.set_phase("finished")
    assert server(client, keys).lease(1, 0).reason == "finished"


def test_what_a_server_gives_back_is_given_out_first_and_its_failures_are_counted(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    a, b = server(client, keys, "a"), server(client, keys, "b")
    a.lease(3, 0)
    assert b.give_back([1]) == [0]  # not b's to give
    assert a.give_back([1, 2], failed=True) == [1, 1]
    assert b.lease(3, 0).indices == (1, 2, 3)
    assert b.give_back([1], failed=True) == [2]
    assert a.give_back([]) == []


def wait_for_leases_to_run_out(client: Client, keys: Keys, seconds: float) -> None:
    """Leases run out by Redis's clock: poll it."""
    deadline = time.monotonic() + 60
    while True:
        now = client.time()
        if all(
            score < now[0] * 1000 + now[1] / 1000 for _, score in client.zrange(keys.leases, 0, -1, withscores=True)
        ):
            return
        assert time.monotonic() < deadline
        client.set(keys.clock, now[0] * 1000 + now[1] // 1000)  # the other servers' requests keep the clock going
        time.sleep(0.02)


def test_leases_of_a_dead_server_return_and_a_late_append_of_it_is_refused(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    short = replace(CREDIT, lease_s=0.3)
    dead, alive = server(client, keys, "dead", short), server(client, keys, "alive", short)
    assert dead.lease(2, 0).indices == (0, 1)
    wait_for_leases_to_run_out(client, keys, 0.3)
    assert alive.lease(2, 0).indices == (0, 1)
    assert GroupWriter(client, keys, "dead").append(0, "t:0", b"x") is Appended.LEASE_LOST
    assert GroupWriter(client, keys, "alive").append(0, "t:0", b"x") is Appended.STORED
    assert backlog(client, keys).appended == 1


def test_renewing_keeps_a_lease(client: Client, keys: Keys, reader: GroupReader) -> None:
    a = server(client, keys)
    a.lease(2, 0)
    before = client.zrange(keys.leases, 0, -1, withscores=True)
    time.sleep(0.01)
    assert a.renew() == 2
    after = client.zrange(keys.leases, 0, -1, withscores=True)
    assert all(new > old for (_, old), (_, new) in zip(before, after, strict=True))
    assert server(client, keys, "other").renew() == 0


def test_leases_of_the_dead_return_although_the_living_only_renew(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    """Renewals keep the clock going: without them, rare requests would look like a silence of Redis."""
    short = replace(CREDIT, lease_s=0.4)
    dead, alive = server(client, keys, "dead", short), server(client, keys, "alive", short)
    assert dead.lease(3, 0).indices == (0, 1, 2)
    alive.lease(1, 0)
    deadline = time.monotonic() + 60
    next_request = 0.0
    while True:
        alive.renew()
        if time.monotonic() >= next_request:
            if 0 in alive.lease(1, 0).indices:
                break
            next_request = time.monotonic() + 0.35
        assert time.monotonic() < deadline, "the dead server's leases did not return"
        time.sleep(0.05)


def test_after_a_silence_of_redis_everybody_gets_one_lease_time_of_grace(
    client: Client, keys: Keys, reader: GroupReader
) -> None:
    """Nobody could renew while Redis was away: that must not cost a living server its leases."""
    short = replace(CREDIT, lease_s=0.2)
    a, b = server(client, keys, "a", short), server(client, keys, "b", short)
    a.lease(2, 0)
    now = client.time()[0] * 1000
    for index in (0, 1):
        client.zadd(keys.leases, {str(index): now - 60_000})
    client.set(keys.clock, now - 60_000)  # the last request that went through
    assert b.lease(2, 0).indices == (2, 3)
    assert a.renew() == 2
    assert GroupWriter(client, keys, "a").append(0, "t:0", b"x") is Appended.STORED

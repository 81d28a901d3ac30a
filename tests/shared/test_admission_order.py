"""Staleness credit while groups overtake each other, on a real Redis: counted only, and in order."""

from __future__ import annotations

import random

import pytest

from shared.admission import Admission, Credit
from shared.control import ControlState, Latest
from shared.intervals import Intervals
from shared.keys import Keys
from shared.redis_client import Client
from shared.stream import GroupReader, GroupWriter

MAX_STALENESS, PER_VERSION = 2, 3
CREDIT = Credit(MAX_STALENESS + 1, PER_VERSION, max_bytes=10**9, group_bytes=1_000, lease_s=30)


CAPACITY = 2  # groups that a server draws at once
SPEEDS = (0.9, 0.9, 0.1)  # appends of each in a round


class Fleet:
    """Servers of different speed, and a learner that takes what comes in the order in which it comes."""

    def __init__(self, client: Client, keys: Keys, in_order: bool, speeds: tuple[float, ...], seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.control = ControlState(client, keys)
        self.epoch = self.control.take_epoch()
        self.in_order = in_order
        self.latest = -1
        self.speeds = speeds
        self.servers = [Admission(client, keys, f"s{i}", CREDIT) for i in range(len(speeds))]
        self.writers = [GroupWriter(client, keys, f"s{i}") for i in range(len(speeds))]
        self.drawing: list[dict[int, int]] = [{} for _ in speeds]  # prompt index -> version that draws it
        self.stream: list[tuple[int, int]] = []
        self.staleness: list[int] = []  # of every group, when it was trained on
        GroupReader(client, keys, self.epoch).open(Intervals())
        self.publish([])

    def publish(self, applied: list[int]) -> None:
        self.latest += 1
        latest = Latest(self.latest, self.latest - 1, self.latest, depth=self.latest, in_order=self.in_order)
        self.control.announce(self.epoch, latest, max(0, self.latest - 20), applied)

    def lease(self, i: int, want: int, behind: int = 0) -> str:
        """A server asks that serves a version so far behind the latest."""
        served = max(0, self.latest - behind)
        grant = self.servers[i].lease(want, served)
        self.drawing[i] |= dict.fromkeys(grant.indices, served)
        return grant.reason

    def append(self, i: int, index: int) -> None:
        self.stream.append((index, self.drawing[i].pop(index)))
        self.writers[i].append(index, f"t:{index}", b"x")

    def train(self) -> None:
        while len(self.stream) >= PER_VERSION:
            batch, self.stream = self.stream[:PER_VERSION], self.stream[PER_VERSION:]
            self.staleness += [self.latest - version for _, version in batch]
            self.publish([index for index, _ in batch])

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            for i, speed in enumerate(self.speeds):
                if len(self.drawing[i]) < CAPACITY:
                    self.lease(i, CAPACITY - len(self.drawing[i]), behind=self.random.choice((0, 0, 1)))
                if self.drawing[i] and self.random.random() < speed:
                    self.append(i, self.random.choice(list(self.drawing[i])))
            if self.random.random() < 0.7:
                self.train()


@pytest.mark.parametrize("seed", range(3))
def test_in_order_no_group_comes_too_late_however_servers_overtake_each_other(
    client: Client, keys: Keys, seed: int
) -> None:
    fleet = Fleet(client, keys, in_order=True, speeds=SPEEDS, seed=seed)
    fleet.run(300)
    assert max(fleet.staleness) == MAX_STALENESS, "the credit is used up to the bound"
    assert len(fleet.staleness) > 60, "and nobody waits for ever"


def test_counted_only_a_slow_server_s_groups_are_overtaken_until_they_are_too_stale(client: Client, keys: Keys) -> None:
    fleet = Fleet(client, keys, in_order=False, speeds=SPEEDS)
    fleet.run(150)
    assert max(fleet.staleness) > MAX_STALENESS


def test_the_longest_lease_is_waited_for_when_the_groups_that_are_out_could_make_it_too_stale(
    client: Client, keys: Keys
) -> None:
    fleet = Fleet(client, keys, in_order=True, speeds=(1.0, 1.0))
    fleet.lease(0, 1)
    [slow] = fleet.drawing[0]
    for _ in range(3):  # eight others are out with it, then less for every version
        fleet.lease(1, 9)
        for index in list(fleet.drawing[1]):
            fleet.append(1, index)
        fleet.train()
    assert (fleet.latest, len(fleet.stream)) == (2, 2), "the third version cannot be published without it"
    assert fleet.lease(1, 1) == "a group in flight"
    fleet.append(0, slow)
    fleet.train()
    assert fleet.staleness[-1] == MAX_STALENESS
    assert fleet.lease(1, 1) == ""


def test_a_lease_that_is_given_back_holds_nobody_up(client: Client, keys: Keys) -> None:
    fleet = Fleet(client, keys, in_order=True, speeds=(1.0, 1.0))
    fleet.lease(0, 1)
    for _ in range(3):
        fleet.lease(1, 9)
        for index in list(fleet.drawing[1]):
            fleet.append(1, index)
        fleet.train()
    assert fleet.lease(1, 1) == "a group in flight"
    fleet.servers[0].give_back(list(fleet.drawing[0]))
    assert fleet.lease(1, 1) == ""
    assert client.zcard(keys.drawing) == 1, "leases that have ended are forgotten"


def test_what_is_drawn_is_remembered_for_as_long_as_its_lease_and_no_longer(client: Client, keys: Keys) -> None:
    fleet = Fleet(client, keys, in_order=False, speeds=SPEEDS)

    def remembered() -> list[bytes]:
        drawing: list[bytes] = client.zrange(keys.drawing, 0, -1)
        assert set(drawing) == set(client.zrange(keys.leases, 0, -1))
        return drawing

    fleet.run(30)
    assert 0 < len(remembered()) <= CAPACITY * len(SPEEDS), "what was appended is not remembered"
    before, server = len(remembered()), max(range(len(SPEEDS)), key=lambda i: len(fleet.drawing[i]))
    fleet.servers[server].give_back(list(fleet.drawing[server])[:1])
    assert len(remembered()) == before - 1
    client.zadd(keys.leases, dict.fromkeys(client.zrange(keys.leases, 0, -1), 1))
    fleet.servers[2].lease(0, fleet.latest)
    assert remembered() == [], "they ran out"


def test_the_learner_lowers_the_credit_with_what_it_announces(client: Client, keys: Keys) -> None:
    fleet = Fleet(client, keys, in_order=False, speeds=(1.0,))
    fleet.control.announce(fleet.epoch, Latest(1, 0, 1, depth=1, credit=1), 0, [])
    fleet.latest = 1
    assert fleet.lease(0, 9) == "staleness credit"
    assert len(fleet.drawing[0]) == PER_VERSION
    fleet.control.announce(fleet.epoch, Latest(2, 1, 2, depth=2, credit=99), 0, [])
    fleet.latest = 2
    fleet.lease(0, 99)
    assert len(fleet.drawing[0]) == (MAX_STALENESS + 1) * PER_VERSION, "and cannot raise it above max_staleness"

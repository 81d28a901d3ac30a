"""Who is sent a version, and what becomes of it when somebody is away, dies or refuses. Real Redis, real gloo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from learner.transfer.channel import LEFT_OUT_VERSIONS, Channel
from learner.transfer.senders import GlooSender
from shared.config.transfer import TransferConfig
from shared.control import ControlState
from shared.errors import FencedError
from shared.keys import Keys
from shared.log import configure
from shared.redis_client import Client
from shared.transfer import Transfers
from tests.learner.transfer.peer import Fault, Peer

pytestmark = pytest.mark.system  # real process groups

SHAPES = [(3, 5), (2**18,), (), (7,), (2**18, 2), (1,)]
MakePeer = Callable[[str], Peer]


def tensors(version: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(version)
    return [(f"t{i}", torch.randn(shape, generator=generator)) for i, shape in enumerate(SHAPES)]


@pytest.fixture
def peer(client: Client, keys: Keys) -> Iterator[MakePeer]:
    """Makes peers, and ends them."""
    peers: list[Peer] = []

    def make(server_id: str) -> Peer:
        peers.append(Peer(client, keys, server_id, SHAPES))
        return peers[-1]

    yield make
    for each in peers:
        each.stop()


@pytest.fixture
def channel(client: Client, keys: Keys) -> Iterator[Channel]:
    control = ControlState(client, keys)
    config = TransferConfig(kind="gloo", ready_s=0.4, deadline_s=2.0)
    log = configure(keys.run_id, "learner", "error")
    made = Channel(config, control, Transfers(client, keys), GlooSender(), control.take_epoch(), log)
    yield made
    made.close()


def send(channel: Channel, version: int) -> set[str]:
    return channel.send(version, lambda: tensors(version))


def check(peer: Peer, version: int) -> None:
    assert peer.versions[-1] == version, peer.why
    for found, (name, sent) in zip(peer.tensors, tensors(version), strict=True):
        assert torch.equal(found, sent), name


def events(client: Client, keys: Keys) -> list[str]:
    return [row["text"] for row in ControlState(client, keys).events()]


def not_called(client: Client, keys: Keys) -> bool:
    """True once no call is there any more; a withdrawn one stays for a millisecond."""
    deadline = time.monotonic() + 1.0
    while client.exists(keys.transfer):
        if time.monotonic() > deadline:
            return False
    return True


def test_every_member_gets_every_tensor_and_the_group_is_kept_while_the_members_are(
    channel: Channel, peer: MakePeer, client: Client, keys: Keys
) -> None:
    first, second = peer("r0"), peer("r1")
    for version in (1, 2, 3):
        assert send(channel, version) == {"r0", "r1"}
        check(first, version)
        check(second, version)
    assert first.groups == second.groups == [1]
    assert not_called(client, keys), "who comes now must not follow what is over"
    third = peer("r2")
    assert send(channel, 4) == {"r0", "r1", "r2"}
    for each in (first, second, third):
        check(each, 4)
    assert (first.groups, third.groups) == ([1, 2], [2])
    assert events(client, keys) == []


def test_who_is_not_ready_is_left_out_of_this_version_only(channel: Channel, peer: MakePeer) -> None:
    first, busy = peer("r0"), peer("r1")
    busy.fault = "absent"
    assert send(channel, 1) == {"r0"}
    check(first, 1)
    busy.fault = ""
    assert send(channel, 2) == {"r0", "r1"}
    check(busy, 2)


@pytest.mark.parametrize("fault", ["vanishes", "breaks off"])
def test_a_death_on_the_way_ends_the_transfer_for_all_in_time_and_only_the_dead_is_left_out(
    channel: Channel, peer: MakePeer, client: Client, keys: Keys, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    survivor, victim = peer("r0"), peer("r1")
    assert send(channel, 1) == {"r0", "r1"}
    victim.fault = fault
    with monkeypatch.context() as impatient:
        impatient.setattr(channel, "_config", channel._config.model_copy(update={"deadline_s": 0.3, "ready_s": 0.2}))
        assert "r1" not in send(channel, 2)
    [text] = events(client, keys)
    assert "version 2 goes by files" in text
    assert text.endswith(f"left out of the next {LEFT_OUT_VERSIONS} versions: r1")
    assert (list(channel.servers(3).members), channel.servers(3).others) == (["r0"], ("r1",))
    assert send(channel, 3) == {"r0"}
    check(survivor, 3)
    victim.fault = ""
    assert send(channel, 2 + LEFT_OUT_VERSIONS) == {"r0", "r1"}
    check(victim, 2 + LEFT_OUT_VERSIONS)


def test_a_refusal_is_said_with_its_reason_and_nobody_is_left_out_for_it(
    channel: Channel, peer: MakePeer, client: Client, keys: Keys
) -> None:
    peer("r0").fault = "refuses"
    assert send(channel, 1) == set()
    assert events(client, keys) == ["version 1 goes by files: r0: its checksum differs"]
    assert not_called(client, keys)
    assert list(channel.servers(2).members) == ["r0"]


def test_a_fenced_learner_cannot_call_anybody(channel: Channel, peer: MakePeer, client: Client, keys: Keys) -> None:
    served = peer("r0")
    ControlState(client, keys).take_epoch()
    with pytest.raises(FencedError):
        send(channel, 1)
    assert (served.versions, served.groups) == ([], [])
    assert client.exists(keys.transfer) == 0


@pytest.mark.parametrize(
    "changes",
    [{"transfer": "nccl"}, {"transfer": ""}, {"ranks": 0}, {"ranks": 65}, {"lag": 2}, {"policy_version": -1}],
)
def test_a_server_that_lags_has_nothing_yet_or_speaks_another_tongue_needs_files(
    channel: Channel, client: Client, keys: Keys, changes: dict[str, object]
) -> None:
    status = {"kind": "rollout", "lag": 0, "policy_version": 0, "transfer": "gloo", "ranks": 1, **changes}
    ControlState(client, keys).beat("rollout:r0", status, 60)
    assert (channel.servers(1).members, channel.servers(1).others) == ({}, ("r0",))
    assert send(channel, 1) == set()

"""What is said about transfers, on a real Redis, and what of it is taken for true."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import redis

from shared.config import load_config
from shared.control import ControlState
from shared.errors import FencedError
from shared.keys import Keys
from shared.redis_client import Client, connect
from shared.transfer import MAX_SERVERS, Answer, Call, Transfers, read_answer, read_call
from tests.conftest import RedisServer

INVITE = Call(3, 1, "invite", 7, invited=["r0", "r1"])
GO = Call(3, 2, "go", 7, ranks={"r0": 1, "r1": 3}, group=1, world_size=4, host="10.0.0.1", port=29500)


@pytest.fixture
def transfers(client: Client, keys: Keys) -> Transfers:
    return Transfers(client, keys)


def test_a_call_is_heard_until_it_runs_out_and_forgets_the_answers_to_the_one_before(
    transfers: Transfers, client: Client, keys: Keys
) -> None:
    epoch = ControlState(client, keys).take_epoch()
    first, second = replace(INVITE, epoch=epoch), replace(GO, epoch=epoch)
    transfers.call(first, ttl_s=60)
    assert transfers.current() == first
    transfers.answer("r0", Answer(epoch, 1, "here"))
    transfers.answer("r1", Answer(epoch, 99, "here"))
    assert transfers.answers(first, ["r0", "r1", "r2"]) == {"r0": Answer(epoch, 1, "here")}
    transfers.call(second, ttl_s=60)
    assert transfers.current() == second
    assert transfers.answers(first, ["r0"]) == {}
    assert 0 < client.pttl(keys.transfer) <= 60_000


def test_a_learner_that_was_replaced_can_call_nobody(transfers: Transfers, client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    old, new = control.take_epoch(), control.take_epoch()
    with pytest.raises(FencedError):
        transfers.call(replace(GO, epoch=old), ttl_s=60)
    assert transfers.current() is None
    transfers.call(replace(GO, epoch=new), ttl_s=60)
    assert transfers.current() == replace(GO, epoch=new)


def test_the_newest_wish_for_files_is_heard_until_it_is_satisfied(transfers: Transfers) -> None:
    assert transfers.wanted() == -1
    transfers.want(4)
    transfers.want(6)
    assert transfers.wanted() == 6
    transfers.satisfied()
    assert transfers.wanted() == -1


def test_a_server_answers_and_asks_for_files_while_redis_is_full(own_redis: RedisServer) -> None:
    client, keys = connect(load_config(None, [f"redis.url={own_redis.url}"], {})), Keys("full")
    transfers, epoch = Transfers(client, keys), ControlState(client, keys).take_epoch()
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("anything", 1)
    call = replace(INVITE, epoch=epoch)
    transfers.call(call, ttl_s=60)
    transfers.answer("r0", Answer(epoch, 1, "here"))
    transfers.want(7)
    assert transfers.answers(call, ["r0"]) == {"r0": Answer(epoch, 1, "here")}
    assert transfers.wanted() == 7
    client.close()


def encoded(value: Any, **changes: Any) -> bytes:
    return json.dumps({**asdict(value), **changes}).encode()


def test_what_was_said_is_read_back() -> None:
    assert read_call(encoded(INVITE)) == INVITE
    assert read_call(encoded(GO)) == GO
    refused = Answer(3, 2, "failed", "no", touched=True)
    assert read_answer(encoded(refused)) == refused
    assert read_answer(encoded(refused, why="x" * 5000)) == replace(refused, why="x" * 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": -1},
        {"number": 2**62},
        {"policy_version": "7"},
        {"policy_version": True},
        {"stage": "gone"},
        {"invited": "r0"},
        {"invited": [1]},
        {"invited": ["r"] * (MAX_SERVERS + 1)},
        {"ranks": []},
        {"ranks": {}},
        {"ranks": {"r0": 0}},
        {"ranks": {"r0": 4}},
        {"ranks": {"r0": 1, "r1": 1}},
        {"ranks": {"r0": 1.0}},
        {"world_size": 1},
        {"world_size": 4097, "ranks": {"r0": 1}},
        {"host": ""},
        {"host": "x" * 254},
        {"host": None},
        {"port": 0},
        {"port": 65_536},
        {"more": 1},
    ],
)
def test_a_call_that_cannot_be_followed_counts_as_not_said(changes: dict[str, Any]) -> None:
    assert read_call(encoded(GO, **changes)) is None


@pytest.mark.parametrize(
    "changes", [{"epoch": None}, {"number": -1}, {"said": "maybe"}, {"why": 3}, {"touched": 1}, {"extra": 0}]
)
def test_an_answer_that_is_none_counts_as_not_given(changes: dict[str, Any]) -> None:
    assert read_answer(encoded(Answer(3, 2, "here"), **changes)) is None


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b"1" * 70_000])
def test_bytes_that_are_nothing_of_it_are_nothing(raw: bytes) -> None:
    assert read_call(raw) is None
    assert read_answer(raw) is None

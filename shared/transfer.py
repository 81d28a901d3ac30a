"""What learner and rollout servers say to each other about weights over the wire. The weights go past Redis.

    learner   invite version v: r0, r1, r2 ---> here? --> go: r0 has rank 1, r1 rank 2 ---> all receiving? --> sends
    server           `-- here ------------------------^        `-- joins, pauses: receiving --^   `--> received, proof

The learner's word is one value in Redis that runs out, written under its epoch: who was thought dead cannot send.
Servers answer each for itself. Whatever cannot be understood counts as not said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from shared import scripts, untrusted
from shared.keys import Keys
from shared.redis_client import Client, Script, translated

MAX_RANKS = 4096  # of one process group
MAX_SERVERS = untrusted.MAX_MEMBERS
MAX_WORKERS = 64  # of one server; the bound of rollout.engine.tensor_parallel_size
WITHDRAWN_S = 0.001
_LONGEST_HOST = 253

Stage = Literal["invite", "go"]
Said = Literal["here", "receiving", "received", "failed"]


@dataclass(frozen=True)
class Call:
    """What the learner asks the servers to receive now."""

    epoch: int
    number: int  # of the call, within the epoch
    stage: Stage
    policy_version: int
    invited: list[str] = field(default_factory=list)  # server_ids, of an invitation
    # what follows is of stage "go"
    ranks: dict[str, int] = field(default_factory=dict)  # server_id -> rank of its first worker; the learner has 0
    group: int = 0  # another number than before: leave that process group, join this one
    world_size: int = 0
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class Answer:
    """How far a server is with a call."""

    epoch: int
    number: int  # of the call's
    said: Said
    why: str = ""  # it failed
    touched: bool = False  # it failed and has lost the weights that it had


class Transfers:
    """Both ends' way to what is said. Every method raises StreamError when Redis cannot be reached."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._call = Script(client, scripts.CALL_TRANSFER, [keys.epoch, keys.transfer, keys.transfer_answers])
        self._answer = Script(client, scripts.ANSWER_TRANSFER, [keys.transfer_answers])
        self._want = Script(client, scripts.WANT_FILES, [keys.transfer_wanted])

    # -- learner --------------------------------------------------------------------------------
    def call(self, call: Call, ttl_s: float) -> None:
        """Asks; the answers to the call before are forgotten. Raises FencedError, DataLossError."""
        self._call(call.epoch, json.dumps(asdict(call)), max(1, int(ttl_s * 1000)))

    def withdraw(self, call: Call) -> None:
        """Ends a call: who comes later must not follow it. Raises FencedError, DataLossError."""
        self.call(call, WITHDRAWN_S)

    def answers(self, call: Call, servers: Iterable[str]) -> dict[str, Answer]:
        """What these servers said to this call so far."""
        names = list(servers)
        if not names:
            return {}
        with translated():
            values = self._client.hmget(self._keys.transfer_answers, names)
        found = {name: read_answer(value) for name, value in zip(names, values, strict=True) if value}
        return {n: a for n, a in found.items() if a and (a.epoch, a.number) == (call.epoch, call.number)}

    def wanted(self) -> int:
        """The newest version that somebody needs files of; -1 if nobody does."""
        with translated():
            value = self._client.get(self._keys.transfer_wanted)
        version = untrusted.number(value) if value else None
        return -1 if version is None else version

    def satisfied(self) -> None:
        """The files that were wanted are there."""
        with translated():
            self._client.delete(self._keys.transfer_wanted)

    # -- rollout server -------------------------------------------------------------------------
    def current(self) -> Call | None:
        """What is asked now; None where nothing is, or nothing that can be understood."""
        with translated():
            value = self._client.get(self._keys.transfer)
        return read_call(value) if value else None

    def answer(self, server_id: str, answer: Answer) -> None:
        """Says how far this server is; works at maxmemory."""
        text = json.dumps({**asdict(answer), "why": answer.why[: untrusted.MAX_TEXT]})
        self._answer(server_id, text)

    def want(self, policy_version: int) -> None:
        """Asks the learner for a version's files; works at maxmemory."""
        self._want(policy_version)


def read_call(raw: bytes) -> Call | None:
    """A call that can be followed, or None."""
    values = _exactly(Call, raw)
    if values is None:
        return None
    numbers = [values[name] for name in ("epoch", "number", "policy_version", "group", "world_size", "port")]
    if not all(_whole(number, 0, 2**62) for number in numbers) or values["stage"] not in ("invite", "go"):
        return None
    invited, ranks, host = values["invited"], values["ranks"], values["host"]
    if not isinstance(invited, list) or len(invited) > MAX_SERVERS or not all(isinstance(n, str) for n in invited):
        return None
    if not isinstance(ranks, dict) or not isinstance(host, str) or len(host) > _LONGEST_HOST:
        return None
    if values["stage"] == "go" and not _is_meeting(ranks, values["world_size"], host, values["port"]):
        return None
    return Call(**values)


def _is_meeting(ranks: dict[str, Any], world_size: int, host: str, port: int) -> bool:
    """True where every server has a rank of its own in a process group that somebody can be found for."""
    own = list(ranks.values())
    if not 2 <= world_size <= MAX_RANKS or not host or not 0 < port < 2**16:
        return False
    return bool(own) and all(_whole(rank, 1, world_size) for rank in own) and len(set(own)) == len(own)


def read_answer(raw: bytes) -> Answer | None:
    """A server's answer, or None."""
    values = _exactly(Answer, raw)
    if values is None or not all(_whole(values[name], 0, 2**62) for name in ("epoch", "number")):
        return None
    if values["said"] not in ("here", "receiving", "received", "failed") or not isinstance(values["touched"], bool):
        return None
    if not isinstance(values["why"], str):
        return None
    return Answer(**{**values, "why": values["why"][: untrusted.MAX_TEXT]})


def _exactly(kind: type[Any], raw: bytes) -> dict[str, Any] | None:
    values = untrusted.json_object(raw)
    return values if values.keys() == {f.name for f in fields(kind)} else None


def _whole(value: Any, least: int, beyond: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < beyond

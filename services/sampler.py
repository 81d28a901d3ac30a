"""What rollout servers say of themselves, over time: one sample of their heartbeats for each stretch of ten seconds.

Every control plane tries; the stretch is Redis's own time, and the first that writes one has it (`scripts.SAMPLE`), so
replicas neither double a sample nor miss one while any of them lives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack

from services.fleet import Server, read_servers
from shared import scripts, untrusted
from shared.keys import Keys
from shared.measures import SERVER_NAMES, SERVERS
from shared.redis_client import Client, Script, translated
from shared.series import KEPT, SHARES

SLOT_S = 10
MOST = 64  # servers with a series of their own, first by their ids; all of them count in the whole
_HEARTBEAT = {"served_version": "policy_version", "lag_asked": "lag", "floor_max_nats": "proof_max_nats"}

Groups = dict[str, int]


class Sampler:
    """Takes the samples of one run."""

    def __init__(self, client: Client, keys: Keys, max_bytes: int) -> None:
        self._client = client
        self._keys = keys
        self._script = Script(client, scripts.SAMPLE, [keys.fleet])
        self._bounds = [int(max_bytes * SHARES[f"fleet_{tier}"]) for tier in ("minutes", "hours")]

    def sample(self) -> bool:
        """Writes the sample of this stretch of time, unless it is there. Raises StreamError."""
        with translated():
            seconds, micros = self._client.time()
            slot, state = self._client.hmget(self._keys.fleet, "slot", "state")
        now = seconds + micros / 1e6
        if slot is not None and int(slot) >= now // SLOT_S:
            return False
        before = untrusted.json_object(state)
        servers = [server for server in read_servers(self._client, self._keys) if server.alive]
        groups = {s.server_id: n for s in servers if isinstance(n := s.values.get("groups"), int)}
        cells = msgpack.packb(cells_of(servers, rates(groups, now, before)))
        after = json.dumps({"at": now, "groups": groups})
        bounds = (*self._bounds, KEPT["minutes"], KEPT["hours"])
        return bool(self._script(int(now // SLOT_S), now, cells, after, *bounds))


def rates(groups: Groups, now: float, before: Mapping[str, Any]) -> dict[str, float]:
    """Groups that each server has appended in a second since the sample before; one that began anew counts from 0."""
    at, then = before.get("at"), before.get("groups")
    if not isinstance(at, int | float) or not isinstance(then, dict) or not now > at:
        return {}
    known = {name: then[name] for name in groups if isinstance(then.get(name), int)}
    return {
        name: (groups[name] - (earlier if earlier <= groups[name] else 0)) / (now - at)
        for name, earlier in known.items()
    }


def cells_of(servers: Sequence[Server], appended: Mapping[str, float]) -> list[Any]:
    """Flat cells, as the scripts take them: of each measure the whole of all servers, and each of the first."""
    found: list[Any] = []
    for name in SERVER_NAMES:
        values = {server.server_id: value for server, value in _values(name, servers, appended)}
        if not values:
            continue
        whole = values.values()
        found += [f"{SERVERS}.{name}", len(values), math.fsum(whole) / len(values), min(whole), max(whole)]
        for server_id in sorted(values)[:MOST]:
            value = values[server_id]
            found += [f"{SERVERS}.{name}|{server_id}", 1, value, value, value]
    return found


def _values(name: str, servers: Sequence[Server], appended: Mapping[str, float]) -> Iterator[tuple[Server, float]]:
    for server in servers:
        said = server.values.get(_HEARTBEAT.get(name, name))
        value = appended.get(server.server_id) if name == "groups_per_s" else said
        nothing = name == "served_version" and value == -1
        if isinstance(value, int | float) and math.isfinite(value) and not nothing:
            yield server, float(value)

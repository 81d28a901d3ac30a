"""What a large run would have written: rows, samples and heartbeats of made-up numbers, by the real ways."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

from services.fleet import Server
from services.sampler import cells_of
from shared import scripts
from shared.config import Config
from shared.control import ControlState
from shared.histogram import LOG_RATIO_EDGES
from shared.history import History
from shared.keys import Keys
from shared.records import StepRecord
from shared.redis_client import Client, Script
from shared.series import KEPT, SHARES

TTL_S = 3600.0  # no heartbeat runs out while it is measured
LABELS = {
    "by_staleness": ["0", "1", "2", "3-4", "5-8"],
    "by_arm": ["control", "lag 0"],
    "by_server": [f"r{n:04}" for n in range(32)],
    "by_position": ["0-15", "16-63", "64-255", "256-1023", "1024+"],
}
PARTS = ("tokens", "token_ess", "sequence_ess", "ratio_p50", "ratio_max", "kl", "capped_share")


def fill_history(client: Client, keys: Keys, config: Config, step: int, at: float) -> None:
    """One step's row, with the parts that the configuration of a large run has."""
    History(client, keys, int(config.control_plane.history_bytes)).add(_row(step, at))


def fill_fleet(client: Client, keys: Keys, config: Config, servers: int, at: float, slot: int) -> None:
    """One sample of the fleet, of some time ago."""
    found = [Server(f"r{n:04}", _heartbeat(n, slot), True, False) for n in range(servers)]
    cells = cells_of(found, {server.server_id: 1.0 for server in found})
    most = int(config.control_plane.history_bytes)
    bounds = [int(most * SHARES[f"fleet_{tier}"]) for tier in ("minutes", "hours")]
    given = (slot, at, msgpack.packb(cells), "{}", *bounds, KEPT["minutes"], KEPT["hours"])
    Script(client, scripts.SAMPLE, [keys.fleet])(*given)


def beat(client: Client, keys: Keys, number: int) -> None:
    """The heartbeat of one rollout server."""
    ControlState(client, keys).beat(f"rollout:r{number:04}", _heartbeat(number, number), TTL_S)


def _heartbeat(number: int, turn: int) -> dict[str, Any]:
    who = {"kind": "rollout", "pid": os.getpid(), "host": f"{socket.gethostname()}-{number}", "engine": "vllm"}
    numbers = {"policy_version": 1000 + turn % 7, "lag": number % 5, "lag_served": number % 5, "groups": 100 * turn}
    floor = {"proof_max_nats": 1e-5, "floor_mean_nats": 2e-6, "floor_token_ess": 0.9999, "progress_at": 1.8e9}
    state = {"state": "generating groups", "since": 1.8e9, "in_flight": 16, "arm": "", "draining": False}
    return {**who, **numbers, **floor, **state, "device": "cuda", "metrics": "http://127.0.0.1:9000/metrics"}


@cache
def _hints() -> dict[str, Any]:
    hints = get_type_hints(StepRecord)
    return {field.name: hints[field.name] for field in fields(StepRecord)}


def _row(step: int, at: float) -> dict[str, Any]:
    """A record of every field that there is, by its type."""
    row: dict[str, Any] = {"step": step, "policy_version": step, "at": at}
    for i, (name, hint) in enumerate(_hints().items()):
        if name not in row:
            row[name] = _value(name, hint, step, 0.5 + 0.5 * math.sin(step / 50 + i))
    row["log_ratio_counts"] = [step % (n + 2) for n in range(len(LOG_RATIO_EDGES) + 1)]
    for name, labels in LABELS.items():
        row[name] = {label: {part: 0.5 + 0.4 * math.sin(step + n) for n, part in enumerate(PARTS)} for label in labels}
    return row


def _value(name: str, hint: Any, step: int, wave: float) -> Any:
    if name == "prompt_indices":
        return [step]
    if get_origin(hint) in (dict, list):
        return get_origin(hint)()
    if hint is str:
        return ""
    return int(10 * wave) if hint is int or int in get_args(hint) else wave

"""The list of runs that share a Redis: each learner puts its run on it, whoever looks sees what it may read."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import redis

from shared import untrusted
from shared.keys import RUNS, Keys
from shared.redis_client import Client, translated

MOST = 1_000  # on the list; the one that was started longest ago goes first
SHOWN = 100


@dataclass(frozen=True)
class Registered:
    """What a learner says of its run when it starts."""

    steps: int  # after which it is over
    at: float  # unix seconds


@dataclass(frozen=True)
class KnownRun:
    """One run, as far as it may be read."""

    id: str
    phase: str
    reason: str
    step: int  # optimizer steps in the newest version
    steps: int  # after which it is over; 0 where nobody has said
    policy_version: int | None
    at: float | None  # unix seconds of its newest row, else of its last start


def register(client: Client, keys: Keys, steps: int) -> None:
    """Puts a run on the list, or anew; beyond MOST what nobody can read goes first, then the oldest, never this one."""
    with translated():
        client.hset(RUNS, keys.run_id, json.dumps({"steps": steps, "at": time.time()}))
        found = client.hgetall(RUNS)
    others = sorted((name for name in found if name != keys.run_id.encode()), key=lambda name: _started(found[name]))
    if beyond := others[: max(0, len(found) - MOST)]:
        with translated():
            client.hdel(RUNS, *beyond)


def _started(raw: bytes) -> float:
    run = untrusted.record(Registered, raw)
    return -math.inf if run is None else run.at


def registered(client: Client) -> dict[str, Registered]:
    """Every run of the list."""
    with translated():
        found = client.hgetall(RUNS)
    read = {name.decode(errors="replace"): untrusted.record(Registered, raw) for name, raw in found.items()}
    return {name: run for name, run in read.items() if run is not None}


def known_runs(client: Client, own: Keys) -> list[KnownRun]:
    """The runs that were started last and may be read, and one's own; the newest first. Raises StreamError."""
    known = registered(client)
    newest = sorted(known, key=lambda name: -known[name].at)[:SHOWN]
    names = newest if own.run_id in newest else [own.run_id, *newest]
    with translated(), client.pipeline(transaction=False) as pipe:
        for name in names:
            keys = Keys(name)
            pipe.hmget(keys.phase, "phase", "reason").hmget(keys.latest, "policy_version", "step")
            pipe.xrevrange(keys.history, count=1)
        found = pipe.execute(raise_on_error=False)
    runs = [_run(name, known.get(name), found[3 * i : 3 * i + 3]) for i, name in enumerate(names)]
    return [run for run in runs if run is not None]


def _run(name: str, known: Registered | None, found: list[Any]) -> KnownRun | None:
    refused = [error for error in found if isinstance(error, redis.RedisError)]
    if refused and isinstance(refused[0], redis.exceptions.NoPermissionError):
        return None
    with translated():
        for error in refused:
            raise error
    (phase, reason), (version, step), rows = found
    at = int(rows[0][0].partition(b"-")[0]) / 1000 if rows else known.at if known else None
    number = None if version is None else untrusted.number(version)
    steps = known.steps if known else 0
    told = (phase or b"starting").decode(errors="replace"), (reason or b"").decode(errors="replace")
    return KnownRun(name, *told, untrusted.number(step or b"0") or 0, steps, number, at)

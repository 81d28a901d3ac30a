"""`trustbatch bench control-plane`: how long each route takes over a large run, beside Redis in the same minutes.

A Redis of its own is filled as a run would fill it, through the same scripts: heartbeats of so many rollout servers, a
row of the history for every step of so many days, samples of the fleet. Then a control plane of its own, one process,
is asked every route in turn over one connection, and between them Redis a PING and a GET, and the control plane its
liveness probe, which reads nothing. Processor time, of the control plane alone, tells a slow route from a busy
machine.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from services.bench.filling import beat, fill_fleet, fill_history
from services.machine import usable_cores
from services.redis_server import start_redis, with_url
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState
from shared.errors import ConfigError
from shared.keys import Keys
from shared.process import Deadline
from shared.redis_client import Client, connect
from shared.series import Series

ID = "bench"
START_S = 60.0
ROUTES = {
    "/v1/status": "/v1/status",
    "/v1/history": "/v1/history?last=100",
    "/v1/runs": "/v1/runs",
    "/v1/metrics": "/v1/metrics",
    "/v1/series, the last hour": "/v1/series?name=token_ess&name=reward_mean&name=kl&points=300&since={hour}",
    "/v1/series, all days": "/v1/series?name=token_ess&name=reward_mean&name=kl&points=300",
    "/v1/series, by server": "/v1/series?name=by_server.token_ess&points=300&since={day}",
    "/v1/series, fleet": "/v1/series?name=servers.in_flight&points=300",
    "/v1/histograms, log_ratio": "/v1/histograms?name=log_ratio",
    "/v1/histograms, staleness": "/v1/histograms?name=staleness&since={day}",
    "/v1/servers": "/v1/servers",
    "/v1/servers/{id}": "/v1/servers/r0500",
    "/v1/events": "/v1/events",
    "/v1/dead-letters": "/v1/dead-letters",
    "/v1/groups": "/v1/groups",
    "/v1/lag": "/v1/lag",
    "/v1/admission": "/v1/admission",
    "/v1/objective": "/v1/objective",
    "/metrics": "/metrics",
    "/": "/",
}
PROBE = "reference: GET /healthz"


def show(servers: int, days: float, step_every_s: float, requests: int, as_json: bool) -> None:
    """Measures and prints. Raises ConfigError where the parts do not start."""
    found = measure(servers, days, step_every_s, requests)
    print(json.dumps(found, indent=2) if as_json else table(found))


def measure(servers: int, days: float, step_every_s: float, requests: int) -> dict[str, Any]:
    """Fills, asks, and tells in plain numbers."""
    with tempfile.TemporaryDirectory(prefix="trustbatch-bench-", dir=os.environ.get("TMPDIR")) as name:
        config = _config(Path(name))
        redis = start_redis(config)
        try:
            config = with_url(config, redis.url)
            client, keys = connect(config), Keys(ID)
            empty = client.info("memory")["used_memory"]
            rows = _fill(client, keys, config, servers, days, step_every_s)
            held = client.info("memory")["used_memory"] - empty
            with _serving(Path(name), config, client, keys) as (port, pid):
                asked = _ask(port, pid, client, keys, servers, requests)
            kept = _kept(client, keys)
        finally:
            redis.stop()
    return {
        "servers": servers,
        "days": days,
        "rows": rows,
        "requests": requests,
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0],
        "history_bytes": int(config.control_plane.history_bytes),
        "redis_bytes": held,
        "kept": kept,
        "routes": asked,
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, milliseconds."""
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}


def table(found: Mapping[str, Any]) -> str:
    """The same for people."""
    head = (
        f"{found['servers']:,} servers, {found['days']:g} days of history ({found['rows']:,} steps), "
        f"{found['requests']} requests of each, {found['cores']} cores, load average {found['load_average']:.1f}"
    )
    memory = (
        f"Redis holds {found['redis_bytes']:,} bytes; control_plane.history_bytes is {found['history_bytes']:,}: "
        + ", ".join(f"{name} {kept:,}" for name, kept in found["kept"].items())
    )
    columns = f"{'':<30}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'CPU ms':>10}{'bytes':>12}"
    rows = (
        f"{route:<30}{row['p50_ms']:>10.2f}{row['p99_ms']:>10.2f}{row['max_ms']:>10.2f}{row['cpu_ms']:>10.2f}"
        f"{row['bytes']:>12,}"
        for route, row in found["routes"].items()
    )
    return "\n".join([head, memory, columns, *rows])


def _config(folder: Path) -> Config:
    given = [f"run.id={ID}", f"run.folder={folder / 'run'}", "control_plane.auth=none"]
    return load_config(None, [*given, "control_plane.requests_per_minute=1000000"], {})


def _fill(client: Client, keys: Keys, config: Config, servers: int, days: float, step_every_s: float) -> int:
    console = Console(stderr=True)
    now = time.time()
    times = [now - days * 86_400 + n * step_every_s for n in range(int(days * 86_400 / step_every_s))]
    fill_history(client, keys, config, 1, times[0])  # loads the scripts
    for some in track(_batches(times[1:]), "history", console=console, transient=True):
        with client.pipeline(transaction=False) as pipe:
            for n, at in some:
                fill_history(pipe, keys, config, n + 2, at)
            pipe.execute()
    sampled = [now - days * 86_400 + 1800 * n for n in range(int(days * 48))]
    for some in track(_batches(sampled), "samples of the fleet", console=console, transient=True):
        with client.pipeline(transaction=False) as pipe:
            for n, at in some:
                fill_fleet(pipe, keys, config, servers, at, n)
            pipe.execute()
    for n in range(servers):
        beat(client, keys, n)
    return len(times)


def _batches(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """The values with their places, fifty at a time."""
    numbered = list(enumerate(values))
    return [numbered[i : i + 50] for i in range(0, len(numbered), 50)]


@contextmanager
def _serving(folder: Path, config: Config, client: Client, keys: Keys) -> Iterator[tuple[int, int]]:
    """A control plane as a process; its port and process id."""
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "services.control_plane", "--config", str(file), "--id", ID]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = Deadline("the control plane to serve", START_S)
        while (status := ControlState(client, keys).status_of(f"control-plane:{ID}")) is None:
            if process.poll() is not None:
                raise ConfigError(f"the control plane ended with {process.returncode} while starting")
            deadline.check()
            time.sleep(0.05)
        yield int(str(status["address"]).rsplit(":", 1)[1].strip("/")), process.pid
    finally:
        process.terminate()
        process.wait()


def _ask(port: int, pid: int, client: Client, keys: Keys, servers: int, requests: int) -> dict[str, dict[str, float]]:
    """By route: how long an answer takes, in turns with all others; processor time of the control plane; bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    now, sizes = int(time.time()), dict[str, int]()
    paths = {
        route: path.format(hour=now - 3600, day=now - 86_400).replace("r0500", f"r{servers // 2:04}")
        for route, path in ROUTES.items()
    }

    def get(route: str, path: str) -> None:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ConfigError(f"GET {path} was answered with {answer.status}: {body[:500].decode(errors='replace')}")
        sizes[route] = len(body)

    acts: dict[str, Callable[[], object]] = {
        "reference: Redis PING": client.ping,
        "reference: Redis GET": lambda: client.get(keys.heartbeat("rollout:r0000")),
        PROBE: lambda: get(PROBE, "/healthz"),
        **{route: partial(get, route, path) for route, path in paths.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(requests + 1):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if turn:  # the first of each opens connections
                times[name].append(time.perf_counter() - began)
    found = {name: quantiles(times[name]) | {"cpu_ms": 0.0, "bytes": sizes.get(name, 0)} for name in acts}
    for name in (PROBE, *paths):
        before, again = _cpu_s(pid), requests // 10 + 1
        for _ in range(again):
            acts[name]()
        found[name]["cpu_ms"] = 1000 * (_cpu_s(pid) - before) / again
    connection.close()
    return found


def _cpu_s(pid: int) -> float:
    """Processor seconds of every thread of a process."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _kept(client: Client, keys: Keys) -> dict[str, int]:
    """Bytes by tier, as the books have them."""
    found = {"rows": int(client.hget(keys.series, "row_bytes") or 0)}
    for label, books in (("", keys.series), ("fleet ", keys.fleet)):
        series = Series(client, books)
        found |= {f"{label}{tier}": size for tier, size in series.bytes().items()}
    return found

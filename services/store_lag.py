"""By how many versions a server behind a slow link is behind: foreseen, and measured over HTTP on loopback."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from shared.checksums import Checksum
from shared.config import Config, load_config
from shared.config.store import StoreConfig
from shared.errors import ConfigError, DeadlineError
from shared.manifest import Probe, StoredFile
from shared.store import PolicyStore, open_store
from shared.store.pace import fetch_seconds, lag_of_fetching

WEIGHTS = "model.safetensors"
START_S = 10.0  # for the server on loopback


@dataclass(frozen=True)
class Requests:
    """How one version is asked for."""

    answer_s: float = 0.0  # from a request to its first byte
    parts: int | None = None  # requests; None: as store.part_bytes cuts the version
    parallel: int = StoreConfig().parallel


@dataclass(frozen=True)
class Foreseen:
    """What the link's rate says."""

    fetch_s: float
    lag_at_switch: int  # versions, at most
    lag_at_most: int  # versions, just before the next switch
    retain_versions: int  # that learner.retain_versions must be at least, or they go while they are fetched


@dataclass(frozen=True)
class Measured:
    """What a server on loopback with that bandwidth limit did."""

    fetches: int
    fetch_s: float  # mean
    lag_at_switch: int  # versions, the most
    lag_at_most: int


def show(size: str, rate: str, every: float, measure: int, as_json: bool, requests: Requests = Requests()) -> None:
    """Prints both. Raises ConfigError for what is no number of bytes."""
    count, per_s = _bytes("--size", size), _bytes("--rate", rate)
    parts = requests.parts or -(-count // int(StoreConfig().part_bytes))
    fetch_s = fetch_seconds(count, per_s, parts, requests.answer_s, requests.parallel)
    at_switch, at_most = lag_of_fetching(fetch_s, every)
    found: dict[str, object] = {"foreseen": asdict(Foreseen(fetch_s, at_switch, at_most, at_switch + 1))}
    if measure:
        found["measured"] = asdict(_measure(count, per_s, every, measure))
    if as_json:
        print(json.dumps({"bytes": count, "bytes_per_s": per_s, "publish_s": every, **found}))
        return
    print(f"{count:,} bytes at {per_s:,} bytes/s, a version every {every:g} s")
    for kind, row in found.items():
        print(f"{kind:10}", *(f"{name} {value:.4g}" for name, value in row.items()), sep="  ")  # type: ignore[attr-defined]


def _bytes(option: str, text: str) -> int:
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = 0
    if found <= 0:
        raise ConfigError(f"{option} {text[:40]!r}: write a number of bytes such as 84MB, 6250000 or 1.5GiB")
    return found


def _measure(count: int, per_s: int, every: float, versions: int) -> Measured:
    """Publishes versions on time while a server fetches whatever is newest, again and again."""
    with tempfile.TemporaryDirectory(prefix="trustbatch-lag-") as name:
        base = [f"run.folder={name}", "control_plane.auth=none", f"store.bandwidth_bytes_per_s={per_s}"]
        with _served(load_config(None, base, {})) as (store, address):
            publisher = threading.Thread(target=_publish, args=(store, count, every, versions), daemon=True)
            far = open_store(load_config(None, [*base, f"store.url={address}"], {}), "far")
            publisher.start()
            try:
                return _follow(store, far, publisher)
            finally:
                publisher.join()


def _publish(store: PolicyStore, count: int, every: float, versions: int) -> None:
    """Versions of the same bytes: what travels is what counts here."""
    first = time.monotonic()
    data = os.urandom(count)
    checksum = Checksum()
    checksum.update(data)
    known = {WEIGHTS: StoredFile(WEIGHTS, count, checksum.text)}
    for version in range(versions):
        folder = store.begin(version)
        if version:
            (folder / WEIGHTS).hardlink_to(store.folder(version - 1) / WEIGHTS)
        else:
            (folder / WEIGHTS).write_bytes(data)
        store.commit(version, version - 1, version, Probe([[0, 1]], [[-1.0]]), time.time(), known)
        time.sleep(max(0.0, first + (version + 1) * every - time.monotonic()))


def _follow(store: PolicyStore, far: PolicyStore, publisher: threading.Thread) -> Measured:
    served, at_switch, at_most = -1, [0], [0]
    seconds: list[float] = []
    while publisher.is_alive() or not seconds:
        newest = (store.versions() or [-1])[-1]
        if newest == served:
            time.sleep(0.002)
            continue
        started = time.monotonic()
        far.hold(newest, "far")
        far.forget("far")
        latest = store.versions()[-1]
        seconds.append(time.monotonic() - started)
        if served >= 0:
            at_most.append(latest - served)
        served = newest
        at_switch.append(latest - served)
    return Measured(len(seconds), sum(seconds) / max(1, len(seconds)), max(at_switch), max(at_most))


@contextmanager
def _served(config: Config) -> Iterator[tuple[PolicyStore, str]]:
    import uvicorn

    from services.listening import listen
    from services.store_server import create_app

    store, listening = PolicyStore(Path(config.run.folder) / "policy"), listen("127.0.0.1", 0, "store foresee")
    server = uvicorn.Server(uvicorn.Config(create_app(config, store), log_level="error", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_S
        while not server.started:
            if time.monotonic() > until:
                raise DeadlineError(f"waited {START_S:g} s for a server on loopback, in vain")
            time.sleep(0.01)
        yield store, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listening.close()

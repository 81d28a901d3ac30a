"""One way to reach Redis: bounded waits, no silent retries, errors of our own tree."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared import scripts
from shared.config import secrets
from shared.errors import (
    AccessError,
    ConfigError,
    DataLossError,
    FencedError,
    OutOfMemoryError,
    RefusedError,
    StreamError,
)

if TYPE_CHECKING:
    from shared.config import Config
    from shared.config.network import RedisConfig

BLOCK_S = 1.0  # longest blocking read; the socket's timeout is well above it
SOCKET_TIMEOUT_S = 10.0
MINIMUM_VERSION = (6, 2)

Client = Any  # redis.Redis: redis-py's annotations are unions of its bytes, str and async forms


def connect(config: Config, timeout_s: float = SOCKET_TIMEOUT_S) -> Client:
    """A client for the configured Redis; waits at most timeout_s for an answer.

    Asks once whether Redis lets it in; that it does not answer (yet) is for the first command to meet.
    Commands are never sent twice behind the caller's back: after a lost connection nobody can know
    whether an append was applied, and the caller's scripts are the ones made to be repeated.

    Raises:
        ConfigError: redis.url is not set, a file of the redis section cannot be used, or (AccessError) Redis refuses
            redis.username or redis.password, or its certificate is not signed by redis.tls_ca.

    """
    if config.redis.url is None:
        raise ConfigError("redis.url is not set; set it, or use `trustbatch up`, which starts a Redis of its own")
    password = secrets.read(config, "redis.password")
    credentials: dict[str, Any] = {}
    if config.redis.username:
        credentials["username"] = config.redis.username
    if password:
        credentials["password"] = password
    credentials.update(_tls(config.redis) if config.redis.url.startswith("rediss://") else {})
    client: Client = redis.Redis.from_url(
        config.redis.url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 0),
        **credentials,
    )
    try:
        with translated():
            client.ping()
    except AccessError:
        client.close()
        raise
    except StreamError:
        pass  # not there yet, or away: what waits for it says so
    return client


def _tls(redis_config: RedisConfig) -> dict[str, Any]:
    """Files for an encrypted connection, looked at now: one that cannot be used is no outage."""
    ca, certificate, key = redis_config.tls_ca, redis_config.tls_certificate, redis_config.tls_key
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate and key:
            context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        said = error.strerror or str(error)
        raise ConfigError(
            f"redis.tls_ca {ca}, redis.tls_certificate {certificate}, redis.tls_key {key}: cannot be used: {said}"
        ) from None
    files = {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key}
    return {name: str(path) for name, path in files.items() if path}


@contextmanager
def translated() -> Iterator[None]:
    """Turns redis-py's errors into ours."""
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise OutOfMemoryError(f"Redis is at maxmemory: {error}") from error
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise AccessError(
            f"Redis refuses redis.username and redis.password ({error}): correct them; the password is best given by "
            "the environment variable TRUSTBATCH__REDIS__PASSWORD"
        ) from error
    except redis.ResponseError as error:
        if "FENCED" in str(error):
            raise FencedError("another learner has taken over this run; this one stops without writing") from error
        if "DATALOSS" in str(error):
            raise DataLossError("Redis has lost data of this run: it does not remember this learner") from error
        if "OOM" in str(error):
            raise OutOfMemoryError(f"Redis is at maxmemory: {error}") from error
        raise RefusedError(f"Redis refused a command: {error}") from error
    except redis.DataError:  # an argument that cannot be sent: our mistake, and no outage
        raise
    except redis.RedisError as error:
        if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
            raise AccessError(
                f"the certificate of Redis is not trusted ({error}): redis.tls_ca names who must have signed it, and "
                "the host in redis.url must be one that it is for"
            ) from error
        raise StreamError(f"Redis cannot be reached: {error}") from error


def server_version(client: Client) -> tuple[int, int]:
    """(major, minor) of the server. Raises StreamError where it cannot be reached or is too old."""
    with translated():
        text = str(client.info("server")["redis_version"])
    major, minor = (int(part) for part in text.split(".")[:2])
    if (major, minor) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise StreamError(f"Redis {text} is too old: {wanted} or newer is needed")
    return major, minor


def load_scripts(client: Client) -> None:
    """Loads every script of the run, for those too who may run scripts and not load any (rollout servers).

    A Redis that has run on while the processes were replaced holds those of the release before, perhaps no others.
    Raises StreamError.
    """
    with translated():
        try:
            for source in scripts.ALL:
                client.script_load(source)
        except redis.exceptions.NoPermissionError as error:
            raise StreamError("Redis does not hold the run's scripts yet: the learner loads them") from error


@dataclass(frozen=True)
class Memory:
    """Bytes of a Redis."""

    used: int
    limit: int  # maxmemory; 0: none


def memory_of(client: Client) -> Memory:
    """What the server uses, and what it may. Raises StreamError."""
    with translated():
        info = client.info("memory")
    return Memory(int(info["used_memory"]), int(info["maxmemory"]))


class Script:
    """A Lua script bound to its keys; errors translated."""

    def __init__(self, client: Client, source: str, keys: Sequence[str]) -> None:
        self._client = client
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._keys = list(keys)

    def __call__(self, *arguments: Any) -> Any:
        """Runs it. Raises StreamError, OutOfMemoryError, FencedError."""
        with translated():
            try:
                return self._run(arguments)
            except redis.exceptions.NoScriptError:
                load_scripts(self._client)
                return self._run(arguments)

    def _run(self, arguments: Sequence[Any]) -> Any:
        return self._client.evalsha(self._digest, len(self._keys), *self._keys, *arguments)

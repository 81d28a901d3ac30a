"""One way to reach Redis: bounded waits, no silent retries, errors of our own tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import AccessError, ConfigError, DataLossError, FencedError, OutOfMemoryError, StreamError

if TYPE_CHECKING:
    from shared.config import Config

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
        ConfigError: redis.url is not set, or (AccessError) Redis refuses redis.username or redis.password.

    """
    if config.redis.url is None:
        raise ConfigError("redis.url is not set; set it, or use `trustbatch up`, which starts a Redis of its own")
    password = config.redis.password.get_secret_value() if config.redis.password else None
    credentials: dict[str, Any] = {}
    if config.redis.username:
        credentials["username"] = config.redis.username
    if password:
        credentials["password"] = password
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
        raise StreamError(f"Redis refused a command: {error}") from error
    except redis.DataError:  # an argument that cannot be sent: our mistake, and no outage
        raise
    except redis.RedisError as error:
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


class Script:
    """A Lua script bound to its keys; errors translated."""

    def __init__(self, client: Client, source: str, keys: Sequence[str]) -> None:
        self._script = client.register_script(source)
        self._keys = list(keys)

    def __call__(self, *arguments: Any) -> Any:
        """Runs it. Raises StreamError, OutOfMemoryError, FencedError."""
        with translated():
            return self._script(keys=self._keys, args=list(arguments))

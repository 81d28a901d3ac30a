"""What the keys about who may come in have to say together."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.config.network import ControlPlaneConfig, RedisConfig


SHORTEST_TOKEN = 16  # characters


def check_token(text: str) -> None:
    """Raises ValueError for what cannot be a bearer token, or could be guessed."""
    if len(text) < SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(
            f"a token has at least {SHORTEST_TOKEN} characters, all printable ASCII without spaces "
            "(`openssl rand -hex 32` makes one)"
        )


def access_problems(redis: RedisConfig, plane: ControlPlaneConfig) -> Iterator[str]:
    """What cannot be, in the operator's words; never shows a secret."""
    yield from _one_of("redis.password", redis.password, redis.password_file)
    yield from _one_of("control_plane.read_token", plane.read_token, plane.read_token_file)
    yield from _one_of("control_plane.operate_token", plane.operate_token, plane.operate_token_file)
    yield from _together("redis", redis.tls_certificate, redis.tls_key)
    yield from _together("control_plane", plane.tls_certificate, plane.tls_key)
    if (redis.tls_ca or redis.tls_certificate) and not (redis.url or "").startswith("rediss://"):
        yield "redis.tls_ca and redis.tls_certificate are for an encrypted redis.url, which begins with rediss://"
    if plane.auth == "none":
        yield from _open(plane)


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open(plane: ControlPlaneConfig) -> Iterator[str]:
    if not is_loopback(plane.host):
        yield (
            f"control_plane.auth is none, so control_plane.host must be 127.0.0.1, ::1 or localhost, not {plane.host}: "
            "whoever reaches it could pause the run; leave control_plane.auth away and give tokens"
        )
    if plane.read_token or plane.read_token_file or plane.operate_token or plane.operate_token_file:
        yield "control_plane.auth is none, but a token is given: leave one of them away"


def _one_of(key: str, value: object, file: object) -> Iterator[str]:
    if value is not None and file is not None:
        yield f"{key} and {key}_file are both given: give only one of them"


def _together(section: str, certificate: object, key: object) -> Iterator[str]:
    if (certificate is None) != (key is None):
        yield f"{section}.tls_certificate and {section}.tls_key belong together: give both"

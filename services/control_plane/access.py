"""Who may ask: tokens, roles and the files for https, as the configuration names them."""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from shared.config import Config, secrets
from shared.config.access import check_token
from shared.errors import ConfigError


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    STRANGER = 0
    READ = 1
    OPERATE = 2


@dataclass(frozen=True, repr=False)
class Tokens:
    """The tokens of one control plane; None: nobody holds one."""

    read: bytes | None
    operate: bytes | None

    def role(self, authorization: str) -> Role:
        """The role that an Authorization header gives. Takes as long for a wrong token as for a right one."""
        scheme, _, shown = authorization.partition(" ")
        token = shown.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        operates = hmac.compare_digest(token, self.operate or b"") and self.operate is not None
        reads = hmac.compare_digest(token, self.read or b"") and self.read is not None
        return Role.OPERATE if operates else Role.READ if reads else Role.STRANGER


def tokens_of(config: Config) -> Tokens | None:
    """The tokens, or None where control_plane.auth is none. Raises ConfigError where there are none, or bad ones."""
    if config.control_plane.auth == "none":
        return None
    read, operate = (secrets.read(config, f"control_plane.{role}_token") for role in ("read", "operate"))
    if read is None and operate is None:
        raise ConfigError(
            "control_plane.auth is token, but there is none: set TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN "
            "(`openssl rand -hex 32` makes one) or control_plane.operate_token_file; for a machine that only you use, "
            "control_plane.auth: none"
        )
    if read == operate:
        raise ConfigError(
            "control_plane.read_token and control_plane.operate_token are the same: who may look could pause"
        )
    return Tokens(_checked(read, "read"), _checked(operate, "operate"))


def tls_settings(config: Config) -> dict[str, Any]:
    """What uvicorn needs for https; empty for http. Raises ConfigError where a file cannot be used."""
    certificate, key = config.control_plane.tls_certificate, config.control_plane.tls_key
    if certificate is None or key is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"control_plane.tls_certificate {certificate}, control_plane.tls_key {key}: cannot be used: "
            f"{error.strerror or error}; both are PEM files, the key's without a passphrase"
        ) from None
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def _checked(token: str | None, role: str) -> bytes | None:
    """A token from a file is held to the same rule as one from the configuration."""
    if token is None:
        return None
    try:
        check_token(token)
    except ValueError as error:
        raise ConfigError(f"control_plane.{role}_token_file: {error}") from None
    return token.encode()

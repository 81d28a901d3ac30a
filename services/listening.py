"""Sockets that services listen on, and the addresses under which others find them."""

from __future__ import annotations

import socket

from shared.errors import ConfigError


def listen(host: str, port: int, section: str) -> socket.socket:
    """A listening socket. Raises ConfigError, which names the section's keys, where there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # before the address is announced: who comes early waits instead of being refused
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{section}.host {host}, {section}.port {port}: cannot listen there: {error.strerror}; "
            "port 0 takes a free one"
        ) from None
    return listening


def address_of(host: str, port: int, scheme: str = "http") -> str:
    """Where others find it: a wildcard is no address, the host's name is."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"{scheme}://[{shown}]:{port}/" if ":" in shown else f"{scheme}://{shown}:{port}/"

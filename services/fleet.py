"""Rollout servers as an operator sees them: one row each, from their heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.wishes import Wishes

KIND = "rollout"


@dataclass(frozen=True)
class Server:
    """One rollout server; what it does not report is None."""

    server_id: str
    values: Mapping[str, Any]  # its heartbeat; empty where that ran out
    alive: bool
    draining: bool  # an operator wants it to take no new groups

    @property
    def drained(self) -> bool:
        """True where it has nothing any more that would be lost with it."""
        return self.draining and self.alive and bool(self.values.get("draining")) and not self.values.get("in_flight")

    @property
    def state(self) -> str:
        """What it does or what it waits for."""
        return str(self.values.get("state", "")) if self.alive else "no heartbeat"


def read_servers(client: Client, keys: Keys) -> list[Server]:
    """Every rollout server that did not leave in order, by its id. Raises StreamError."""
    control, draining = ControlState(client, keys), Wishes(client, keys).draining()
    found = []
    for component, values in control.members().items():
        kind, _, server_id = component.partition(":")
        if (values or {}).get("kind", kind) == KIND and server_id:
            found.append(Server(server_id, values or {}, values is not None, server_id in draining))
    return found


def read_server(client: Client, keys: Keys, server_id: str) -> Server | None:
    """One of them, or None. Raises StreamError."""
    control, component = ControlState(client, keys), f"{KIND}:{server_id}"
    values = control.status_of(component)
    if values is None and not control.is_member(component):
        return None
    return Server(server_id, values or {}, values is not None, server_id in Wishes(client, keys).draining())

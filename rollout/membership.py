"""One living server for each id, and leases that live as long as it does."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rollout.parts import Parts
from rollout.status import component_of
from shared.admission import Admission
from shared.errors import ConfigError, StreamError
from shared.stream import GroupWriter

RENEWALS_PER_LEASE = 3
NAME_POLL_S = 0.2


async def take_name(parts: Parts, deadline_s: float) -> None:
    """Makes sure that no other living server has this id; waits for the heartbeat of a dead one to run out.

    Raises:
        ConfigError: another server uses the id.

    """
    component = component_of(parts.server_id)
    ends = time.monotonic() + deadline_s
    while other := await parts.patience("look for others of this name", lambda: parts.control.status_of(component)):
        if _is_former_self(other):
            return
        if other.get("host") == socket.gethostname() or time.monotonic() > ends:
            raise ConfigError(
                f"server id {parts.server_id!r} is in use by process {other.get('pid')} on {other.get('host')}; "
                "choose another with --server-id"
            )
        with parts.status.during("start", f"waiting for the former server {parts.server_id!r} to be gone"):
            await asyncio.sleep(NAME_POLL_S)


def _is_former_self(other: dict[str, Any]) -> bool:
    """True for a heartbeat of this process, or of one on this machine that is gone."""
    if other.get("host") != socket.gethostname():
        return False
    return other.get("pid") == os.getpid() or not Path(f"/proc/{other.get('pid')}").exists()


class LeaseKeeper:
    """A thread that renews the server's leases, and looks whether Redis has forgotten any of its groups."""

    def __init__(self, admission: Admission, writer: GroupWriter, lease_s: float) -> None:
        self._admission = admission
        self._writer = writer
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Begins to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renews no more; leases that are held run out."""
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.wait(self._interval_s):
            with suppress(StreamError):  # Redis is away: leases outlast two missed renewals, and an outage
                self._writer.confirm()  # before the renewal: what it gives back is not renewed
                self._admission.renew()

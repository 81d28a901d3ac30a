"""Versions out of the store: fetched and verified while requests go on, and how long none of them may be unreadable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rollout.parts import Parts
from rollout.prover import timed
from shared.errors import BrokenDownloadError, StoreError
from shared.manifest import Manifest
from shared.store import open_store

SYNC_DEADLINE_S = 60.0  # for a version that cannot be read from the store
RETRY_S = 0.2


class Fetcher:
    """What one server takes from the store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = open_store(parts.config, parts.server_id)
        self._unreadable_since: float | None = None
        self._least = -1, 0  # the version whose download broke last, and the fewest parts of it that lacked

    async def stored(self, versions: Sequence[int]) -> list[int]:
        """Those of the versions that the store has; none while it does not answer."""
        if not versions:
            return []
        try:
            there = await asyncio.to_thread(self._store.versions)
        except StoreError:
            self._parts.metrics.sync_failures.labels("store").inc()
            return []
        return [version for version in versions if version in there]

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """What is fetched within the block stays until its end."""
        self._parts.stages.clear()
        try:
            yield
        finally:
            await asyncio.to_thread(self._store.let_go, self._parts.server_id)

    async def fetch(self, version: int) -> tuple[Manifest, Path]:
        """A version, verified, in a folder of this server's own. Raises StoreError."""
        progress = self._parts.status.heartbeat.progress
        with timed(self._parts, "fetch"):
            held = await asyncio.to_thread(self._store.hold, version, self._parts.server_id, progress)
        self.settle()
        return held

    async def cannot_read(self, version: int, error: StoreError) -> None:
        """Waits a little. The time counts from the first of failures in a row, and anew from parts that came.

        Raises:
            StoreError: for SYNC_DEADLINE_S no version could be read, and nothing of one has come.

        """
        now = time.monotonic()
        self._parts.metrics.sync_failures.labels("store").inc()
        if self._unreadable_since is None:
            self._unreadable_since = now
            self._parts.log.warning("a version cannot be read", policy_version=version, error=str(error))
        if isinstance(error, BrokenDownloadError) and self._has_come_closer(version, error):
            self._unreadable_since = now
        if now - self._unreadable_since > SYNC_DEADLINE_S:
            raise StoreError(f"for {SYNC_DEADLINE_S:g} s no version could be read: {error}") from error
        with self._parts.status.during("sync", f"cannot read version {version}: {error}"):
            await asyncio.sleep(RETRY_S)

    def _has_come_closer(self, version: int, error: BrokenDownloadError) -> bool:
        """True where fewer parts lack than ever: a download that is spoiled, and begun over and over, ends too."""
        of, least = self._least
        closer = error.came > 0 and (version != of or error.missing < least)
        if closer or version != of:
            self._least = version, error.missing
        return closer

    def settle(self) -> None:
        """What is served is what is wanted: what could not be read before does not matter any more."""
        self._unreadable_since = None

"""Which version a server serves: it follows the latest at its lag, and serves nothing that it has not proven.

look --> target = ancestor(latest, lag) --> hold, verify files --> load, generation goes on --> proof --> served
                                                             `--- the gate is shut: nothing is appended ---'
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rollout.engines.base import Engine
from rollout.parts import Parts
from rollout.proof import TOLERANCE_NATS, Proof, prove
from rollout.transfer import Receiver
from shared.errors import EngineError, StoreError, TransferError, UnprovenVersionError, WireOnlyError
from shared.log import on_every_line
from shared.manifest import Manifest
from shared.store import PolicyStore
from shared.transfer import Call

SYNC_DEADLINE_S = 60.0  # for a version that cannot be read from the store


def lineage(latest: int, parents: Mapping[int, int]) -> list[int]:
    """The latest version and its known ancestors, newest first."""
    line = [latest]
    while (parent := parents.get(line[-1], -1)) in parents:
        line.append(parent)
    return line


def ancestor(latest: int, lag: int, parents: Mapping[int, int]) -> int:
    """The version `lag` steps up the ancestry, or the oldest one known."""
    line = lineage(latest, parents)
    return line[min(lag, len(line) - 1)]


class Syncer:
    """Loads and proves versions. `gate` is open while what the engine serves is proven."""

    def __init__(self, parts: Parts, engine: Engine) -> None:
        config = parts.config
        self.gate = asyncio.Event()
        self.proven: set[int] = set()
        self._store = PolicyStore(config.run.folder / "policy")
        self._engine = engine
        self._parts = parts
        self._receiver = Receiver(parts, engine)
        self._tolerance_nats = config.rollout.proof_tolerance_nats or TOLERANCE_NATS[config.model.dtype]
        self._proof: Proof | None = None
        self._unreadable_since: float | None = None

    @property
    def served(self) -> int:
        """The version that is served, proven; -1 before the first."""
        return self._proof.manifest.policy_version if self._proof is not None else -1

    def stored(self, version: int) -> bool:
        """True while the store has this version."""
        return version in self._store.versions()

    async def follow(self, version: int) -> None:
        """Serves a version, or says why it cannot yet and leaves it for the next time.

        Raises:
            StoreError: nothing could be read from the store for SYNC_DEADLINE_S.
            UnprovenVersionError: the engine does not answer the probe as the learner did.
            EngineError: the engine failed.

        """
        try:
            await self.serve(version)
            self._unreadable_since = None
        except WireOnlyError as error:
            await self._receiver.wait_for_files(version, error, serving=self.gate.is_set())
        except StoreError as error:
            now = time.monotonic()
            self._parts.metrics.sync_failures.labels("store").inc()
            if self._unreadable_since is None:
                self._unreadable_since = now
                self._parts.log.warning("a version cannot be read", policy_version=version, error=str(error))
            if now - self._unreadable_since > SYNC_DEADLINE_S:
                raise StoreError(f"for {SYNC_DEADLINE_S:g} s no version could be read: {error}") from error
            await asyncio.sleep(0.2)

    async def serve(self, version: int) -> None:
        """Verifies, loads and proves a version. Raises StoreError, EngineError, UnprovenVersionError."""
        started = time.monotonic()
        with self._parts.status.during("sync", f"loading version {version}"):
            server_id = self._parts.server_id
            try:
                manifest, folder = await asyncio.to_thread(self._store.hold, version, server_id)
                call = await self._receiver.meet(manifest, serving=self._proof is not None)
                await self._load_and_prove(manifest, folder, call)
            finally:
                await asyncio.to_thread(self._store.let_go, server_id)
        self.gate.set()
        self._parts.metrics.sync_seconds.observe(time.monotonic() - started)

    async def _load_and_prove(self, manifest: Manifest, folder: Path, call: Call | None) -> None:
        was_open = self.gate.is_set()
        self.gate.clear()
        try:
            await self._load(folder, manifest.policy_version, call)
            self._accept(await self._prove(manifest))
        except TransferError as error:
            if error.untouched and was_open:
                self.gate.set()
            self._parts.metrics.sync_failures.labels("transfer").inc()
            raise WireOnlyError(f"version {manifest.policy_version} did not come over the wire: {error}") from error
        except EngineError as error:
            self._report(manifest.policy_version, error)
            raise

    async def _load(self, folder: Path, version: int, call: Call | None) -> None:
        self._parts.metrics.syncs.labels("files" if call is None else "wire").inc()
        if call is not None:
            self._parts.metrics.pause_seconds.observe(await self._receiver.receive(call, folder))
        elif self._proof is None:
            await self._engine.start(folder, version)
        else:
            self._parts.metrics.pause_seconds.observe(await self._engine.load(folder, version))

    async def _prove(self, manifest: Manifest) -> Proof:
        if self._engine.policy_version != manifest.policy_version:
            raise UnprovenVersionError(
                f"version {manifest.policy_version} was loaded, but the engine says {self._engine.policy_version}"
            )
        answers = await asyncio.gather(
            *(self._engine.logprobs(np.asarray(row, dtype=np.int32)) for row in manifest.probe.sequences)
        )
        return prove(manifest, answers, self._tolerance_nats, self._proof)

    def _accept(self, proof: Proof) -> None:
        version = proof.manifest.policy_version
        self._proof = proof
        self.proven.add(version)
        self._parts.status.serves(version, proof.difference)
        self._parts.metrics.served_version.set(version)
        on_every_line(policy_version=version)
        self._parts.metrics.floor.set(proof.difference)

    def _report(self, version: int, error: EngineError) -> None:
        kind = "unproven" if isinstance(error, UnprovenVersionError) else "engine"
        self._parts.metrics.sync_failures.labels(kind).inc()
        self._parts.log.error("a version is refused", policy_version=version, reason=kind, error=str(error))

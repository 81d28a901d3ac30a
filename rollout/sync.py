"""Which version a server serves: it follows the latest at its lag, and serves nothing that it has not proven.

look --> target = ancestor(latest, lag) --> fetch and verify, stage --> load --> proof --> served
            generation and appends go on ------------------------------'         |
                                                   the gate is shut: no append --'
a version that is not proven: halted (nothing is generated) --> loaded again --> a fresh engine --> refused: the next
version is tried, up to rollout.max_refused_versions in a row
a version that the learner sends over the wire is received instead of loaded, once; what goes wrong there ends at the
version's files, and from there on as above
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from rollout.engines.renewable import RenewableEngine
from rollout.parts import Parts
from rollout.proof import Proof
from rollout.prover import Prover, timed
from rollout.transfer import Receiver
from shared.errors import EngineError, StoreError, TransferError, UnprovenVersionError, WireOnlyError
from shared.log import on_every_line
from shared.manifest import Manifest
from shared.store import open_store
from shared.tensor_table import has_weights
from shared.transfer import Call

SYNC_DEADLINE_S = 60.0  # for a version that cannot be read from the store
RETRY_S = 0.2


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
    """Loads and proves versions.

    `gate` is shut while a proof is pending; `halted` is set while the engine has weights that are not proven.
    """

    def __init__(self, parts: Parts, engine: RenewableEngine) -> None:
        config = parts.config
        self.gate = asyncio.Event()
        self.halted = asyncio.Event()
        self.proven: set[int] = set()
        self._store = open_store(config, parts.server_id)
        self._engine = engine
        self._parts = parts
        self._prover = Prover(parts, engine)
        self._receiver = Receiver(parts, engine)
        self._proof: Proof | None = None  # of the version proven last
        self._started = False
        self._refused: list[int] = []  # in a row
        self._unreadable_since: float | None = None

    @property
    def served(self) -> int:
        """The version that is served, proven; -1 while there is none."""
        return self._proof.manifest.policy_version if self._proof is not None and not self.halted.is_set() else -1

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

    async def follow(self, version: int, moment: AbstractAsyncContextManager[None] | None = None) -> None:
        """Serves a version, or says why it cannot yet and leaves it for the next time.

        Args:
            version: one that was refused is not tried again until another one was served.
            moment: entered before the weights change.

        Raises:
            StoreError: for SYNC_DEADLINE_S every version that was wanted could not be read from the store.
            UnprovenVersionError: rollout.max_refused_versions in a row could not be proven.
            EngineError: the engine failed.

        """
        if version in self._refused:
            await asyncio.sleep(RETRY_S)
            return
        try:
            await self.serve(version, moment)
            self._parts.status.say("sync", "")
        except WireOnlyError as error:
            await self._receiver.wait_for_files(version, error, serving=self.served >= 0)
        except StoreError as error:
            await self._cannot_read(version, error)
        except UnprovenVersionError as error:
            if len(self._refused) >= self._parts.config.rollout.max_refused_versions:
                raise UnprovenVersionError(
                    f"versions {self._refused} could not be proven (rollout.max_refused_versions); the last: {error}",
                    error.nats,
                ) from error
            self._parts.status.say("sync", f"waiting for a newer version: {error}")

    async def _cannot_read(self, version: int, error: StoreError) -> None:
        """Waits a little. The time counts from the first of failures in a row."""
        now = time.monotonic()
        self._parts.metrics.sync_failures.labels("store").inc()
        if self._unreadable_since is None:
            self._unreadable_since = now
            self._parts.log.warning("a version cannot be read", policy_version=version, error=str(error))
        if now - self._unreadable_since > SYNC_DEADLINE_S:
            raise StoreError(f"for {SYNC_DEADLINE_S:g} s no version could be read: {error}") from error
        with self._parts.status.during("sync", f"cannot read version {version}: {error}"):
            await asyncio.sleep(RETRY_S)

    def settle(self) -> None:
        """What is served is what is wanted: what could not be read before does not matter any more."""
        self._unreadable_since = None

    async def serve(self, version: int, moment: AbstractAsyncContextManager[None] | None = None) -> None:
        """Fetches, loads and proves a version. Raises StoreError, EngineError, UnprovenVersionError, DeadlineError."""
        started = time.monotonic()
        self._parts.stages.clear()
        server_id = self._parts.server_id
        with self._parts.status.during("sync", f"fetching version {version}"):
            try:
                with timed(self._parts, "fetch"):
                    progress = self._parts.status.heartbeat.progress
                    manifest, folder = await asyncio.to_thread(self._store.hold, version, server_id, progress)
                self._unreadable_since = None
                call = await self._receiver.meet(manifest, serving=self._started)
                if self._started and call is None:
                    with timed(self._parts, "stage"):
                        await self._engine.stage(folder)
                await self._switch(manifest, folder, call, moment or nullcontext())
            finally:
                await asyncio.to_thread(self._store.let_go, server_id)
        self._parts.metrics.sync_seconds.observe(time.monotonic() - started)

    async def _switch(
        self, manifest: Manifest, folder: Path, call: Call | None, moment: AbstractAsyncContextManager[None]
    ) -> None:
        asked = time.monotonic()
        async with moment:
            self._parts.metrics.sync_stage_seconds.labels("wait").observe(time.monotonic() - asked)
            with self._parts.status.during("sync", f"loading version {manifest.policy_version}"):
                self.gate.clear()
                try:
                    await self._load_and_prove(manifest, folder, call)
                except (UnprovenVersionError, WireOnlyError):
                    self.gate.set()  # nothing is pending any more; `halted` says the rest
                    raise
                except EngineError as error:
                    self._parts.metrics.sync_failures.labels("engine").inc()
                    version = manifest.policy_version
                    self._parts.log.error("a version cannot be loaded", policy_version=version, error=str(error))
                    self._stand_still()  # nobody knows what it has loaded
                    self.gate.set()
                    raise
                self.gate.set()

    async def _load_and_prove(self, manifest: Manifest, folder: Path, call: Call | None) -> None:
        """As often as there are ways to load: once over the wire if called, then from files, if there are any.

        Raises what the last proof failed for, and WireOnlyError where files are to be asked for.
        """
        self.proven.discard(manifest.policy_version)  # it may have been served before: this load has to show itself
        if call is not None:
            try:
                await self._receive_and_prove(manifest, folder, call)
            except WireOnlyError:
                if not has_weights(manifest):
                    raise
            else:
                return
        await self._read_and_prove(manifest, folder)

    async def _receive_and_prove(self, manifest: Manifest, folder: Path, call: Call) -> None:
        version = manifest.policy_version
        try:
            with timed(self._parts, "receive"):
                self._paused(await self._receiver.receive(call, folder))
            self._parts.metrics.syncs.labels("wire").inc()
            self._accept(await self._prover.prove(manifest, folder, self._proof), attempt=1)
        except TransferError as error:
            self._parts.metrics.sync_failures.labels("transfer").inc()
            if not error.untouched:
                self._stand_still()
            raise WireOnlyError(f"version {version} did not come over the wire: {error}") from error
        except UnprovenVersionError as error:
            self._halt(version, error, attempt=1)
            raise WireOnlyError(f"version {version} came over the wire and is not proven: {error}") from error

    async def _read_and_prove(self, manifest: Manifest, folder: Path) -> None:
        attempts = (self._load, self._load, self._renew)
        for attempt, load in enumerate(attempts, start=1):
            try:
                with timed(self._parts, "load"):
                    await load(folder, manifest.policy_version)
                self._parts.metrics.syncs.labels("files").inc()
                self._accept(await self._prover.prove(manifest, folder, self._proof), attempt)
            except UnprovenVersionError as error:
                self._halt(manifest.policy_version, error, attempt)
                if attempt == len(attempts):
                    await self._refuse(manifest.policy_version, error)
                    raise
            else:
                return

    async def _load(self, folder: Path, version: int) -> None:
        if not self._started:
            await self._engine.start(folder, version)
            self._started = True
            return
        self._paused(await self._engine.load(folder, version))

    async def _renew(self, folder: Path, version: int) -> None:
        await self._engine.renew(folder, version)

    def _paused(self, seconds: float) -> None:
        self._parts.stages["pause_s"] = round(seconds, 4)
        self._parts.busy.stood_still(seconds)
        self._parts.metrics.pause_seconds.observe(seconds)
        self._parts.status.paused(seconds)

    def _accept(self, proof: Proof, attempt: int) -> None:
        version, floor, metrics = proof.manifest.policy_version, proof.floor, self._parts.metrics
        self._proof = proof
        self.proven.add(version)
        self.halted.clear()
        self._refused.clear()
        self._parts.status.serves(version, floor)
        metrics.served_version.set(version)
        metrics.refused_version.set(-1)
        metrics.floor_max.set(floor.max_nats)
        metrics.floor_mean.set(floor.mean_nats)
        metrics.floor_token_ess.set(floor.token_ess)
        on_every_line(policy_version=version)
        self._parts.log.info(
            "a version is proven",
            attempt=attempt,
            **self._parts.stages,
            floor_mean_nats=floor.mean_nats,
            floor_max_nats=floor.max_nats,
            floor_token_ess=floor.token_ess,
        )

    def _halt(self, version: int, error: UnprovenVersionError, attempt: int) -> None:
        """A version was loaded and is not what it should be."""
        self._stand_still()
        self._parts.metrics.sync_failures.labels("unproven").inc()
        self._parts.metrics.refused_version.set(version)
        self._parts.status.refuses(version, error.nats)
        self._parts.log.error("a version is not proven", refused=version, attempt=attempt, error=str(error))

    def _stand_still(self) -> None:
        """From here on nothing is generated until a version is proven."""
        self.halted.set()
        self._parts.metrics.served_version.set(-1)
        self._parts.status.serves_nothing()

    async def _refuse(self, version: int, error: UnprovenVersionError) -> None:
        self._refused.append(version)
        await self._parts.record("version refused", str(error))

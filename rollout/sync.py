"""Which version a server serves: it follows the latest at its lag, and serves nothing that it has not proven.

look --> target = ancestor(latest, lag) --> fetch and verify, stage --> load --> proof --> served
            generation and appends go on ------------------------------'         |
                                                   the gate is shut: no append --'
a version that is not proven: halted (nothing is generated) --> loaded again --> a fresh engine --> refused: the next
version is tried, up to rollout.max_refused_versions in a row
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from rollout.engines.base import TensorReport
from rollout.engines.renewable import RenewableEngine
from rollout.factory import engine_dtype
from rollout.parts import Parts
from rollout.proof import TOLERANCE_NATS, Proof, check_tensors, is_weights, prove, wrong_tensors
from shared.errors import EngineError, StoreError, UnprovenVersionError
from shared.log import on_every_line
from shared.manifest import Manifest
from shared.store import open_store
from shared.types import Float32Array

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
        tolerances = [TOLERANCE_NATS[dtype] for dtype in (config.model.dtype, engine_dtype(config))]
        self._tolerance_nats = config.rollout.proof_tolerance_nats or max(tolerances)
        self._exact_files = config.model.dtype == "float32"
        self._proof: Proof | None = None  # of the version proven last
        self._started = False
        self._refused: list[int] = []  # in a row
        self._stages: dict[str, float] = {}  # what the parts of the newest sync took, seconds
        self._unreadable_since: float | None = None

    @property
    def served(self) -> int:
        """The version that is served, proven; -1 while there is none."""
        return self._proof.manifest.policy_version if self._proof is not None and not self.halted.is_set() else -1

    def stored(self, version: int) -> bool:
        """True while the store has this version."""
        return version in self._store.versions()

    async def follow(self, version: int, moment: AbstractAsyncContextManager[None] | None = None) -> None:
        """Serves a version, or says why it cannot yet and leaves it for the next time.

        Args:
            version: one that was refused is not tried again until another one was served.
            moment: entered before the weights change.

        Raises:
            StoreError: nothing could be read from the store for SYNC_DEADLINE_S.
            UnprovenVersionError: rollout.max_refused_versions in a row could not be proven.
            EngineError: the engine failed.

        """
        if version in self._refused:
            await asyncio.sleep(RETRY_S)
            return
        try:
            await self.serve(version, moment)
            self._unreadable_since = None
            self._parts.status.say("sync", "")
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
        now = time.monotonic()
        self._parts.metrics.sync_failures.labels("store").inc()
        if self._unreadable_since is None:
            self._unreadable_since = now
            self._parts.log.warning("a version cannot be read", policy_version=version, error=str(error))
        if now - self._unreadable_since > SYNC_DEADLINE_S:
            raise StoreError(f"for {SYNC_DEADLINE_S:g} s no version could be read: {error}") from error
        await asyncio.sleep(RETRY_S)

    async def serve(self, version: int, moment: AbstractAsyncContextManager[None] | None = None) -> None:
        """Fetches, loads and proves a version. Raises StoreError, EngineError, UnprovenVersionError, DeadlineError."""
        started = time.monotonic()
        self._stages = {}
        server_id = self._parts.server_id
        with self._parts.status.during("sync", f"fetching version {version}"):
            try:
                with self._timed("fetch"):
                    manifest, folder = await asyncio.to_thread(self._store.hold, version, server_id)
                if self._started:
                    with self._timed("stage"):
                        await self._engine.stage(folder)
                await self._switch(manifest, folder, moment or nullcontext())
            finally:
                await asyncio.to_thread(self._store.let_go, server_id)
        self._parts.metrics.sync_seconds.observe(time.monotonic() - started)

    async def _switch(self, manifest: Manifest, folder: Path, moment: AbstractAsyncContextManager[None]) -> None:
        asked = time.monotonic()
        async with moment:
            self._parts.metrics.sync_stage_seconds.labels("wait").observe(time.monotonic() - asked)
            with self._parts.status.during("sync", f"loading version {manifest.policy_version}"):
                self.gate.clear()
                try:
                    await self._load_and_prove(manifest, folder)
                except UnprovenVersionError:
                    self.gate.set()  # nothing is pending any more; `halted` says the rest
                    raise
                except EngineError as error:
                    self._parts.metrics.sync_failures.labels("engine").inc()
                    version = manifest.policy_version
                    self._parts.log.error("a version cannot be loaded", policy_version=version, error=str(error))
                    raise
                self.gate.set()

    async def _load_and_prove(self, manifest: Manifest, folder: Path) -> None:
        """As often as there are ways to load. Raises what the last proof failed for."""
        self.proven.discard(manifest.policy_version)  # it may have been served before: this load has to show itself
        attempts = (self._load, self._load, self._renew)
        for attempt, load in enumerate(attempts, start=1):
            try:
                with self._timed("load"):
                    await load(folder, manifest.policy_version)
                self._accept(await self._prove(manifest, folder), attempt)
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
        paused = await self._engine.load(folder, version)
        self._stages["pause_s"] = round(paused, 4)
        self._parts.metrics.pause_seconds.observe(paused)
        self._parts.status.paused(paused)

    async def _renew(self, folder: Path, version: int) -> None:
        await self._engine.renew(folder, version)

    async def _prove(self, manifest: Manifest, folder: Path) -> Proof:
        version = manifest.policy_version
        if self._engine.policy_version != version:
            raise UnprovenVersionError(
                f"version {version} was loaded, but the engine says {self._engine.policy_version}"
            )
        report = await self._compare(manifest, folder)
        try:
            answers = await self._ask(manifest)
            proof = prove(manifest, answers, self._tolerance_nats, self._proof, exact_files=self._exact_files)
        except UnprovenVersionError as error:
            if report.wrong:
                raise UnprovenVersionError(f"{error}; {wrong_tensors(report)}", error.nats) from error
            raise
        check_tensors(version, report, proof)
        return proof

    async def _ask(self, manifest: Manifest) -> list[Float32Array]:
        """The engine's answers to the probe. Raises UnprovenVersionError where a living engine has none."""
        rows = [np.asarray(row, dtype=np.int32) for row in manifest.probe.sequences]
        try:
            with self._timed("probe"):
                return await asyncio.gather(*(self._engine.logprobs(row) for row in rows))
        except EngineError as error:
            if self._engine.failure is not None:
                raise
            version = manifest.policy_version
            raise UnprovenVersionError(f"version {version} does not answer its probe: {error}") from error

    async def _compare(self, manifest: Manifest, folder: Path) -> TensorReport:
        """The loaded tensors against the version's files, where it has any."""
        if not any(is_weights(file.name) for file in manifest.files):
            self._parts.metrics.tensors_unchecked.set(math.nan)
            return TensorReport()
        with self._timed("tensors"):
            report = await self._engine.check_tensors(folder)
        self._parts.metrics.tensors_unchecked.set(len(report.unchecked))
        return report

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self._stages[f"{stage}_s"] = round(seconds, 4)
        self._parts.metrics.sync_stage_seconds.labels(stage).observe(seconds)

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
            **self._stages,
            floor_mean_nats=floor.mean_nats,
            floor_max_nats=floor.max_nats,
            floor_token_ess=floor.token_ess,
        )

    def _halt(self, version: int, error: UnprovenVersionError, attempt: int) -> None:
        """From here on nothing is generated until a version is proven."""
        self.halted.set()
        self._parts.metrics.sync_failures.labels("unproven").inc()
        self._parts.metrics.served_version.set(-1)
        self._parts.metrics.refused_version.set(version)
        self._parts.status.refuses(version, error.nats)
        self._parts.log.error("a version is not proven", refused=version, attempt=attempt, error=str(error))

    async def _refuse(self, version: int, error: UnprovenVersionError) -> None:
        self._refused.append(version)
        add_event, server_id = self._parts.control.add_event, self._parts.server_id
        await self._parts.patience("record a refusal", lambda: add_event("version refused", str(error), server_id))

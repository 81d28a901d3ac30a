"""Asks the engine what `proof` wants to know: the loaded tensors and the answers to a version's probe."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rollout.engines.base import Engine, TensorReport
from rollout.parts import Parts
from rollout.proof import TOLERANCE_NATS, Proof, check_tensors, prove, wrong_tensors
from shared.errors import EngineError, UnprovenVersionError
from shared.manifest import Manifest
from shared.tensor_table import has_weights
from shared.types import Float32Array


@contextmanager
def timed(parts: Parts, stage: str) -> Iterator[None]:
    """Observes how long a stage of a sync took, where it did not fail."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    parts.stages[f"{stage}_s"] = round(seconds, 4)
    parts.metrics.sync_stage_seconds.labels(stage).observe(seconds)


class Prover:
    """Proves what one engine has loaded."""

    def __init__(self, parts: Parts, engine: Engine) -> None:
        config = parts.config
        self._parts = parts
        self._engine = engine
        precisions = [config.model.dtype, config.engine_dtype]
        if config.rollout.engine.quantization != "none":
            precisions.append("8 bits")
        tolerances = [TOLERANCE_NATS[precision] for precision in precisions]
        self._tolerance_nats = config.rollout.proof_tolerance_nats or max(tolerances)
        self._exact_files = config.model.dtype == "float32"

    async def prove(self, manifest: Manifest, folder: Path, before: Proof | None) -> Proof:
        """Has the engine loaded this version, after the one proven before?

        Raises:
            UnprovenVersionError: it has not, or a living engine does not say.
            EngineError: the engine is dead.

        """
        version = manifest.policy_version
        if self._engine.policy_version != version:
            raise UnprovenVersionError(
                f"version {version} was loaded, but the engine says {self._engine.policy_version}"
            )
        report = await self._compare(manifest, folder)
        try:
            answers = await self._ask(manifest)
            proof = prove(manifest, answers, self._tolerance_nats, before, exact_files=self._exact_files)
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
            with timed(self._parts, "probe"):
                return await asyncio.gather(*(self._engine.logprobs(row) for row in rows))
        except EngineError as error:
            if self._engine.failure is not None:
                raise
            version = manifest.policy_version
            raise UnprovenVersionError(f"version {version} does not answer its probe: {error}") from error

    async def _compare(self, manifest: Manifest, folder: Path) -> TensorReport:
        """The loaded tensors against the version's files, where it has any."""
        if not has_weights(manifest):  # they came over the wire, each compared with its checksum
            self._parts.metrics.tensors_unchecked.set(math.nan)
            return TensorReport()
        with timed(self._parts, "tensors"):
            report = await self._engine.check_tensors(folder)
        self._parts.metrics.tensors_unchecked.set(len(report.unchecked))
        return report

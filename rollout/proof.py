"""Has the engine loaded what was published? Pure functions on a probe's log-probs.

    difference = max |measured - published|                                         over the probe's tokens
    share      = <measured change, published change> / |published change|^2         since the version served before

The first alone would pass old weights whenever a version moved less than the tolerance; then the second is
about 0 instead of 1. It says something where the published change stands out of the noise, which is taken from
the version served before: |published change| >= 4 |measured - published|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import UnprovenVersionError
from shared.manifest import Manifest
from shared.types import Float32Array

TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.5}
ROUNDING_NATS = 1e-6  # of a float32 log-prob
SIGNAL_TO_NOISE = 4.0
LEAST_SHARE = 0.5

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Proof:
    """A proven version and what the engine answered to its probe."""

    manifest: Manifest
    published: Float64Array  # [N] over all probe sequences
    measured: Float64Array  # [N]

    @property
    def difference(self) -> float:
        """Largest difference, nats."""
        return _largest(self.measured - self.published)


def prove(manifest: Manifest, answers: Sequence[Float32Array], tolerance_nats: float, before: Proof | None) -> Proof:
    """Compares the engine's answers to a version's probe with the learner's.

    Args:
        manifest: of the version that was loaded.
        answers: the engine's log-probs of tokens 1..T-1 of each probe sequence.
        tolerance_nats: largest difference allowed.
        before: the proof of the version that the engine served before, if there was one.

    Raises:
        UnprovenVersionError: names the version and by how many nats it is off.

    """
    version = manifest.policy_version
    expected = [len(row) for row in manifest.probe.logprobs]
    if not sum(expected) or [len(row) for row in answers] != expected:
        raise UnprovenVersionError(f"version {version}: the probe has {expected} log-probs, so it proves nothing")
    proof = Proof(manifest, _flat(manifest.probe.logprobs), _flat(answers))
    if not proof.difference <= tolerance_nats:  # NaN is not within tolerance
        raise UnprovenVersionError(
            f"version {version} is not what the engine serves: its probe is off by {proof.difference:.3g} nats, "
            f"{tolerance_nats:g} is allowed"
        )
    if before is not None and before.manifest.probe.sequences == manifest.probe.sequences:
        _check_change(proof, before)
    return proof


def _check_change(now: Proof, before: Proof) -> None:
    published = now.published - before.published
    measured = now.measured - before.measured
    noise = max(float(np.linalg.norm(before.measured - before.published)), ROUNDING_NATS * len(published) ** 0.5)
    if np.linalg.norm(published) < SIGNAL_TO_NOISE * noise:
        return
    share = float(measured @ published / (published @ published))
    if share < LEAST_SHARE:
        raise UnprovenVersionError(
            f"version {now.manifest.policy_version} is not what the engine serves: since version "
            f"{before.manifest.policy_version} the probe moved by up to {_largest(published):.3g} nats, in the engine "
            f"by {_largest(measured):.3g}"
        )


def _flat(rows: Sequence[Sequence[float] | Float32Array]) -> Float64Array:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _largest(values: Float64Array) -> float:
    return float(np.abs(values).max())

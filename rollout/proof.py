"""Has the engine loaded what was published? Pure functions on a probe's log-probs.

    difference = max |measured - published|                                         over the probe's N tokens
    share      = <measured change, published change> / |published change|^2         since the version proven before
    noise      = |measured - published| / sqrt(N) of the versions proven before

The difference alone would pass old weights whenever a version moved less than the tolerance; then the share is about
0 instead of 1. With noise that does not know the direction of the change, the share of the right weights is
1 +- sqrt(2) noise / |published change|. It counts where |published change| >= 20 noise: a share below .5 is then 7
standard deviations off for the right weights, and old weights, at 0, are as far on the other side. So that a right
version is not refused where the noise has grown, it is taken as the largest of what was seen before, forgotten slowly
(5 % a version), and of what the measured change has beside the published direction.

The probe's precision bounds what it can see: the change of one small tensor may drown in it. That is what the
comparison of tensors is for (`Engine.check_tensors`); what an engine cannot show of its tensors, the probe covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rollout.engines.base import TensorReport
from shared.errors import UnprovenVersionError
from shared.manifest import Manifest
from shared.tensor_table import weight_files
from shared.types import Float32Array

TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.5, "8 bits": 1.0}
ROUNDING_NATS = 1e-6  # of a float32 log-prob
REPEATED_NATS = 2e-5  # by which a learner's log-probs may differ when it computes those of the same weights again
SIGNAL_TO_NOISE = 20.0
LEAST_SHARE = 0.5
FORGETTING = 0.95  # of the noise, from one version to the next
NAMED = 3  # tensors in the message of a refusal

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Floor:
    """What learner and engine differ by on the same weights: what staleness must not be blamed for."""

    mean_nats: float  # mean |difference| of a token's log-prob
    max_nats: float
    token_ess: float  # of the ratios learner / engine over the probe's tokens, in [1/N, 1]


@dataclass(frozen=True)
class Proof:
    """A proven version and what the engine answered to its probe."""

    manifest: Manifest
    published: Float64Array  # [N] over all probe sequences
    measured: Float64Array  # [N]
    noise_nats: float  # root mean square, a slowly forgotten maximum

    @property
    def difference(self) -> float:
        """Largest difference, nats."""
        return _largest(self.measured - self.published)

    @property
    def floor(self) -> Floor:
        """The numerics floor of this version on this engine."""
        log_ratio = self.published - self.measured
        ratio = np.exp(log_ratio - log_ratio.max())
        ess = float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum()))
        return Floor(float(np.abs(log_ratio).mean()), self.difference, ess)


def prove(
    manifest: Manifest,
    answers: Sequence[Float32Array],
    tolerance_nats: float,
    before: Proof | None,
    *,
    exact_files: bool = False,
) -> Proof:
    """Compares the engine's answers to a version's probe with the learner's.

    Args:
        manifest: of the version that was loaded.
        answers: the engine's log-probs of tokens 1..T-1 of each probe sequence.
        tolerance_nats: largest difference allowed.
        before: the proof of the version that the engine served before, if there was one.
        exact_files: the learner computes with what is in the files; False where it rounds when it publishes.

    Raises:
        UnprovenVersionError: names the version and by how many nats it is off.

    """
    version = manifest.policy_version
    expected = [len(row) for row in manifest.probe.logprobs]
    if not sum(expected) or [len(row) for row in answers] != expected:
        raise UnprovenVersionError(f"version {version}: the probe has {expected} log-probs, so it proves nothing")
    published, measured = _flat(manifest.probe.logprobs), _flat(answers)
    noise = float(np.linalg.norm(measured - published)) / len(published) ** 0.5
    proof = Proof(manifest, published, measured, max(noise, FORGETTING * before.noise_nats if before else 0.0))
    if not proof.difference <= tolerance_nats:  # NaN is not within tolerance
        raise UnprovenVersionError(
            f"version {version} is not what the engine serves: its probe is off by {proof.difference:.3g} nats, "
            f"{tolerance_nats:g} is allowed",
            proof.difference,
        )
    if before is not None:
        _check_claim(manifest, before.manifest)
        if before.manifest.probe.sequences == manifest.probe.sequences:
            if exact_files:
                _check_files(proof, before)
            _check_change(proof, before)
    return proof


def check_tensors(version: int, report: TensorReport, proof: Proof) -> None:
    """Raises UnprovenVersionError where a loaded tensor is not the file's, although the probe says nothing."""
    if report.wrong:
        raise UnprovenVersionError(
            f"version {version} is not what the engine serves: {wrong_tensors(report)}", proof.difference
        )


def wrong_tensors(report: TensorReport) -> str:
    """Which of an engine's tensors are not those of the files; '' where all are."""
    if not report.wrong:
        return ""
    names = ", ".join(report.wrong[:NAMED]) + (" ..." if len(report.wrong) > NAMED else "")
    of = len(report.wrong) + report.checked
    return f"{len(report.wrong)} of {of} tensors differ from the published ones: {names}"


def _check_claim(now: Manifest, before: Manifest) -> None:
    """Whether two versions have the same weights, a learner says of its own versions."""
    if -1 in (now.weights_of, before.weights_of) or now.epoch != before.epoch:
        return
    files, files_before = _weights(now), _weights(before)
    said, same = now.weights_of == before.weights_of, files == files_before
    if files and files_before and said != same:
        found, claim = ("the weights of", "they differ") if same else ("other weights than", "they are the same")
        raise UnprovenVersionError(
            f"version {now.policy_version} has {found} version {before.policy_version}, and the learner "
            f"says that {claim}"
        )


def _check_files(now: Proof, before: Proof) -> None:
    """The previous version's files under a new name: the same weights cannot give other log-probs."""
    moved = _largest(now.published - before.published)
    weights = _weights(now.manifest)  # none where they came over the wire
    if moved > REPEATED_NATS and weights and weights == _weights(before.manifest):
        raise UnprovenVersionError(
            f"version {now.manifest.policy_version} has the weights of version {before.manifest.policy_version}, byte "
            f"for byte, but says that its probe has moved by {moved:.3g} nats",
            moved,
        )


def _weights(manifest: Manifest) -> list[tuple[str, int, str]]:
    return [(file.name, file.size, file.checksum) for file in weight_files(manifest)]


def _check_change(now: Proof, before: Proof) -> None:
    published = now.published - before.published
    measured = now.measured - before.measured
    if not published.any():
        return
    share = float(measured @ published / (published @ published))
    aside = float(np.linalg.norm(measured - share * published)) / (2 * len(published)) ** 0.5
    noise = max(before.noise_nats, aside, ROUNDING_NATS)
    if np.linalg.norm(published) >= SIGNAL_TO_NOISE * noise and share < LEAST_SHARE:
        raise UnprovenVersionError(
            f"version {now.manifest.policy_version} is not what the engine serves: since version "
            f"{before.manifest.policy_version} the probe moved by up to {_largest(published):.3g} nats, in the engine "
            f"by {_largest(measured):.3g}",
            _largest(measured - published),
        )


def _flat(rows: Sequence[Sequence[float] | Float32Array]) -> Float64Array:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _largest(values: Float64Array) -> float:
    return float(np.abs(values).max()) if len(values) else math.nan

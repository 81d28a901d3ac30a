from __future__ import annotations

import numpy as np
import pytest

from rollout.proof import Float64Array, Proof, prove
from shared.errors import UnprovenVersionError
from shared.manifest import Manifest, Probe

SEQUENCES = [list(range(9)), list(range(20))]
LENGTHS = (8, 19)


def rows(values: Float64Array) -> list[list[float]]:
    return [values[:8].tolist(), values[8:].tolist()]


def manifest(version: int, published: Float64Array, sequences: list[list[int]] = SEQUENCES) -> Manifest:
    return Manifest(version, version - 1, 0, 0.0, [], Probe(sequences, rows(published)))


def answers(values: Float64Array) -> list[np.ndarray]:
    return [np.asarray(row, dtype=np.float32) for row in rows(values)]


@pytest.fixture
def truth() -> Float64Array:
    return -np.random.default_rng(0).random(sum(LENGTHS))


@pytest.fixture
def before(truth: Float64Array) -> Proof:
    return prove(manifest(3, truth), answers(truth + 1e-6), 1e-3, None)


def test_the_difference_is_the_largest_over_all_sequences(truth: Float64Array) -> None:
    measured = truth.copy()
    measured[20] += 5e-4
    proof = prove(manifest(3, truth), answers(measured), 1e-3, None)
    assert proof.difference == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize("wrong", [2e-3, -0.7, np.nan, np.inf])
def test_one_token_out_of_tolerance_is_refused(truth: Float64Array, wrong: float) -> None:
    measured = truth.copy()
    measured[11] += wrong
    with pytest.raises(UnprovenVersionError, match=r"version 3 .* is off by \S+ nats, 0.001 is allowed"):
        prove(manifest(3, truth), answers(measured), 1e-3, None)


def test_old_weights_are_refused_although_they_are_within_tolerance(truth: Float64Array, before: Proof) -> None:
    moved = truth + 1e-4 * np.random.default_rng(1).standard_normal(sum(LENGTHS))
    with pytest.raises(UnprovenVersionError, match=r"since version 3 the probe moved by up to \S+ nats, in the engine"):
        prove(manifest(4, moved), answers(truth + 1e-6), 1e-3, before)
    assert prove(manifest(4, moved), answers(moved), 1e-3, before).difference < 1e-6


def test_a_change_below_the_noise_proves_nothing_and_is_passed(truth: Float64Array, before: Proof) -> None:
    moved = truth + 1e-6
    assert prove(manifest(4, moved), answers(truth), 1e-3, before).difference < 1e-5


def test_the_same_weights_again_are_fine(truth: Float64Array, before: Proof) -> None:
    assert prove(manifest(4, truth), answers(truth), 1e-3, before).manifest.policy_version == 4


def test_changes_are_compared_only_on_the_same_sequences(truth: Float64Array, before: Proof) -> None:
    others = [list(range(1, 10)), list(range(1, 21))]
    moved = truth + 1e-4
    assert prove(manifest(4, moved, others), answers(truth), 1e-3, before).difference == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("lengths", [(8,), (8, 18), (0, 0)])
def test_answers_to_another_probe_prove_nothing(truth: Float64Array, lengths: tuple[int, ...]) -> None:
    with pytest.raises(UnprovenVersionError, match="proves nothing"):
        prove(manifest(3, truth), [np.zeros(n, dtype=np.float32) for n in lengths], 1e-3, None)


def test_an_empty_probe_proves_nothing() -> None:
    with pytest.raises(UnprovenVersionError, match="proves nothing"):
        prove(Manifest(3, 2, 0, 0.0, [], Probe([], [])), [], 1e-3, None)

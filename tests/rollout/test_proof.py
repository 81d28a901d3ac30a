from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rollout.engines.base import TensorReport
from rollout.proof import Float64Array, Proof, check_tensors, prove
from shared.errors import UnprovenVersionError
from shared.manifest import Manifest, Probe, StoredFile

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


def test_old_weights_are_refused_where_the_change_is_twenty_times_the_noise_of_a_token(
    truth: Float64Array, before: Proof
) -> None:
    direction = np.random.default_rng(1).standard_normal(sum(LENGTHS))
    moved = truth + 21e-6 * direction / np.linalg.norm(direction)
    with pytest.raises(UnprovenVersionError, match="since version 3"):
        prove(manifest(4, moved), answers(before.measured), 1e-3, before)


@pytest.mark.parametrize("growth", [1.0, 2.0, 5.0])
def test_noise_does_not_get_a_right_version_refused(truth: Float64Array, growth: float) -> None:
    """Noise with a heavy tail, as before or grown; the change is as small as the rule looks at."""
    random = np.random.default_rng(2)
    for _ in range(3000):
        noise, now = random.standard_t(4, (2, sum(LENGTHS))) * 1e-5
        before = prove(manifest(3, truth), answers(truth + noise), 1e-2, None)
        direction = random.standard_normal(sum(LENGTHS))
        moved = truth + 20.1 * before.noise_nats * direction / np.linalg.norm(direction)
        prove(manifest(4, moved), answers(moved + growth * now), 1e-2, before)


def test_one_quiet_version_does_not_make_the_next_proof_strict(truth: Float64Array) -> None:
    loud = prove(manifest(3, truth), answers(truth + 1e-4), 1e-3, None)
    quiet = prove(manifest(4, truth), answers(truth), 1e-3, loud)
    assert quiet.noise_nats == pytest.approx(0.95 * loud.noise_nats)
    assert loud.noise_nats == pytest.approx(1e-4, rel=0.01)


def test_the_previous_weights_cannot_have_another_probe(truth: Float64Array) -> None:
    """Below the noise of this engine, so that only the files tell."""
    file = StoredFile("model.safetensors", 10, "xxh3_128:" + "0" * 32)
    before = prove(replace(manifest(3, truth), files=[file]), answers(truth + 1e-5), 1e-3, None)
    moved = replace(manifest(4, truth + 3e-5), files=[file])
    with pytest.raises(UnprovenVersionError, match="version 4 has the weights of version 3, byte for byte"):
        prove(moved, answers(truth), 1e-3, before, exact_files=True)
    assert prove(moved, answers(truth), 1e-3, before), "rounded when published: the change may have been rounded away"
    other = replace(moved, files=[replace(file, checksum="xxh3_128:" + "1" * 32)])
    assert prove(other, answers(truth), 1e-3, before, exact_files=True)


@pytest.mark.parametrize(
    ("weights_of", "digit", "wrong"),
    [
        (3, "0", ""),
        (4, "1", ""),
        (4, "0", "version 4 has the weights of version 3, and the learner says that they differ"),
        (3, "1", "version 4 has other weights than version 3, and the learner says that they are the same"),
    ],
)
@pytest.mark.parametrize("said", [True, False])
def test_a_learner_s_word_on_whether_weights_changed_must_be_that_of_the_files(
    truth: Float64Array, weights_of: int, digit: str, wrong: str, said: bool
) -> None:
    def version(number: int, digit: str, epoch: int, weights_of: int) -> Manifest:
        file = StoredFile("model.safetensors", 10, "xxh3_128:" + digit * 32)
        return replace(manifest(number, truth), files=[file], epoch=epoch, weights_of=weights_of)

    before = prove(version(3, "0", 5, 3 if said else -1), answers(truth), 1e-3, None)
    now = version(4, digit, 5, weights_of)
    prove(replace(now, epoch=6), answers(truth), 1e-3, before)  # another learner's: a restore has older weights again
    prove(replace(now, files=[]), answers(truth), 1e-3, before)  # over the wire alone
    if not (wrong and said):
        assert prove(now, answers(truth), 1e-3, before)
        return
    with pytest.raises(UnprovenVersionError, match=wrong):
        prove(now, answers(truth), 1e-3, before)


def test_the_floor_is_what_the_engine_differs_by(truth: Float64Array) -> None:
    off = np.zeros(sum(LENGTHS))
    off[3] = np.log(2.0)
    floor = prove(manifest(3, truth), answers(truth - off), 1.0, None).floor
    n = len(truth)
    assert floor.max_nats == pytest.approx(np.log(2.0), rel=1e-5)
    assert floor.mean_nats == pytest.approx(np.log(2.0) / n, rel=1e-4)
    assert floor.token_ess == pytest.approx((n + 1) ** 2 / (n * (n + 3)), rel=1e-5)  # ratios: one 2, the others 1


def test_wrong_tensors_are_refused_by_name_although_the_probe_is_right(truth: Float64Array) -> None:
    proof = prove(manifest(3, truth), answers(truth + 1e-6), 1e-3, None)
    report = TensorReport(wrong=("a", "b", "c", "d"), unchecked=("e",), checked=2)
    with pytest.raises(UnprovenVersionError, match=r"version 3 .*: 4 of 6 tensors differ .*: a, b, c \.\.\.") as caught:
        check_tensors(3, report, proof)
    assert caught.value.nats == pytest.approx(1e-6, rel=0.1)
    check_tensors(3, TensorReport(unchecked=("e",), checked=6), proof)


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

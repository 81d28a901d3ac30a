"""Publishing: a version's files and probe into the policy store, then the announcement, then retention."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

from learner.lineage import Lineage
from learner.model import PolicyModel
from learner.version_writer import VersionWriter, Written
from learner.weight_file import WEIGHTS
from shared.config.store import StoreConfig
from shared.control import ControlState, Latest
from shared.errors import StoreError
from shared.manifest import Probe
from shared.metrics import LearnerMetrics
from shared.store import PolicyStore
from shared.stream import GroupReader

REMEMBERED = 4096  # different weights of which it is known which version had them first
PROBE_LENGTHS = (2, 3, 8, 16, 32)
_MULTIPLIER, _INCREMENT = 1_103_515_245, 12_345  # of a linear congruential sequence: the same tokens everywhere


def probe_sequences(vocab_size: int, longest: int = 32) -> list[list[int]]:
    """The token sequences that every version is asked about: the vocabulary's ends and some in between."""
    sequences = [[0, vocab_size - 1, vocab_size // 2, 0], [vocab_size - 1, 1, 0, vocab_size - 1]]
    state = 1
    for length in PROBE_LENGTHS:
        sequence = []
        for _ in range(min(length, longest)):
            state = (_MULTIPLIER * state + _INCREMENT) % 2**31
            sequence.append((state >> 8) % vocab_size)
        sequences.append(sequence)
    return sequences


@dataclass(frozen=True)
class Stored:
    """What a version took."""

    stored_bytes: int
    base: int  # version that it is a patch of; -1: whole
    save_s: float  # the weights into the store's folder, checksums and patch included
    probe_s: float
    commit_s: float  # the manifest and, for a store elsewhere, the upload


class Publisher:
    """Writes the policy's weights as versions; `epoch` fences a learner that was thought dead."""

    def __init__(
        self,
        store: PolicyStore,
        control: ControlState,
        reader: GroupReader,
        epoch: int,
        policy: PolicyModel,
        longest_probe: int,
        config: StoreConfig,
        metrics: LearnerMetrics,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`progress` is called while a version is uploaded, for each piece that has gone."""
        self._store = store
        self._control = control
        self._reader = reader
        self._epoch = epoch
        self._policy = policy
        self._sequences = probe_sequences(policy.vocab_size, longest_probe)
        self._writer = VersionWriter(policy.files, config, self._is_published)
        self._metrics = metrics
        self._progress = progress
        self._firsts: dict[str, int] = {}  # checksum of published weights -> the first version that had them

    def write(self, version: int, parent: int, step: int) -> Stored:
        """Puts the weights into the store. Raises StoreError, FencedError (before anything is written)."""
        self._control.check_epoch(self._epoch)
        moments = [time.perf_counter()]
        folder = self._store.begin(version)
        try:
            written = self._save(folder, version, parent)
            moments.append(time.perf_counter())
            probe = Probe(self._sequences, self._policy.sequence_logprobs(self._sequences))
            moments.append(time.perf_counter())
            self._commit(version, parent, step, probe, time.time(), written)
            moments.append(time.perf_counter())
        except BaseException:
            self._store.discard(version)
            raise
        self._writer.published()
        self._metrics.observe_publish(written.stored_bytes, written.base >= 0, written.encode_s)
        save_s, probe_s, commit_s = (round(end - begin, 4) for begin, end in pairwise(moments))
        return Stored(written.stored_bytes, written.base, save_s, probe_s, commit_s)

    def _commit(self, version: int, parent: int, step: int, probe: Probe, at: float, written: Written) -> None:
        first = self._first_with(version, written)
        said = written.known, written.base, self._epoch, first
        self._store.commit(version, parent, step, probe, at, *said, came=self._progress)

    def _first_with(self, version: int, written: Written) -> int:
        """The first version of this epoch with these weights; -1 for a version without files.

        Old weights under a new name must not pass for weights that did not change: where a version has the bytes of
        an earlier one, the weights are looked at once more.
        """
        if WEIGHTS not in written.known:
            return -1
        checksum = written.known[WEIGHTS].checksum
        first = self._firsts.pop(checksum, version)
        self._firsts[checksum] = first
        if len(self._firsts) > REMEMBERED:
            del self._firsts[next(iter(self._firsts))]
        return first if first == version or self._policy.files.checksum() == checksum else version

    def _is_published(self, version: int) -> bool:
        """False too where nobody can say: the next version is then stored whole."""
        try:
            self._store.manifest(version)
        except StoreError:
            return False
        return True

    def _save(self, folder: Path, version: int, parent: int) -> Written:
        try:
            return self._writer.write(folder, version, parent)
        except OSError as error:
            raise StoreError(f"cannot write version {version} to {folder}: {error}") from error

    def announce(self, latest: Latest, oldest_kept: int, applied: Sequence[int], copy: bool = False) -> None:
        """Makes a written version the latest and frees the credit of its groups. May be repeated.

        When the answer to an earlier try was lost, Redis has the version already, and only the credit (which
        an opening of the stream may have counted again) is left to do.
        """
        if self._control.latest() == latest:
            self._reader.release(applied)
        else:
            self._control.announce(self._epoch, latest, oldest_kept, applied, copy)

    def retain(self, kept: Iterable[int], latest: int) -> None:
        """Deletes versions that nobody needs, and what a torn publish left behind. Raises StoreError, OSError."""
        self._store.retain(kept, latest)


def highest_version(store: PolicyStore, control: ControlState) -> int:
    """The highest version that anybody ever began to publish; -1 if none."""
    latest = control.latest()
    return max([-1, *store.begun(), *control.parents(), latest.policy_version if latest else -1])


def versions_to_keep(
    lineage: Lineage, lag: int, retain: int, restorable: Iterable[int], pending: Iterable[int] = ()
) -> set[int]:
    """What retention must keep.

    Args:
        lineage: its latest version is being published.
        lag: the largest lag that a server may be asked for.
        retain: versions kept beyond those.
        restorable: versions that a restore may go on from: the lag is then counted from there.
        pending: versions that drew groups which wait to be trained on.

    """
    kept = {version for version in pending if version in lineage}
    kept.update(_newest(lineage, lineage.latest, lag + max(1, retain)))
    for version in restorable if lag else ():
        kept.update(_newest(lineage, version, lag + 1))
    return kept


def oldest_in_a_row(lineage: Lineage, kept: Collection[int]) -> int:
    """The last of the latest version's ancestors, itself included, before the first that is not kept."""
    *_, oldest = takewhile(lambda version: version in kept, lineage.ancestors(lineage.latest))
    return oldest


def _newest(lineage: Lineage, version: int, publishes: int) -> Iterable[int]:
    """A version and its ancestors over so many publishes; a copy of its parent is none."""
    bottom = lineage.depth(version) - publishes
    return takewhile(lambda ancestor: lineage.depth(ancestor) > bottom, lineage.ancestors(version))

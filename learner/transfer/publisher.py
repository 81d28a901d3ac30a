"""Publishing over the wire: the manifest always, the files only when somebody needs them.

    write     probe and table of tensors; files too, where a server cannot be reached otherwise, and every
              `store.full_every`-th version
    announce  makes it the latest, then sends it; where that fails the files follow at once
    answer    files of the latest version for a server that asks, such as one that has just started

A version without files is one that only servers on the wire can serve, and only while it is the latest: a restore
goes on from a checkpoint, never from the store, and publishes with files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from learner.publish import Publisher
from learner.transfer.channel import Channel
from learner.transfer.checksums import tensor_checksum
from learner.version_writer import PATCH, Written
from learner.weight_file import WEIGHTS
from shared.control import Latest
from shared.errors import StoreError
from shared.log import Logger
from shared.tensor_table import TensorRow, has_weights, write_table
from shared.transfer import Transfers

NO_FILES = Written({}, -1, 0, None)


class WirePublisher(Publisher):
    """A publisher with a channel to the servers; `connect` gives it, everything else is as it was."""

    def connect(self, channel: Channel, transfers: Transfers, full_every: int, log: Logger) -> None:
        """Gives it its channel, before the first version."""
        self._channel = channel
        self._transfers = transfers
        self._full_every = full_every
        self._log = log
        self._begun = self._ended = -1  # the version whose sending has begun last, and ended last
        self._latest: Latest | None = None

    def _save(self, folder: Path, version: int, parent: int) -> Written:
        """The table of tensors, and the files where they are needed: whole ones where the parent has none."""
        written = super()._save(folder, version, parent) if self._needs_files(version) else NO_FILES
        rows = [
            TensorRow(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor_checksum(tensor))
            for name, tensor in self._tensors()
        ]
        write_table(folder, rows)
        return written

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        return self._policy.published()

    def _needs_files(self, version: int) -> bool:
        servers = self._channel.servers(version)
        wanted = self._transfers.wanted() >= 0
        return bool(servers.others) or not servers.members or wanted or version % self._full_every == 0

    def announce(self, latest: Latest, oldest_kept: int, applied: Sequence[int], copy: bool = False) -> None:
        """Announces, and sends once. Raises FencedError, StreamError."""
        super().announce(latest, oldest_kept, applied, copy)
        self._latest = latest
        if self._begun != latest.policy_version:
            self._begun = latest.policy_version
            self._send(latest)
        elif self._ended != latest.policy_version:  # Redis went away on the way: nobody knows who has it
            self._write_files(latest)
        self._ended = latest.policy_version

    def _send(self, latest: Latest) -> None:
        version = latest.policy_version
        members = self._channel.servers(version).members
        started = time.monotonic()
        received = self._channel.send(version, self._tensors)
        if received:
            self._metrics.transfer_seconds.observe(time.monotonic() - started)
            self._log.info("sent", policy_version=version, servers=len(received), seconds=time.monotonic() - started)
        self._metrics.transfers.labels("received").inc(len(received))
        self._metrics.transfers.labels("failed").inc(len(members.keys() - received))
        if members.keys() - received:
            self._write_files(latest)

    # -- files after all ------------------------------------------------------------------------
    @property
    def wanted(self) -> bool:
        """True while a server waits for files."""
        return self._transfers.wanted() >= 0

    @property
    def lacks_files(self) -> bool:
        """True where the latest version went over the wire alone."""
        return self._latest is not None and not has_weights(self._store.manifest(self._latest.policy_version))

    def answer(self) -> None:
        """Writes the files of the latest version, whose weights the policy must still have. Raises StoreError."""
        if self._latest is not None:
            self._write_files(self._latest)
        self._transfers.satisfied()

    def _write_files(self, latest: Latest) -> None:
        """Publishes the version once more, with its weights; until the manifest is replaced it is what it was."""
        version = latest.policy_version
        manifest = self._store.manifest(version)
        if has_weights(manifest):
            return
        folder = self._store.folder(version)
        try:
            for name in (WEIGHTS, PATCH):  # what an earlier try left
                (folder / name).unlink(missing_ok=True)
            written = Publisher._save(self, folder, version, latest.parent)
        except OSError as error:
            raise StoreError(f"cannot write version {version} to {folder}: {error}") from error
        probe, at = manifest.probe, manifest.created_at
        self._commit(version, latest.parent, latest.step, probe, at, written)
        self._writer.published()
        self._metrics.observe_publish(written.stored_bytes, written.base >= 0, written.encode_s)
        self._log.info("files written after all", policy_version=version)

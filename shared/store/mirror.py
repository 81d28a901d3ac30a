"""A policy store whose truth is elsewhere: the learner's folder is a spool, a rollout server's a cache.

learner:  writes into its folder --> uploads the files, several at once --> uploads the manifest: it is published
server:   downloads what it lacks into its folder --> links or rebuilds, verifies --> holds it
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from shared.errors import StoreError
from shared.manifest import MANIFEST, MAX_CHAIN, Manifest, Probe, StoredFile
from shared.store.download import Wanted, download
from shared.store.files import write_whole
from shared.store.manifests import manifest_of, version_folder, version_numbers
from shared.store.pickup import Pickup
from shared.store.policy import PolicyStore
from shared.store.remote import Remote, persist


class MirroredStore(PolicyStore):
    """Published versions elsewhere, and a folder of this process's own."""

    def __init__(self, root: Path, remote: Remote, parallel: int, part_bytes: int) -> None:
        super().__init__(root, parallel)
        self._remote = remote
        self._part_bytes = part_bytes

    # -- publish --------------------------------------------------------------------------------
    def begin(self, policy_version: int) -> Path:
        """As in a store on a disk; of two learners on two machines, one gets it."""
        folder = super().begin(policy_version)
        try:
            persist(lambda: self._remote.begin(policy_version))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def commit(
        self,
        policy_version: int,
        parent: int,
        step: int,
        probe: Probe,
        created_at: float,
        known: Mapping[str, StoredFile] | None = None,
        base: int = -1,
        epoch: int = 0,
        weights_of: int = -1,
        came: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Uploads the files, then the manifest: now the version exists. Raises StoreError."""
        manifest = super().commit(policy_version, parent, step, probe, created_at, known, base, epoch, weights_of)
        folder = self.folder(policy_version)

        def send(name: str) -> None:
            persist(lambda: self._remote.send(policy_version, folder / name, came))
            came()

        with ThreadPoolExecutor(self._parallel) as threads:
            list(threads.map(send, [file.stored.name for file in manifest.files]))
        send(MANIFEST)
        return manifest

    def discard(self, policy_version: int) -> None:
        """As in a store on a disk; what cannot be reached is left to retention."""
        super().discard(policy_version)
        with suppress(StoreError):
            self._remote.delete(policy_version)

    # -- look -----------------------------------------------------------------------------------
    def manifest(self, policy_version: int) -> Manifest:
        """Fetches and checks a manifest (not yet the files). Raises MissingError where there is none, StoreError."""
        raw = persist(lambda: self._remote.manifest(policy_version))
        return manifest_of(raw, policy_version, self._where(policy_version))

    def versions(self) -> list[int]:
        """Published versions, ascending. Raises StoreError where the place elsewhere does not answer."""
        return self._remote.versions()

    def begun(self) -> list[int]:
        """Versions that anybody ever began to publish, ascending."""
        return sorted({*super().begun(), *self._remote.begun()})

    # -- pick up --------------------------------------------------------------------------------
    def hold(self, policy_version: int, holder: str, came: Callable[[], None] = lambda: None) -> tuple[Manifest, Path]:
        """Downloads what is missing, goes on where an earlier try broke, then as in a store on a disk."""
        pickup = Pickup(self.root, holder, self._parallel, came)
        try:
            wanted = list(self._wanted(policy_version, pickup))
            self._prune({item.version for item in wanted} | {policy_version})
            download(self._remote, wanted, self.root, self._part_bytes, self._parallel, came=came)
        except OSError as error:
            raise StoreError(f"version {policy_version} cannot be downloaded to {self.root}: {error}") from error
        try:
            found = pickup.take(policy_version, keep=True)
        except StoreError:
            self._prune(set())  # something that was downloaded is not as published: all of it anew
            pickup.forget()
            raise
        self._prune(set())
        return found

    def _wanted(self, version: int, pickup: Pickup) -> Iterator[Wanted]:
        """The files to download; the manifests on the way to them are written into the cache."""
        names: set[str] | None = None  # None: all of the version's
        for _ in range(MAX_CHAIN + 1):
            manifest = self._cached_manifest(version)
            needed = [
                f for f in manifest.files if (names is None or f.name in names) and not pickup.has(version, f.name)
            ]
            yield from (Wanted(version, file.stored) for file in needed)
            names = {file.name for file in needed if file.patch}
            if not names:
                return
            version = manifest.base

    def _cached_manifest(self, version: int) -> Manifest:
        raw, folder = self._remote.manifest(version), self.folder(version)
        manifest = manifest_of(raw, version, self._where(version))
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MANIFEST, raw)
        return manifest

    def _prune(self, kept: set[int]) -> None:
        """Removes what was downloaded of other versions; what is needed again, a holder keeps."""
        names = (path.name for path in self.root.iterdir()) if self.root.is_dir() else ()
        for version in version_numbers(names):
            if version not in kept:
                shutil.rmtree(version_folder(self.root, version), ignore_errors=True)

    # -- retention ------------------------------------------------------------------------------
    def retain(self, keep: Iterable[int], newest: int) -> list[int]:
        """As in a store on a disk; of the spool, only the newest version stays. Raises StoreError."""
        kept, published = self._with_bases(keep), set(self._remote.versions())
        gone = [version for version in self._remote.begun() if version <= newest and version not in kept & published]
        with ThreadPoolExecutor(self._parallel) as threads:
            list(threads.map(self._remote.delete, gone))
        for version in super().begun():
            if version < newest:
                shutil.rmtree(self.folder(version), ignore_errors=True)
        return [version for version in gone if version in published]

    def drop_torn(self, tell: Callable[[list[int]], None]) -> None:
        """Nothing: what the place elsewhere has acknowledged, it keeps. A spool of an earlier learner is emptied."""
        for version in super().begun():
            shutil.rmtree(self.folder(version), ignore_errors=True)

    def _where(self, version: int) -> str:
        return f"version {version} in {self._remote.url}"

"""The policy store on a disk: published versions as folders of opaque files, the manifest last.

    <root>/v00000012/config.json, model.safetensors or its patch, ..., manifest.json

A version exists when its manifest does. The manifest carries size and checksum of every file, of itself, and a
probe: token sequences with the learner's log-probs of them, by which a rollout server proves what it loaded. A file
is stored whole or as a patch of the same file of a lower version. Nothing here looks into a tensor, nothing relies
on renaming folders, and nothing waits for the disk: what a power loss takes is found by its checksums.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from shared.errors import MissingError, StoreError
from shared.manifest import MANIFEST, MAX_CHAIN, Manifest, Probe, StoredFile, seal
from shared.store.files import check, stored_file, write_whole
from shared.store.manifests import read_manifest, version_folder, version_numbers
from shared.store.pickup import HELD, Pickup, sweep

__all__ = ["HELD", "PolicyStore"]
BOOT = "boot"  # which start of the machine the versions were written under
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PolicyStore:
    """A folder of published versions, on a disk that learner and rollout servers share."""

    def __init__(self, root: Path, parallel: int = 4) -> None:
        self.root = root
        self._parallel = parallel
        self._bases: dict[int, int] = {}  # version -> the one that its patches are against; -1: whole

    def folder(self, policy_version: int) -> Path:
        """Where a version's files are."""
        return version_folder(self.root, policy_version)

    # -- publish --------------------------------------------------------------------------------
    def begin(self, policy_version: int) -> Path:
        """An empty folder to write a version's files into: of two learners that begin a version, one gets it.

        Raises:
            StoreError: the folder is there already: of a published version, of a torn publish, or of another learner.

        """
        folder = self.folder(policy_version)
        if (folder / MANIFEST).exists():
            raise StoreError(f"version {policy_version} is published already in {folder}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise StoreError(f"version {policy_version} was begun already, by another learner, in {folder}") from None
        except OSError as error:
            raise StoreError(f"cannot write version {policy_version} to {folder}: {error}") from error
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
        """Writes the manifest: now the version exists. One that is committed again never lacks its manifest.

        Args:
            policy_version: the version that was begun.
            parent: the version that its weights descend from; -1 for the starting model.
            step: optimizer steps so far.
            probe: what the learner's model answers.
            created_at: unix seconds.
            known: files by name whose checksums were taken while they were written, so that they are not read
                again. Those with a `patch` are in the folder under the patch's name.
            base: the version that the patches are against.
            epoch: of the learner.
            weights_of: the first version of that epoch that had the same weights.
            came: called for each piece that has come to a place elsewhere, from any thread.

        Raises:
            StoreError: the disk refused, or a patch's base cannot be used.

        """
        folder = self.folder(policy_version)
        try:
            files = self._listed(folder, known or {})
            patched = any(file.patch for file in files)
            depth = self.manifest(base).depth + 1 if patched else 0
            if depth > MAX_CHAIN:
                raise StoreError(f"version {policy_version} would be {depth} patches away from a whole one")
            base = base if patched else -1
            manifest = Manifest(policy_version, parent, step, created_at, files, probe, base, depth, epoch, weights_of)
            write_whole(folder / MANIFEST, seal(asdict(manifest)))
        except OSError as error:
            raise StoreError(f"cannot write version {policy_version} to {folder}: {error}") from error
        self._bases[policy_version] = manifest.base
        return manifest

    def _listed(self, folder: Path, known: Mapping[str, StoredFile]) -> list[StoredFile]:
        by_name = {file.stored.name: file for file in known.values()}
        files = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith(MANIFEST):  # of an earlier commit, or its torn beginning
                continue
            file = by_name.pop(path.name, None)
            if file is not None and file.stored.size != path.stat().st_size:
                raise StoreError(f"{path} has {path.stat().st_size:,} bytes; {file.stored.size:,} were written")
            files.append(file or stored_file(path, durable=False))
        if by_name:
            raise StoreError(f"{folder}: {', '.join(sorted(by_name))} was not written")
        return files

    def discard(self, policy_version: int) -> None:
        """Removes what a publish that failed has written. It was begun by this process: nobody else writes there."""
        shutil.rmtree(self.folder(policy_version), ignore_errors=True)

    # -- look -----------------------------------------------------------------------------------
    def manifest(self, policy_version: int) -> Manifest:
        """Reads and checks a manifest (not yet the files). Raises MissingError where there is none, StoreError."""
        return read_manifest(self.folder(policy_version), policy_version)

    def versions(self) -> list[int]:
        """Published versions, ascending."""
        return [version for version in self.begun() if (self.folder(version) / MANIFEST).is_file()]

    def begun(self) -> list[int]:
        """Versions that anybody ever began to publish and nobody has removed, ascending."""
        if not self.root.is_dir():
            return []
        return version_numbers(path.name for path in self.root.iterdir())

    # -- pick up --------------------------------------------------------------------------------
    def hold(self, policy_version: int, holder: str, came: Callable[[], None] = lambda: None) -> tuple[Manifest, Path]:
        """A verified version in a folder of the holder's own, which retention does not touch; `let_go` ends it.

        Whole files cost no space: they are hard links where the disk has them. Patched ones are rebuilt, from a
        version that the holder had before where that is shorter. `came` is called for each part that is there, from
        the caller's thread. Raises StoreError.
        """
        return Pickup(self.root, holder, self._parallel, came).take(policy_version)

    def let_go(self, holder: str) -> None:
        """Removes what the holder holds; what it had rebuilt last stays, to rebuild the next version from."""
        Pickup(self.root, holder, self._parallel).let_go()

    def forget(self, holder: str) -> None:
        """Removes everything of a holder that will not come back."""
        Pickup(self.root, holder, self._parallel).forget()

    # -- retention ------------------------------------------------------------------------------
    def retain(self, keep: Iterable[int], newest: int) -> list[int]:
        """Deletes every version up to `newest` but these and what they are patches of; returns what was deleted.

        The manifest goes first. Newer versions are another learner's: who was thought dead must not delete them.
        What torn publishes left goes too, and what holders left who have not come for a long time. Where nobody can say
        what a kept version is a patch of, nothing is deleted: raises StoreError.
        """
        kept, published = self._with_bases(keep), set(self.versions())
        gone = [version for version in self.begun() if version <= newest and version not in kept & published]
        for version in gone:
            self._delete(version)
        sweep(self.root)
        return [version for version in gone if version in published]

    def _with_bases(self, keep: Iterable[int]) -> set[int]:
        kept: set[int] = set()
        for version in keep:
            at = version
            while at >= 0 and at not in kept:
                kept.add(at)
                at = self._base_of(at)
        return kept

    def _base_of(self, version: int) -> int:
        """The version that this one is a patch of; -1 for none. Raises StoreError where nobody can say."""
        if version not in self._bases:
            try:
                self._bases[version] = self.manifest(version).base
            except MissingError:
                return -1
        return self._bases[version]

    def _delete(self, version: int) -> None:
        self._bases.pop(version, None)
        (self.folder(version) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder(version), ignore_errors=True)

    # -- after a power loss ---------------------------------------------------------------------
    def drop_torn(self, tell: Callable[[list[int]], None]) -> None:
        """After another start of the machine: withdraws every version that is not as it was published.

        Versions are not forced to the disk when they are published, so a power loss may leave names without bytes.
        Their folders stay until retention, so that nobody takes their numbers again. `tell` hears of them, ascending,
        before anything is changed; where it fails, all of this may be done again. Raises StoreError.
        """
        now = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
        mark = self.root / BOOT
        if mark.exists() and mark.read_bytes() == now:
            return
        torn: list[int] = []
        for version in self.versions():
            if not self._is_whole(version, torn):
                torn.append(version)
        tell(torn)
        for version in torn:
            (self.folder(version) / MANIFEST).unlink(missing_ok=True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(mark, now)
        except OSError as error:
            raise StoreError(f"cannot write {mark}: {error}") from error

    def _is_whole(self, version: int, torn: Collection[int]) -> bool:
        """False too where what it is a patch of is torn or not there."""
        try:
            manifest = self.manifest(version)
            if manifest.base in torn:
                return False
            if manifest.depth:
                self.manifest(manifest.base)
            for file in manifest.files:
                check(self.folder(version) / file.stored.name, file.stored)
        except StoreError:
            return False
        return True

"""The policy store: published versions as folders of opaque files, the manifest last.

    <root>/v00000012/config.json, model.safetensors, ..., manifest.json

A version exists when its manifest does. The manifest carries size and SHA-256 of every file, of itself, and
a probe: token sequences with the learner's log-probs of them, by which a rollout server proves what it
loaded. Nothing here looks into a tensor, and nothing relies on renaming folders.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path

from shared.errors import StoreError
from shared.manifest import MANIFEST, Manifest, Probe, StoredFile, is_plain, parse, seal, unseal

HELD = "held"
MAX_SMALL = 64 * 2**20  # bytes of a file that is read as a whole; a probe is far below it


class PolicyStore:
    """A folder of published versions, on a disk that learner and rollout servers share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, policy_version: int) -> Path:
        """Where a version's files are."""
        return self.root / f"v{policy_version:08d}"

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

    def commit(self, policy_version: int, parent: int, step: int, probe: Probe, created_at: float) -> Manifest:
        """Makes the files in the version's folder durable, then writes the manifest: now the version exists."""
        folder = self.folder(policy_version)
        try:
            files = [stored_file(path) for path in sorted(folder.iterdir())]
            manifest = Manifest(policy_version, parent, step, created_at, files, probe)
            write_durably(folder / MANIFEST, seal(asdict(manifest)))
        except OSError as error:
            raise StoreError(f"cannot write version {policy_version} to {folder}: {error}") from error
        return manifest

    def manifest(self, policy_version: int) -> Manifest:
        """Reads and checks a manifest (not yet the files). Raises StoreError."""
        return self._manifest(policy_version, self.folder(policy_version))

    def _manifest(self, policy_version: int, folder: Path) -> Manifest:
        path = folder / MANIFEST
        try:
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link: a version is a folder of the store's own")
            data = unseal(read_small(path), str(path))
        except FileNotFoundError:
            raise StoreError(f"version {policy_version} is not in the store ({path})") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        manifest = parse(data, str(path))
        if manifest.policy_version != policy_version:
            raise StoreError(f"{path} is of version {manifest.policy_version}, not {policy_version}")
        return manifest

    def _check_files(self, manifest: Manifest, folder: Path) -> None:
        for expected in manifest.files:
            try:
                found = stored_file(folder / expected.name, durable=False)
            except OSError as error:
                raise StoreError(f"version {manifest.policy_version}: {expected.name}: {error}") from error
            if found != expected:
                raise StoreError(
                    f"version {manifest.policy_version}: {expected.name} is not what was published "
                    f"({found.size:,} bytes, SHA-256 {found.sha256[:12]}; expected {expected.size:,}, "
                    f"{expected.sha256[:12]})"
                )

    def hold(self, policy_version: int, holder: str) -> tuple[Manifest, Path]:
        """A verified version in a folder of the holder's own, which retention does not touch; `let_go` ends it.

        Costs no space: the files are hard links where the disk has them. Raises StoreError.
        """
        if not is_plain(holder):
            raise StoreError(f"{holder!r} cannot be the name of a folder")
        folder = self.root / HELD / f"{holder}-v{policy_version:08d}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            present = list(self.folder(policy_version).iterdir())
            listed = {MANIFEST, *(file.name for file in self.manifest(policy_version).files)}
            for path in present:
                if path.name in listed:  # an engine would load whatever else lies there
                    _link(path, folder / path.name)
            manifest = self._manifest(policy_version, folder)
            self._check_files(manifest, folder)
            return manifest, folder
        except OSError as error:
            raise StoreError(f"version {policy_version} cannot be held in {folder}: {error}") from error

    def let_go(self, holder: str) -> None:
        """Removes everything that the holder holds."""
        for folder in (self.root / HELD).glob(f"{holder}-v*"):
            shutil.rmtree(folder, ignore_errors=True)

    def versions(self) -> list[int]:
        """Published versions, ascending."""
        if not self.root.is_dir():
            return []
        names = (path.name for path in self.root.iterdir() if (path / MANIFEST).is_file())
        return sorted(int(name[1:]) for name in names if name[:1] == "v" and name[1:].isdigit())

    def retain(self, keep: Iterable[int], newest: int) -> list[int]:
        """Deletes every version up to `newest` but these, its manifest first; returns what was deleted.

        Newer ones are another learner's: who was thought dead must not delete them.
        """
        kept = set(keep)
        gone = [version for version in self.versions() if version <= newest and version not in kept]
        for version in gone:
            (self.folder(version) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder(version), ignore_errors=True)
        return gone


def write_durably(path: Path, data: bytes) -> None:
    """Writes a small file so that it is either whole or not there, also after a power loss."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: Path) -> None:
    if path.is_symlink():
        raise OSError(f"{path.name} is a link: it may lead out of the store")
    try:
        target.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def stored_file(path: Path, durable: bool = True) -> StoredFile:
    """Size and SHA-256 of a file; with `durable`, it is also made to survive a power loss. Raises OSError."""
    with _open_plain(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
        return StoredFile(path.name, os.fstat(file.fileno()).st_size, digest)


def read_small(path: Path) -> bytes:
    """The bytes of a manifest or the like, at most MAX_SMALL of them. Raises OSError."""
    with _open_plain(path) as file:
        data = file.read(MAX_SMALL + 1)
    if len(data) > MAX_SMALL:
        raise OSError(f"{path.name} has more than {MAX_SMALL:,} bytes")
    return data


def _open_plain(path: Path) -> BufferedReader:
    """A file that is one: no link, which may lead out of its folder, and no pipe, which nobody may ever write to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a plain file")
    return os.fdopen(descriptor, "rb")

"""The policy store: published versions as folders of opaque files, the manifest last.

    <root>/v00000012/config.json, model.safetensors, ..., manifest.json

A version exists when its manifest does. The manifest carries size and SHA-256 of every file, of itself, and
a probe: token sequences with the learner's log-probs of them, by which a rollout server proves what it
loaded. Nothing here looks into a tensor, and nothing relies on renaming folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import StoreError

FORMAT = 1
MANIFEST = "manifest.json"
HELD = "held"


@dataclass(frozen=True)
class StoredFile:
    """One file of a version."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Probe:
    """What the learner's model says of some token sequences, temperature 1."""

    sequences: list[list[int]]
    logprobs: list[list[float]]  # nats, of tokens 1..T-1 of each sequence


@dataclass(frozen=True)
class Manifest:
    """What a published version consists of."""

    policy_version: int
    parent: int  # -1 for the starting model
    step: int
    created_at: float  # unix seconds
    files: list[StoredFile]
    probe: Probe


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
            data = unseal(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise StoreError(f"version {policy_version} is not in the store ({path})") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        manifest = _parse(data, str(path))
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
        folder = self.root / HELD / f"{holder}-v{policy_version:08d}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for path in self.folder(policy_version).iterdir():
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
    try:
        target.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def stored_file(path: Path, durable: bool = True) -> StoredFile:
    """Size and SHA-256 of a file; with `durable`, it is also made to survive a power loss. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
        return StoredFile(path.name, os.fstat(file.fileno()).st_size, digest)


def seal(data: dict[str, Any]) -> bytes:
    """A manifest's bytes: the data as JSON with its own checksum. The inverse of `unseal`."""
    body = json.dumps(data, sort_keys=True)
    return json.dumps({"format": FORMAT, "sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}).encode()


def unseal(raw: bytes, where: str) -> dict[str, Any]:
    """The data of a manifest. Raises StoreError, with `where`, when it is torn, altered or of a newer format."""
    try:
        outer = json.loads(raw)
        body, digest, version = outer["body"], outer["sha256"], outer["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{where} is torn or not a manifest: {error}") from None
    if version != FORMAT:
        raise StoreError(f"{where} has format {version}, this reader knows {FORMAT}: upgrade the older side")
    if hashlib.sha256(str(body).encode()).hexdigest() != digest:
        raise StoreError(f"{where} was altered: its checksum does not match")
    loaded: dict[str, Any] = json.loads(body)
    return loaded


def _parse(data: dict[str, Any], where: str) -> Manifest:
    try:
        files = [StoredFile(**item) for item in data.pop("files")]
        manifest = Manifest(files=files, probe=Probe(**data.pop("probe")), **data)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{where} is not a manifest of this format: {error}") from None
    if any(Path(f.name).name != f.name or f.name in (".", "..") for f in files):
        raise StoreError(f"{where} names a file outside its own folder")
    return manifest

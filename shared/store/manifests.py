"""Where versions lie in a store, and their manifests, read and looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from shared.errors import MissingError, StoreError
from shared.manifest import MANIFEST, Manifest, parse, unseal
from shared.store.files import read_small

_NAME = re.compile(r"v([0-9]{8,18})")


def version_name(policy_version: int) -> str:
    """12 -> v00000012."""
    return f"v{policy_version:08d}"


def version_folder(root: Path, policy_version: int) -> Path:
    """Where a version's files are."""
    return root / version_name(policy_version)


def version_numbers(names: Iterable[str]) -> list[int]:
    """The versions whose names are among these, ascending."""
    found = (_NAME.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in found if match and version_name(int(match[1])) == match[0]})


def read_manifest(folder: Path, policy_version: int) -> Manifest:
    """The manifest in a version's folder. Raises MissingError where there is none, StoreError."""
    path = folder / MANIFEST
    try:
        if folder.is_symlink():
            raise StoreError(f"{folder} is a link: a version is a folder of the store's own")
        raw = read_small(path)
    except FileNotFoundError:
        raise MissingError(f"version {policy_version} is not in the store ({path})") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return manifest_of(raw, policy_version, str(path))


def manifest_of(raw: bytes, policy_version: int, where: str) -> Manifest:
    """The manifest that these bytes are, of this version. Raises StoreError."""
    manifest = parse(unseal(raw, where), where)
    if manifest.policy_version != policy_version:
        raise StoreError(f"{where} is of version {manifest.policy_version}, not {policy_version}")
    return manifest

"""A manifest: what a version or a checkpoint consists of, sealed with its own SHA-256.

Whoever can write to the store could have written any of this, so every field is looked at before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.checksums import is_checksum
from shared.errors import StoreError

FORMAT = 3
KNOWN_FORMATS = (1, 2, 3)  # 1 had SHA-256 only, and no patches; 2 did not say whose weights a version has
MANIFEST = "manifest.json"
MAX_FILES = 4096
MAX_FILE_BYTES = 2**44
MAX_CHAIN = 256  # patches between a version and the whole one that it comes from

T = TypeVar("T")


@dataclass(frozen=True)
class StoredPatch:
    """The file that is stored in another one's place: what changed since the same file of the base version."""

    name: str
    size: int  # bytes, of the patch
    checksum: str  # of the patch


@dataclass(frozen=True)
class StoredFile:
    """One file of a version, as whoever holds the version gets it."""

    name: str
    size: int  # bytes
    checksum: str  # algorithm:hex
    patch: StoredPatch | None = None  # None: stored whole

    @property
    def stored(self) -> StoredFile | StoredPatch:
        """What lies in the store for it."""
        return self.patch or self


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
    base: int = -1  # the version that its patches are against; -1: every file is stored whole
    depth: int = 0  # patches between it and a whole version
    epoch: int = 0  # of the learner that published it; 0: not said
    weights_of: int = -1  # the first version of that epoch with the same published weights; -1: not said

    @property
    def stored_bytes(self) -> int:
        """What its files take in the store."""
        return sum(file.stored.size for file in self.files)


def seal(data: dict[str, Any]) -> bytes:
    """A manifest's bytes: the data as JSON with its own checksum. The inverse of `unseal`."""
    body = json.dumps(data, sort_keys=True)
    return json.dumps({"format": FORMAT, "sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}).encode()


def unseal(raw: bytes, where: str) -> dict[str, Any]:
    """The data of a manifest. Raises StoreError, with `where`, when it is torn, altered or of a newer format."""
    try:
        outer = json.loads(raw)
        body, digest, version = outer["body"], outer["sha256"], outer["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{where} is torn or not a manifest: {type(error).__name__}") from None
    if version not in KNOWN_FORMATS:
        raise StoreError(f"{where} has format {str(version)[:20]}, this reader knows {FORMAT}: upgrade the older side")
    try:
        if hashlib.sha256(body.encode()).hexdigest() != digest:
            raise StoreError(f"{where} was altered: its checksum does not match")
        loaded = json.loads(body)
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"{where} is not a manifest: {type(error).__name__}") from None
    if not isinstance(loaded, dict):
        raise StoreError(f"{where} is not a manifest: its body is a {type(loaded).__name__}")
    return loaded


def stored_files(items: Any) -> list[StoredFile]:
    """The files that a manifest lists. Raises ValueError or TypeError for anything that is not a file of its folder."""
    files = [_stored_file(_typed(item, dict)) for item in _typed(items, list)]
    names = [name for file in files for name in {file.name, file.stored.name}]
    if len(set(names)) != len(names):
        raise ValueError("it names a file twice")
    if len(files) > MAX_FILES:
        raise ValueError(f"it names {len(files):,} files; {MAX_FILES:,} are allowed")
    return files


def _stored_file(item: dict[str, Any]) -> StoredFile:
    item = dict(item)
    if "checksum" not in item:  # as format 1 has it
        item["checksum"] = f"sha256:{_typed(item.pop('sha256'), str)}"
    patch = item.pop("patch", None)
    file = StoredFile(**item, patch=None if patch is None else StoredPatch(**_typed(patch, dict)))
    for part in (file, file.stored):
        if not is_plain(_typed(part.name, str)) or part.name == MANIFEST:
            raise ValueError(f"it names a file outside its own folder: {part.name[:80]!r}")
        if not 0 <= _typed(part.size, int) <= MAX_FILE_BYTES or not is_checksum(_typed(part.checksum, str)):
            raise ValueError(f"size or checksum of {part.name!r} cannot be one")
    return file


def parse(data: dict[str, Any], where: str) -> Manifest:
    """A manifest whose every field is of its type. Raises StoreError."""
    try:
        probe = Probe(**_typed(data.pop("probe"), dict))
        manifest = Manifest(files=stored_files(data.pop("files")), probe=probe, **data)
        for value in (manifest.policy_version, manifest.parent, manifest.step, manifest.base, manifest.weights_of):
            if not -1 <= _typed(value, int) < 2**62:
                raise ValueError(f"{str(value)[:20]} is no version and no step")
        if not 0 <= _typed(manifest.epoch, int) < 2**62 or manifest.weights_of > manifest.policy_version:
            raise ValueError(f"epoch or weights_of ({str(manifest.weights_of)[:20]}) cannot be one")
        if not math.isfinite(_number(manifest.created_at)):
            raise ValueError("created_at is not finite")
        _check_base(manifest)
        lengths = [len(_typed(ids, list)) for ids in _typed(probe.sequences, list)]
        if [len(_typed(row, list)) for row in _typed(probe.logprobs, list)] != [n - 1 for n in lengths]:
            raise ValueError("the probe does not have a log-prob for every token after the first")
        if not all(0 <= _typed(token, int) < 2**31 for ids in probe.sequences for token in ids):
            raise ValueError("a token of the probe is none")
        if not all(math.isfinite(_number(logprob)) for row in probe.logprobs for logprob in row):
            raise ValueError("a log-prob of the probe is not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where} is not a manifest of this format: {str(error)[:200]}") from None
    return manifest


def _check_base(manifest: Manifest) -> None:
    """A chain goes to lower versions only, so it ends."""
    patched = any(file.patch for file in manifest.files)
    if not 0 <= _typed(manifest.depth, int) <= MAX_CHAIN or patched != (manifest.depth > 0):
        raise ValueError(f"{str(manifest.depth)[:20]} patches in a row cannot be")
    if patched != (manifest.base >= 0) or (patched and manifest.base >= manifest.policy_version):
        raise ValueError(f"it cannot be a patch of version {manifest.base}")


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    return value if isinstance(value, float) else float(_typed(value, int))


def is_plain(name: str) -> bool:
    """True for the name of something directly in a folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and len(os.fsencode(name)) <= 255

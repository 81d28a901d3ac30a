"""A manifest: what a version or a checkpoint consists of, sealed with its own checksum.

Whoever can write to the store's disk could have written any of this, so every field is looked at before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.errors import StoreError

FORMAT = 1
MANIFEST = "manifest.json"

T = TypeVar("T")


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
    if version != FORMAT:
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
    """The files that a manifest lists. Raises ValueError for anything that is not a file of its own folder."""
    files = [StoredFile(**item) for item in _typed(items, list)]
    for file in files:
        if not is_plain(_typed(file.name, str)) or file.name == MANIFEST:
            raise ValueError(f"it names a file outside its own folder: {file.name[:80]!r}")
        if _typed(file.size, int) < 0 or len(_typed(file.sha256, str)) != 64:
            raise ValueError(f"size or checksum of {file.name!r} cannot be one")
    if len({file.name for file in files}) != len(files):
        raise ValueError("it names a file twice")
    return files


def parse(data: dict[str, Any], where: str) -> Manifest:
    """A manifest whose every field is of its type. Raises StoreError."""
    try:
        probe = Probe(**_typed(data.pop("probe"), dict))
        manifest = Manifest(files=stored_files(data.pop("files")), probe=probe, **data)
        for value in (manifest.policy_version, manifest.parent, manifest.step):
            if not -1 <= _typed(value, int) < 2**62:
                raise ValueError(f"{str(value)[:20]} is no version and no step")
        if not math.isfinite(_number(manifest.created_at)):
            raise ValueError("created_at is not finite")
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


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    return value if isinstance(value, float) else float(_typed(value, int))


def is_plain(name: str) -> bool:
    """True for the name of something directly in a folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and len(os.fsencode(name)) <= 255

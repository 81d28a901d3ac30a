"""The files of the next version: whole, or as a patch of the version before where that is much smaller.

    weights --> host memory --> patch against what was published last --> its file, if it is small enough
                    |                                                         |
                    +------------------> the whole file, if not <-------------+
                    |
                    +--> what the next version is compared with, once this one is published

Two copies of the published file stay in host memory for this, none where every version is stored whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from learner.model_files import ModelFiles
from learner.weight_file import WEIGHTS, write_new
from shared.checksums import Checksum
from shared.config.store import StoreConfig
from shared.manifest import StoredFile, StoredPatch
from shared.patch import encode

PATCH = f"{WEIGHTS}.patch"


@dataclass(frozen=True)
class Written:
    """What lies in a version's folder."""

    known: dict[str, StoredFile]  # by name, with the checksums taken on the way
    base: int  # the version that the patch is against; -1: whole
    stored_bytes: int  # of the weights
    encode_s: float | None  # seconds that making a patch took; None: nobody tried


@dataclass
class _Image:
    """The bytes of a weights' file."""

    memory: memoryview
    version: int
    depth: int  # patches between it and a whole version


class VersionWriter:
    """Writes versions of one model, and remembers the last one that was published."""

    def __init__(self, files: ModelFiles, config: StoreConfig, is_there: Callable[[int], bool]) -> None:
        """`is_there` tells whether a version can be had by who wants to apply a patch of it."""
        self._files = files
        self._config = config
        self._is_there = is_there
        self._published: _Image | None = None
        self._written: _Image | None = None
        self._spare: memoryview | None = None
        self._untried = 0  # versions to store whole before a patch is tried again

    def write(self, folder: Path, version: int, parent: int) -> Written:
        """Writes the weights as they are now. Raises OSError."""
        self._files.save_others(folder)
        layout, path = self._files.layout, folder / WEIGHTS
        if self._config.full_every == 1:
            checksum = write_new(path, layout.size, layout.pieces(self._files.tensors()))
            return self._whole(StoredFile(WEIGHTS, layout.size, checksum), None)
        image = self._filled(version)
        base = self._base(parent)
        if base is None:
            return self._whole(_write_image(path, image), None)
        started = time.perf_counter()
        patch = encode(base.memory, image.memory, layout.width, self._config.parallel)
        taken = time.perf_counter() - started
        if len(patch) > self._config.patch_share * layout.size:
            self._untried = self._config.full_every - 1
            return self._whole(_write_image(path, image), taken)
        image.depth = base.depth + 1
        stored = StoredPatch(PATCH, len(patch), write_new(folder / PATCH, len(patch), iter([memoryview(patch)])))
        known = StoredFile(WEIGHTS, layout.size, _checksum(image.memory), stored)
        return Written({WEIGHTS: known}, base.version, len(patch), taken)

    def published(self) -> None:
        """What was written last is a version now: the next one may be a patch of it."""
        if self._written is not None:
            self._spare = self._published.memory if self._published else None
            self._published, self._written = self._written, None

    def _filled(self, version: int) -> _Image:
        """The file's bytes in memory that is neither the published version's nor, after a failure, wasted."""
        layout = self._files.layout
        memory = self._written.memory if self._written else self._spare
        self._written, self._spare = None, None
        image = _Image(memory if memory is not None else memoryview(bytearray(layout.size)), version, 0)
        for _ in layout.pieces(self._files.tensors(), image.memory):
            pass
        self._written = image
        return image

    def _base(self, parent: int) -> _Image | None:
        """What a patch may be made against; None: this version is to be stored whole."""
        base = self._published
        if self._untried > 0:
            self._untried -= 1
            return None
        if base is None or base.version != parent or base.depth + 1 >= self._config.full_every:
            return None
        return base if self._is_there(parent) else None

    @staticmethod
    def _whole(file: StoredFile, encode_s: float | None) -> Written:
        return Written({file.name: file}, -1, file.size, encode_s)


def _write_image(path: Path, image: _Image) -> StoredFile:
    return StoredFile(path.name, len(image.memory), write_new(path, len(image.memory), iter([image.memory])))


def _checksum(memory: memoryview) -> str:
    checksum = Checksum()
    checksum.update(memory)
    return checksum.text

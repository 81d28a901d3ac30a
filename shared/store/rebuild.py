"""A file from an older one and the patches between them; each patch is checked before it is used."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.errors import StoreError
from shared.manifest import StoredFile
from shared.patch import apply
from shared.store.files import check, open_plain


@dataclass(frozen=True)
class Step:
    """One patch on the way to a file."""

    patch: Path
    result: StoredFile  # what it makes; its `patch` is what lies at that path


def rebuild(start: Path, steps: Sequence[Step], target: Path, threads: int = 1) -> None:
    """Writes to `target` what the steps make of `start`. The result's own checksum is for the caller to look at.

    Memory: pages of two files at a time, which the system may drop.

    Raises:
        StoreError: a patch is not there, not what was published, malformed, or of a file of another size.
        OSError: the disk refused.

    """
    old = start
    try:
        for number, step in enumerate(steps):
            new = target if step is steps[-1] else target.with_name(f".{target.name}.{number}")
            _apply(old, step, new, threads)
            if old != start:
                old.unlink()
            old = new
    finally:
        for number in range(len(steps)):
            target.with_name(f".{target.name}.{number}").unlink(missing_ok=True)


def _apply(old: Path, step: Step, new: Path, threads: int) -> None:
    patch = step.result.patch
    if patch is None:
        raise StoreError(f"{step.result.name} is no patch")
    check(step.patch, patch)
    with _mapped(old) as before, _mapped(step.patch) as change:
        if len(before) != step.result.size:
            raise StoreError(f"{patch.name} is of a file of {step.result.size:,} bytes, not of {len(before):,}")
        with _blank(new, step.result.size) as after:
            apply(before, change, after, threads)


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, read as they are needed."""
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        yield memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))  # ends with the last view of it


@contextmanager
def _blank(path: Path, size: int) -> Iterator[memoryview]:
    """A new file of this size to write into; its room on the disk is taken before. Raises OSError."""
    with path.open("xb+") as file:
        if size == 0:
            yield memoryview(b"")
            return
        os.posix_fallocate(file.fileno(), 0, size)
        yield memoryview(mmap.mmap(file.fileno(), size))

"""Files of a version from a store elsewhere: in parts, several at once, and after a break only the parts that lack.

v00000012/.model.safetensors.00ff00ff00ff00ff.8388608.partial    the file's bytes so far, in their places
v00000012/.model.safetensors.00ff00ff00ff00ff.8388608.parts      one byte for each part, 1 once it is there
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.errors import BrokenDownloadError, MissingError, StoreError
from shared.manifest import StoredFile, StoredPatch
from shared.store.manifests import version_folder
from shared.store.remote import Remote, persist


@dataclass(frozen=True)
class Wanted:
    """One file of a version."""

    version: int
    file: StoredFile | StoredPatch


class _Partial:
    """A file on its way."""

    def __init__(self, wanted: Wanted, root: Path, part: int) -> None:
        file = wanted.file
        folder = version_folder(root, wanted.version)
        self.wanted = wanted
        self._target = folder / file.name
        tag = f".{file.name}.{file.checksum.rpartition(':')[2][:16]}.{part}"
        self._bytes, self._parts = folder / f"{tag}.partial", folder / f"{tag}.parts"
        self._ranges = [(at, min(at + part, file.size)) for at in range(0, file.size, part)]

    @property
    def complete(self) -> bool:
        return self._target.exists()

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet; room for them is taken on the disk."""
        with self._bytes.open("ab") as file:
            if self.wanted.file.size:
                os.posix_fallocate(file.fileno(), 0, self.wanted.file.size)
        have = self._parts.read_bytes() if self._parts.exists() else b""
        return [number for number in range(len(self._ranges)) if have[number : number + 1] != b"\1"]

    def fetch(self, number: int, remote: Remote) -> int:
        """Brings one part; returns its bytes."""
        start, end = self._ranges[number]
        data = remote.read(self.wanted.version, self.wanted.file.name, start, end)
        _write_at(self._bytes, start, data)
        _write_at(self._parts, number, b"\1")
        return end - start

    def finish(self) -> None:
        """Gives the whole file its name."""
        self._bytes.replace(self._target)
        self._parts.unlink(missing_ok=True)


def download(
    remote: Remote,
    wanted: Sequence[Wanted],
    root: Path,
    part: int,
    parallel: int,
    sleep: Callable[[float], None] = time.sleep,
    came: Callable[[], None] = lambda: None,
) -> int:
    """Brings files into the folders of their versions. Not verified here. Returns the bytes that it asked for.

    Args:
        remote: where the files are.
        wanted: the files.
        root: of the folders.
        part: bytes that are asked for at once.
        parallel: parts at once.
        sleep: between tries.
        came: called for each part that is there.

    Raises:
        StoreError: a file is not there.
        BrokenDownloadError: a part did not come in several tries; the parts that came are used the next time.
        OSError: the disk refused.

    """
    size = remote.pace.part(part)
    files = [file for item in wanted if not (file := _Partial(item, root, size)).complete]
    with ThreadPoolExecutor(parallel) as threads:
        jobs = [(file, number) for file in files for number in file.missing()]
        tasks = [threads.submit(persist, partial(file.fetch, number, remote), sleep) for file, number in jobs]
        try:
            count = 0
            for task in as_completed(tasks):
                count += task.result()
                came()
        except MissingError as error:
            threads.shutdown(cancel_futures=True)
            raise StoreError(
                f"{error}: if it was deleted while it was fetched, raise learner.retain_versions"
            ) from None
        except StoreError as error:
            threads.shutdown(cancel_futures=True)
            missing = sum(len(file.missing()) for file in files)
            raise BrokenDownloadError(str(error), len(jobs) - missing, missing) from error
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for file in files:
        file.finish()
    return count


def _write_at(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(descriptor)

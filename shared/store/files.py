"""Single files of a store: read with a bound, written whole, checked, linked; never through a link."""

from __future__ import annotations

import os
import shutil
import stat
from io import BufferedReader
from pathlib import Path

from shared.checksums import ALGORITHM, Checksum, algorithm_of
from shared.errors import StoreError
from shared.manifest import StoredFile, StoredPatch

MAX_SMALL = 64 * 2**20  # bytes of a file that is read as a whole; a probe is far below it
CHUNK_BYTES = 2**20  # stays in the cache between reading and checksum


def write_durably(path: Path, data: bytes) -> None:
    """Writes a small file so that it is either whole or not there, also after a power loss."""
    write_whole(path, data, durable=True)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes, durable: bool = False) -> None:
    """Writes a small file so that it is either whole or not there when this process is killed."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(path: Path, target: Path) -> None:
    """The same file under another name, at no cost where the disk can. Raises OSError."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a link: it may lead out of the store")
    try:
        target.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def stored_file(path: Path, durable: bool = True, algorithm: str = ALGORITHM) -> StoredFile:
    """Size and checksum of a file; with `durable`, it is also made to survive a power loss. Raises OSError."""
    checksum, buffer = Checksum(algorithm), memoryview(bytearray(CHUNK_BYTES))
    with open_plain(path) as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
        if durable:
            os.fsync(file.fileno())
        return StoredFile(path.name, os.fstat(file.fileno()).st_size, checksum.text)


def check(path: Path, expected: StoredFile | StoredPatch) -> None:
    """Raises StoreError where a file is not there or not what the manifest says."""
    try:
        found = stored_file(path, durable=False, algorithm=algorithm_of(expected.checksum))
    except OSError as error:
        raise StoreError(f"{expected.name}: {error}") from error
    if (found.size, found.checksum) != (expected.size, expected.checksum):
        raise StoreError(
            f"{expected.name} is not what was published ({found.size:,} bytes, {found.checksum[:22]}; "
            f"expected {expected.size:,}, {expected.checksum[:22]})"
        )


def read_small(path: Path) -> bytes:
    """The bytes of a manifest or the like, at most MAX_SMALL of them. Raises OSError."""
    with open_plain(path) as file:
        data = file.read(MAX_SMALL + 1)
    if len(data) > MAX_SMALL:
        raise OSError(f"{path.name} has more than {MAX_SMALL:,} bytes")
    return data


def open_plain(path: Path) -> BufferedReader:
    """A file that is one: no link, which may lead out of its folder, and no pipe, which nobody may ever write to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a plain file")
    return os.fdopen(descriptor, "rb")

"""A store elsewhere, behind fsspec: the same names as on a disk, and errors that say what to do.

    <url>/v00000012/begun, config.json, model.safetensors or its patch, ..., manifest.json

`begun` is made by the learner that begins a version, and only by one where the service can tell (S3: If-None-Match).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import AnsweredError, MissingError, StoreError
from shared.manifest import MANIFEST
from shared.store.files import CHUNK_BYTES, MAX_SMALL
from shared.store.manifests import version_name, version_numbers
from shared.store.pace import Pace

BEGUN = "begun"
TRIES = 4  # of one file or part, before the whole attempt is given up
FIRST_PAUSE_S = 0.1  # doubles with every try
INDEX = "index.json"  # what an HTTP server lists: the published versions
_LIBRARIES = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)


T = TypeVar("T")


class Remote:
    """Versions under one address."""

    def __init__(self, filesystem: Any, root: str, url: str, pace: Pace, lists: bool = True) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")
        self._lists = lists  # False: it cannot list folders, and has an index
        self.url = url  # as the operator wrote it
        self.pace = pace

    # -- look -----------------------------------------------------------------------------------
    def versions(self) -> list[int]:
        """Published versions, ascending."""
        if not self._lists:
            return self._index()
        return version_numbers(folder for folder, name in self._names() if name == MANIFEST)

    def begun(self) -> list[int]:
        """Versions that anybody began and nobody removed, ascending."""
        return version_numbers(folder for folder, _ in self._names()) if self._lists else self._index()

    def manifest(self, version: int) -> bytes:
        """A manifest's bytes. Raises MissingError where there is none."""
        with self._told(f"version {version}"):
            data: bytes = self._files.cat_file(self._path(version, MANIFEST), start=0, end=MAX_SMALL + 1)
        if len(data) > MAX_SMALL:
            raise StoreError(f"the manifest of version {version} in {self.url} has more than {MAX_SMALL:,} bytes")
        return data

    def read(self, version: int, name: str, start: int, end: int) -> bytes:
        """Some of a file's bytes. Raises StoreError, also where there are fewer."""
        self.pace.take(end - start)
        with self._told(f"version {version}: {name}"):
            data: bytes = self._files.cat_file(self._path(version, name), start=start, end=end)
        if len(data) != end - start:
            raise StoreError(f"{self.url} gave {len(data):,} bytes of version {version}: {name}, not {end - start:,}")
        return data

    # -- publish --------------------------------------------------------------------------------
    def begin(self, version: int) -> None:
        """Claims a version. Raises AnsweredError where another learner has it."""
        with self._told(f"version {version}"):
            if self._files.exists(self._path(version, MANIFEST)):
                raise AnsweredError(f"version {version} is published already in {self.url}")
            try:
                self._files.pipe_file(self._path(version, BEGUN), b"1", mode="create")
            except FileExistsError:
                told = f"version {version} was begun already, by another learner, in {self.url}"
                raise AnsweredError(told) from None

    def send(self, version: int, path: Path, came: Callable[[], None]) -> None:
        """Uploads a file under its own name; `came` is called for each piece that is gone."""
        target = self._path(version, path.name)
        with (
            self._told(f"version {version}: {path.name}"),
            path.open("rb") as file,
            self._files.open(target, "wb") as out,
        ):
            while data := file.read(CHUNK_BYTES):
                self.pace.take(len(data))
                out.write(data)
                came()

    def delete(self, version: int) -> None:
        """Removes a version, its manifest first."""
        with self._told(f"version {version}"):
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(version, MANIFEST))
            with suppress(FileNotFoundError):
                self._files.rm(f"{self._root}/{version_name(version)}", recursive=True)

    def look(self) -> None:
        """Raises StoreError where nobody answers or nobody may come in."""
        if not self._lists:
            self._index()
            return
        with self._told("its versions"), suppress(FileNotFoundError):
            self._files.ls(self._root, detail=False)

    # -- within ---------------------------------------------------------------------------------
    def _path(self, version: int, name: str) -> str:
        return f"{self._root}/{version_name(version)}/{name}"

    def _names(self) -> Iterator[tuple[str, str]]:
        """(folder, name) of every file."""
        with self._told("its versions"):
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                found = []
        for path in found:
            parts = str(path).rsplit("/", 2)
            if len(parts) == 3 and parts[0] == self._root:  # not what a server on that disk holds
                yield parts[1], parts[2]

    def _index(self) -> list[int]:
        with self._told("its versions"):
            try:
                raw = self._files.cat_file(f"{self._root}/{INDEX}")
            except FileNotFoundError:
                return []
        try:
            found = json.loads(raw[:MAX_SMALL])["versions"]
            return version_numbers(version_name(number) for number in found if isinstance(number, int) and number >= 0)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(f"{self.url}/{INDEX} does not list versions: is this address a policy store's?") from None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise MissingError(f"{what} is not in {self.url}") from None
        except PermissionError as error:
            raise StoreError(f"{self.url} does not let this process at {what}: {_cut(error)}; {KEYS}") from error
        except _expected() as error:
            raise StoreError(f"{what} of {self.url}: {_advice(error)}") from error


def persist(work: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Does something that may be repeated, TRIES times at most. Raises the last StoreError; AnsweredError at once."""
    for tried in range(TRIES - 1):
        try:
            return work()
        except AnsweredError:
            raise
        except StoreError:
            sleep(FIRST_PAUSE_S * 2**tried)
    return work()


KEYS = (
    "see that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://) or store.token (http://) are set where it runs, and "
    "are of somebody who may"
)


def _advice(error: BaseException) -> str:
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError") or getattr(error, "status", 0) in (401, 403):
        return f"{_cut(error)}: {KEYS}"
    if isinstance(error, TimeoutError | ConnectionError) or "Connect" in name or "Timeout" in name:
        return f"no answer ({name}): see that the address is right and can be reached from here"
    return f"{name}: {_cut(error)}"


def _cut(error: BaseException) -> str:
    return str(error)[:200]


def _expected() -> tuple[type[Exception], ...]:
    """What a place elsewhere may raise; the libraries behind fsspec are loaded only where an address needs them."""
    libraries = [getattr(sys.modules[module], name) for module, name in _LIBRARIES if module in sys.modules]
    return (OSError, NotImplementedError, *libraries)

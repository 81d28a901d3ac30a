"""A version in a folder of a rollout server's own, complete and verified, or not at all.

<root>/held/<holder>/v00000012/         what the engine loads; gone after `let_go`
<root>/held/<holder>/kept/v00000012/    the last versions that were rebuilt, to rebuild the next ones from
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared.errors import StoreError
from shared.manifest import MANIFEST, MAX_CHAIN, Manifest, StoredFile, is_plain
from shared.store.files import check, link_or_copy
from shared.store.manifests import read_manifest, version_folder
from shared.store.rebuild import Step, rebuild

HELD = "held"
KEPT = 2  # versions: an evaluation goes to a newer one and comes back
ABANDONED_S = 6 * 3600.0  # after which a holder that has not come is taken for gone


class Pickup:
    """What one holder has."""

    def __init__(self, root: Path, holder: str, parallel: int, came: Callable[[], None] = lambda: None) -> None:
        """`came` is called for each file that is there and verified."""
        if not is_plain(holder):
            raise StoreError(f"{holder[:80]!r} cannot be the name of a folder")
        self._root = root
        self._mine = root / HELD / holder
        self._kept = self._mine / "kept"
        self._parallel = parallel
        self._came = came

    def take(self, version: int, keep: bool = False) -> tuple[Manifest, Path]:
        """Links, rebuilds and verifies; with `keep`, or if anything was rebuilt, it is kept too. Raises StoreError."""
        folder = version_folder(self._mine, version)
        try:
            manifest = self._begin(folder, version)
            try:
                self._fill(manifest, folder, self._kept_file)
            except StoreError as error:
                manifest = self._begin_again(folder, version, error)
            if keep or manifest.depth:
                self._keep(folder, manifest)
        except OSError as error:
            raise StoreError(f"version {version} cannot be held in {folder}: {error}") from error
        return manifest, folder

    def has(self, version: int, name: str) -> bool:
        """True where a file of a version was kept."""
        return self._kept_file(version, name) is not None

    def let_go(self) -> None:
        """Removes what is held, not what is kept."""
        for folder in self._mine.glob("v*"):
            shutil.rmtree(folder, ignore_errors=True)
        if not self._kept.exists():
            self.forget()

    def forget(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._mine, ignore_errors=True)

    def _begin(self, folder: Path, version: int) -> Manifest:
        """An empty folder but for the manifest, which from now on is what the version is."""
        stored = version_folder(self._root, version)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if stored.is_symlink():
            raise StoreError(f"{stored} is a link: a version is a folder of the store's own")
        link_or_copy(stored / MANIFEST, folder / MANIFEST)
        return read_manifest(folder, version)

    def _begin_again(self, folder: Path, version: int, error: StoreError) -> Manifest:
        """Nothing that was kept can be relied on: from the store alone. Raises the first error where that fails too."""
        if not self._kept.exists():
            raise error
        shutil.rmtree(self._kept)
        try:
            manifest = self._begin(folder, version)
            self._fill(manifest, folder, lambda version, name: None)
        except StoreError:
            raise error from None
        return manifest

    def _fill(self, manifest: Manifest, folder: Path, kept: Callable[[int, str], Path | None]) -> None:
        def fetch(file: StoredFile) -> None:
            target = folder / file.name
            start, steps = self._way_to(manifest, file, kept)
            try:
                if steps:
                    rebuild(start, steps, target, threads_each)
                else:
                    link_or_copy(start, target)
            except OSError as error:
                raise StoreError(f"{file.name}: {error}") from error
            check(target, file)

        version = manifest.policy_version
        threads_each = max(1, self._parallel // max(1, sum(1 for file in manifest.files if file.patch)))
        try:
            with ThreadPoolExecutor(self._parallel) as threads:
                for _ in threads.map(fetch, manifest.files):
                    self._came()
        except StoreError as error:
            raise StoreError(f"version {version}: {error}") from error

    def _way_to(
        self, manifest: Manifest, file: StoredFile, kept: Callable[[int, str], Path | None]
    ) -> tuple[Path, list[Step]]:
        """Where a file is whole, and the patches from there, in the order in which they are applied."""
        steps: list[Step] = []
        at, version = file, manifest.policy_version
        while (start := kept(version, file.name)) is None:
            if steps:
                manifest = read_manifest(version_folder(self._root, version), version)
                at = _named(file.name, manifest)
            folder = version_folder(self._root, version)
            if at.patch is None:
                start = folder / at.name
                break
            steps.append(Step(folder / at.patch.name, at))
            version = manifest.base
            if len(steps) > MAX_CHAIN:
                raise StoreError(f"{file.name} is more than {MAX_CHAIN} patches away from a whole file")
        return start, steps[::-1]

    def _kept_file(self, version: int, name: str) -> Path | None:
        path = version_folder(self._kept, version) / name
        return path if path.is_file() else None

    def _keep(self, folder: Path, manifest: Manifest) -> None:
        kept = version_folder(self._kept, manifest.policy_version)
        if not kept.exists():
            kept.mkdir(parents=True)
            for file in manifest.files:
                link_or_copy(folder / file.name, kept / file.name)
        kept.touch()
        older = sorted(self._kept.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]
        for path in older:
            shutil.rmtree(path, ignore_errors=True)


def _named(name: str, manifest: Manifest) -> StoredFile:
    found = next((file for file in manifest.files if file.name == name), None)
    if found is None:
        raise StoreError(f"{name} is a patch of version {manifest.policy_version}, which has no such file")
    return found


def sweep(root: Path) -> None:
    """Removes what holders left behind who have not come for ABANDONED_S."""
    now = time.time()
    for mine in (root / HELD).glob("*"):
        try:
            if now - mine.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(mine, ignore_errors=True)
        except FileNotFoundError:
            continue  # its holder has just let go

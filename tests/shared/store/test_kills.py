"""A process that is killed at any point of a publish or a pickup leaves no half version behind.

A child does the work and kills itself: before the n-th operation on a file for every n, by an audit hook, and in the
middle of writing a file for several sizes, by a limit of the system.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from shared.errors import StoreError
from shared.store import PolicyStore
from shared.store.mirror import MirroredStore
from shared.store.pace import Pace
from shared.store.remote import Remote
from tests.shared.store.versions import WEIGHTS, Weights, publish, publish_patch

pytestmark = pytest.mark.system  # hundreds of short processes
TOUCHES = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "os.utime",
    "shutil.rmtree",
    "mmap.__new__",
)
MOST = 400  # operations, far more than there are
LIMITS = (0, *range(50, 1100, 250), 4000)  # bytes of a file, in the middle of which its writer dies
Make = Callable[[Path], PolicyStore]


def on_a_disk(folder: Path) -> PolicyStore:
    return PolicyStore(folder / "policy", parallel=1)


def elsewhere(folder: Path) -> PolicyStore:
    files = LocalFileSystem(auto_mkdir=True, skip_instance_cache=True)
    return MirroredStore(folder / "mine", Remote(files, str(folder / "bucket"), "test://bucket", Pace(0)), 1, 1000)


def child(work: Callable[[], object], folder: Path, nth: int | None = None, limit: int | None = None) -> bool:
    """Does some work in a forked process. Returns True where it was killed, False where it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            if nth is not None:
                _kill_before(nth, str(folder))
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work()
        except StoreError:
            os._exit(1)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status)


def _kill_before(nth: int, folder: str) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and (event == "mmap.__new__" or folder in str(arguments[0])):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize(("make", "patched"), [(on_a_disk, False), (on_a_disk, True), (elsewhere, True)])
def test_a_publish_that_is_killed_leaves_a_whole_version_or_none(make: Make, patched: bool, tmp_path: Path) -> None:
    weights, outcomes = Weights(), set()
    weights.at(1)
    for nth, limit in [*((None, size) for size in LIMITS), *((n, None) for n in range(1, MOST))]:
        folder = tmp_path / f"{nth}-{limit}"
        publish(make(folder), weights, 0)

        def work(folder: Path = folder) -> None:
            publish_patch(make(folder), weights, 1, 0) if patched else publish(make(folder), weights, 1)

        killed = child(work, folder, nth, limit)
        store = make(folder)
        published = store.versions()
        outcomes.add((killed, tuple(published)))
        for version in published:
            assert (store.hold(version, "r0")[1] / WEIGHTS).read_bytes() == weights.at(version)
        if not killed and nth is not None:
            break
        publish(store, weights, 2, parent=0)
        store.retain([2], 2)
        assert store.begun() == [2], "what the killed one left is gone"
    else:
        pytest.fail("it never came to its end")
    assert outcomes >= {(True, (0,)), (False, (0, 1))}


@pytest.mark.parametrize(("make", "version"), [(on_a_disk, 0), (on_a_disk, 2), (elsewhere, 2)])
def test_a_pickup_that_is_killed_is_done_again_from_whatever_it_left(make: Make, version: int, tmp_path: Path) -> None:
    weights = Weights()
    publish(make(tmp_path), weights, 0)
    for patched in (1, 2):
        publish_patch(make(tmp_path), weights, patched, patched - 1)
    for nth, limit in [*((None, size) for size in LIMITS), *((n, None) for n in range(1, MOST))]:

        def work() -> None:
            make(tmp_path).hold(version, "r0")

        killed = child(work, tmp_path, nth, limit)
        _, folder = make(tmp_path).hold(version, "r0")
        assert (folder / WEIGHTS).read_bytes() == weights.at(version)
        if nth is not None and not killed:
            break
        make(tmp_path).forget("r0") if (nth or 0) % 2 else make(tmp_path).let_go("r0")
    else:
        pytest.fail("it never came to its end")
    make(tmp_path).forget("r0")
    left = [path for path in tmp_path.rglob("*") if ".partial" in path.name or ".parts" in path.name]
    assert not left
    assert make(tmp_path).versions() == [0, 1, 2]

"""A store elsewhere, played by a folder behind fsspec: what travels, what is found broken, and what goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from shared.config import load_config
from shared.errors import BrokenDownloadError, StoreError
from shared.manifest import MANIFEST
from shared.store import open_store
from shared.store.mirror import MirroredStore
from shared.store.pace import Pace
from shared.store.remote import TRIES, Remote
from tests.shared.store.versions import PROBE, WEIGHTS, Weights, publish, publish_patch

PART = 1000  # bytes: the weights are five parts


class Link(LocalFileSystem):  # type: ignore[misc]
    """A file system that counts what is read from it and can break."""

    def __init__(self) -> None:
        super().__init__(auto_mkdir=True, skip_instance_cache=True)
        self.read: list[tuple[str, int, int]] = []
        self.broken: Callable[[str, int], bool] = lambda path, start: False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.read.append((path.rsplit("/", 1)[1], start or 0, end or 0))
        if self.broken(path, start or 0):
            raise ConnectionResetError("the line is down")
        data: bytes = super().cat_file(path, start, end, **options)
        return data

    def exists(self, path: str, **options: Any) -> bool:
        if self.broken(path, 0):
            raise ConnectionResetError("the line is down")
        return bool(super().exists(path, **options))

    @property
    def weights_read(self) -> int:
        """Bytes of weights and patches, asked for so far."""
        return sum(end - start for name, start, end in self.read if name.startswith("model"))


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def weights() -> Weights:
    return Weights(size=4998)


@pytest.fixture
def make(tmp_path: Path, link: Link) -> Callable[[str], MirroredStore]:
    def make(name: str) -> MirroredStore:
        remote = Remote(link, str(tmp_path / "bucket"), "mem://bucket", Pace(0))
        return MirroredStore(tmp_path / name, remote, parallel=3, part_bytes=PART)

    return make


Make = Callable[[str], MirroredStore]


def test_what_a_learner_publishes_a_server_elsewhere_holds(make: Make, weights: Weights, tmp_path: Path) -> None:
    learner, server = make("spool"), make("cache")
    assert server.versions() == []
    publish(learner, weights, 0)
    publish_patch(learner, weights, 1, 0)
    assert learner.versions() == server.versions() == [0, 1]
    for version in (0, 1, 0):
        manifest, folder = server.hold(version, "r0")
        assert manifest == learner.manifest(version)
        assert {path.name for path in folder.iterdir()} == {MANIFEST, "config.json", WEIGHTS}
        assert (folder / WEIGHTS).read_bytes() == weights.at(version)
        server.let_go("r0")
    assert not list((tmp_path / "cache").glob("v*")), "what was downloaded is kept once, by its holder"


def test_only_the_patch_travels_to_who_had_the_version_before(make: Make, weights: Weights, link: Link) -> None:
    learner, server = make("spool"), make("cache")
    publish(learner, weights, 0)
    for version in (1, 2, 3):
        publish_patch(learner, weights, version, version - 1)
    server.hold(1, "r0")
    link.read.clear()
    server.hold(3, "r0")
    patches = [learner.manifest(version).files[1].stored.size for version in (2, 3)]
    assert link.weights_read == sum(patches)
    link.read.clear()
    server.hold(1, "r0")
    assert link.weights_read == 0, "it came back from a detour"


def test_a_broken_download_goes_on_where_it_stopped(make: Make, weights: Weights, link: Link) -> None:
    publish(make("spool"), weights, 0)
    server = make("cache")
    link.broken = lambda path, start: path.endswith(WEIGHTS) and start >= 3 * PART
    broken = f"version 0: {WEIGHTS} of mem://bucket: no answer \\(ConnectionResetError\\)"
    with pytest.raises(BrokenDownloadError, match=broken) as caught:
        server.hold(0, "r0")
    assert (caught.value.came, caught.value.missing) == (4, 2), "the small file and three parts of five came"
    came = {(start, end) for name, start, end in link.read if name == WEIGHTS and start < 3 * PART}
    assert len(came) == 3
    link.read.clear()
    link.broken = lambda path, start: False
    _, folder = make("cache").hold(0, "r0")  # another process of the same server
    again = {(start, end) for name, start, end in link.read if name == WEIGHTS}
    assert not again & came
    assert len(again | came) == 5
    assert (folder / WEIGHTS).read_bytes() == weights.at(0)


def test_a_part_is_asked_for_again_a_few_times(make: Make, weights: Weights, link: Link) -> None:
    publish(make("spool"), weights, 0)
    failed: list[str] = []

    def broken(path: str, start: int) -> bool:
        failed.append(path) if path.endswith(WEIGHTS) else None
        return path.endswith(WEIGHTS) and len(failed) < TRIES

    link.broken = broken
    _, folder = make("cache").hold(0, "r0")
    assert (folder / WEIGHTS).read_bytes() == weights.at(0)


def test_a_version_that_goes_while_it_is_fetched_says_what_to_raise(
    make: Make, weights: Weights, link: Link, tmp_path: Path
) -> None:
    learner, server = make("spool"), make("cache")
    publish(learner, weights, 0)
    publish(learner, weights, 1)

    def retention(path: str, start: int) -> bool:
        if path.endswith(WEIGHTS) and start == 2 * PART:
            shutil.rmtree(tmp_path / "bucket" / "v00000000", ignore_errors=True)
        return False

    link.broken = retention
    with pytest.raises(StoreError, match=r"if it was deleted while it was fetched, raise learner\.retain_versions"):
        server.hold(0, "r0")
    assert (server.hold(1, "r0")[1] / WEIGHTS).read_bytes() == weights.at(1)
    assert not list((tmp_path / "cache").glob("v*")), "what had come of it is gone"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_what_arrives_spoiled_is_no_version_and_comes_anew_once_mended(
    make: Make, weights: Weights, tmp_path: Path, damage: str
) -> None:
    publish(make("spool"), weights, 0)
    server, shard = make("cache"), tmp_path / "bucket" / "v00000000" / WEIGHTS
    good = shard.read_bytes()
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(b"\1" + good[1:] if damage == "flip" else good[:-1])
    with pytest.raises(StoreError, match=f"version 0: {WEIGHTS}"):
        server.hold(0, "r0")
    shard.write_bytes(good)
    assert (server.hold(0, "r0")[1] / WEIGHTS).read_bytes() == good


def test_another_store_under_the_same_address_is_not_mixed_with_the_old_one(
    make: Make, weights: Weights, tmp_path: Path
) -> None:
    learner, server = make("spool"), make("cache")
    publish(learner, weights, 0)
    server.hold(0, "r0")
    for folder in ("bucket", "spool"):
        shutil.rmtree(tmp_path / folder)
    other = Weights(size=4998, seed=7)
    publish(learner, other, 0)
    with pytest.raises(StoreError, match="is not what was published"):
        server.hold(0, "r0")
    assert (server.hold(0, "r0")[1] / WEIGHTS).read_bytes() == other.at(0)


def test_of_two_learners_one_gets_a_version(make: Make, weights: Weights) -> None:
    first, second = make("spool1"), make("spool2")
    first.begin(3)
    with pytest.raises(StoreError, match="version 3 was begun already, by another learner, in mem://bucket"):
        second.begin(3)
    publish(second, weights, 4)
    with pytest.raises(StoreError, match="version 4 is published already"):
        first.begin(4)
    assert first.begun() == [3, 4]
    assert first.versions() == [4]


def test_retention_leaves_nothing_behind_elsewhere_or_here(make: Make, weights: Weights, tmp_path: Path) -> None:
    learner = make("spool")
    publish(learner, weights, 0)
    for version in (1, 2):
        publish_patch(learner, weights, version, version - 1)
    publish(learner, weights, 3)
    learner.begin(4)
    publish(learner, weights, 5, parent=3)
    assert learner.retain([5, 1], 5) == [2, 3]
    names = sorted(path.name for path in (tmp_path / "bucket").iterdir() if any(path.iterdir()))
    assert names == ["v00000000", "v00000001", "v00000005"]
    assert [path.name for path in (tmp_path / "spool").glob("v*")] == ["v00000005"]


def test_a_publish_outlasts_a_line_that_breaks_for_a_moment(make: Make, weights: Weights, link: Link) -> None:
    learner = make("spool")
    publish(learner, weights, 0)
    failed: set[str] = set()

    def once(path: str, start: int) -> bool:
        before = len(failed)
        failed.add("/".join(path.rsplit("/", 2)[1:]))
        return len(failed) > before

    link.broken = once
    publish_patch(learner, weights, 1, 0)
    assert {"v00000001/manifest.json", "v00000000/manifest.json"} <= failed, "is it there? what is it a patch of?"
    assert learner.versions() == [0, 1]


def test_each_piece_that_is_gone_is_told_while_a_version_is_uploaded(
    make: Make, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow line is no standstill: /livez of the learner hears of it before the file is through."""
    monkeypatch.setattr("shared.store.remote.CHUNK_BYTES", PART)
    learner, weights = make("spool"), Weights(size=4998)
    folder = learner.begin(0)
    (folder / WEIGHTS).write_bytes(weights.at(0))
    seen: list[int] = []
    target = tmp_path / "bucket" / folder.name

    def came() -> None:
        seen.append(sum((target / name).exists() for name in (WEIGHTS, MANIFEST)))

    learner.commit(0, -1, 0, PROBE, 1.0, came=came)
    assert len(seen) >= 5 + 1 + 1 + 1, "five pieces, the end of the file, the manifest, its end"
    assert seen.count(2) <= 2, "the manifest comes last"


def test_a_publish_that_fails_is_taken_back_and_its_number_can_be_used(make: Make, weights: Weights) -> None:
    learner = make("spool")
    publish(learner, weights, 0)
    learner.begin(1)
    learner.discard(1)
    publish(learner, weights, 1)
    assert learner.versions() == [0, 1]


def test_a_server_with_a_cache_leaves_a_shared_folder_as_it_is(weights: Weights, tmp_path: Path) -> None:
    here = load_config(None, [f"run.folder={tmp_path}"], {})
    learner, other = open_store(here), open_store(here, "other")
    publish(learner, weights, 0)
    publish_patch(learner, weights, 1, 0)
    other.hold(1, "other")
    before = sorted(learner.root.rglob("*"))
    server = open_store(load_config(None, [f"run.folder={tmp_path}", f"store.cache={tmp_path / 'cache'}"], {}), "r0")
    assert server.versions() == [0, 1], "what another server holds is no version"
    assert (server.hold(1, "r0")[1] / WEIGHTS).read_bytes() == weights.at(1)
    assert sorted(learner.root.rglob("*")) == before

"""The policy store: a version is whole and as published, or it is not there."""

import re
from pathlib import Path

import pytest

from shared.errors import StoreError
from shared.manifest import MANIFEST, Probe
from shared.store import PolicyStore
from tests.shared.store.versions import Weights, publish_patch
from tests.shared.store.versions import publish as publish_whole

PROBE = Probe([[1, 2, 3]], [[-0.5, -1.25]])


def publish(store: PolicyStore, version: int, parent: int = -1) -> Path:
    folder = store.begin(version)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "config.json").write_text("{}")
    store.commit(version, parent, step=version, probe=PROBE, created_at=1.0)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policy")


def test_a_published_version_reads_back_with_its_probe(store: PolicyStore) -> None:
    assert store.versions() == []
    publish(store, 0)
    publish(store, 3, parent=0)
    manifest = store.manifest(3)
    assert (manifest.parent, manifest.step, manifest.probe) == (0, 3, PROBE)
    assert [f.name for f in manifest.files] == ["config.json", "model.safetensors"]
    assert store.hold(3, "r0")[0] == manifest
    assert store.versions() == [0, 3]


def test_without_a_manifest_there_is_no_version_and_nobody_else_may_begin_it(store: PolicyStore) -> None:
    (store.begin(1) / "half").write_text("torn")
    assert store.versions() == []
    with pytest.raises(StoreError, match="version 1 is not in the store"):
        store.manifest(1)
    with pytest.raises(StoreError, match="version 1 was begun already, by another learner"):
        store.begin(1)
    publish(store, 2)
    assert store.versions() == [2]


def test_a_published_version_is_never_overwritten(store: PolicyStore) -> None:
    publish(store, 1)
    with pytest.raises(StoreError, match="version 1 is published already"):
        store.begin(1)


def test_a_version_that_is_committed_again_lists_its_files_and_no_manifest(store: PolicyStore) -> None:
    folder = publish(store, 1)
    (folder / "more.json").write_text("{}")
    (folder / f"{MANIFEST}.partial").write_bytes(b"half")
    store.commit(1, -1, step=1, probe=PROBE, created_at=1.0)
    assert [f.name for f in store.hold(1, "r0")[0].files] == ["config.json", "model.safetensors", "more.json"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_found(store: PolicyStore, damage: str) -> None:
    shard = publish(store, 1) / "model.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-1])
    else:
        shard.unlink()
    with pytest.raises(StoreError, match=r"version 1: model\.safetensors"):
        store.hold(1, "r0")


def test_every_damage_to_the_manifest_is_found(store: PolicyStore) -> None:
    path = publish(store, 1) / MANIFEST
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(StoreError):
            store.manifest(1)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(StoreError, match="torn or not a manifest"):
        store.manifest(1)
    path.write_bytes(good.replace(b'"format": 3', b'"format": 9'))
    with pytest.raises(StoreError, match="format 9, this reader knows 3: upgrade"):
        store.manifest(1)


def test_a_manifest_of_another_version_or_with_a_path_outside_is_refused(store: PolicyStore) -> None:
    publish(store, 1)
    store.folder(2).mkdir()
    (store.folder(2) / MANIFEST).write_bytes((store.folder(1) / MANIFEST).read_bytes())
    with pytest.raises(StoreError, match="is of version 1, not 2"):
        store.manifest(2)
    from shared.manifest import seal  # the only way to make a well-sealed evil manifest

    evil = {"policy_version": 2, "parent": 1, "step": 2, "created_at": 0.0, "probe": {"sequences": [], "logprobs": []}}
    evil["files"] = [{"name": "../../etc/passwd", "size": 1, "sha256": ""}]
    (store.folder(2) / MANIFEST).write_bytes(seal(evil))
    with pytest.raises(StoreError, match="names a file outside its own folder"):
        store.manifest(2)


def test_retention_keeps_what_is_asked_for(store: PolicyStore) -> None:
    for version in range(6):
        publish(store, version)
    assert store.retain([0, 4, 5, 77], 9) == [1, 2, 3]
    assert store.versions() == [0, 4, 5]
    assert sorted(p.name for p in store.root.iterdir()) == ["v00000000", "v00000004", "v00000005"]


def test_retention_deletes_nothing_while_nobody_can_say_what_a_kept_version_is_a_patch_of(store: PolicyStore) -> None:
    weights = Weights()
    publish_whole(store, weights, 0)
    for version in (1, 2):
        publish_patch(store, weights, version, version - 1)
    manifest, again = store.folder(2) / MANIFEST, PolicyStore(store.root)
    written = manifest.read_bytes()
    manifest.write_bytes(written[:-1])
    with pytest.raises(StoreError, match=re.escape(str(manifest))):
        again.retain([2], 2)
    assert again.versions() == [0, 1, 2]
    manifest.write_bytes(written)
    assert again.retain([2, 77], 2) == [], "all of them are needed for the newest; what is not there needs nothing"


def test_a_version_that_is_held_can_be_loaded_although_retention_deletes_it(store: PolicyStore) -> None:
    published = (publish(store, 1) / "model.safetensors").read_bytes()
    manifest, folder = store.hold(1, "r0")
    store.retain([], 9)
    assert store.versions() == []
    assert manifest.policy_version == 1
    assert (folder / "model.safetensors").read_bytes() == published
    store.let_go("r1")
    assert folder.exists()
    store.let_go("r0")
    assert not folder.exists()


def test_only_what_is_as_published_can_be_held(store: PolicyStore) -> None:
    with pytest.raises(StoreError, match="version 7 cannot be held"):
        store.hold(7, "r0")
    (publish(store, 1) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"version 1: model\.safetensors is not what was published"):
        store.hold(1, "r0")

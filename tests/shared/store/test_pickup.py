"""Patched versions: what a server gets is byte for byte what the learner had, or an error."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shared.errors import DataLossError, StoreError
from shared.manifest import MANIFEST, seal
from shared.store import HELD, PolicyStore
from shared.store.pickup import ABANDONED_S
from tests.shared.store.versions import WEIGHTS, Weights, publish, publish_patch

CHAIN = 5


@pytest.fixture
def weights() -> Weights:
    return Weights()


@pytest.fixture
def store(tmp_path: Path, weights: Weights) -> PolicyStore:
    """Version 0 whole, 1 to CHAIN each a patch of the one before."""
    store = PolicyStore(tmp_path / "policy")
    publish(store, weights, 0)
    for version in range(1, CHAIN + 1):
        publish_patch(store, weights, version, version - 1)
    return store


def bytes_of(store: PolicyStore, version: int, holder: str = "r0") -> bytes:
    manifest, folder = store.hold(version, holder)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *(file.name for file in manifest.files)}
    data = (folder / WEIGHTS).read_bytes()
    store.let_go(holder)
    return data


def test_every_version_of_a_chain_is_rebuilt_byte_for_byte(store: PolicyStore, weights: Weights) -> None:
    assert [store.manifest(version).depth for version in range(CHAIN + 1)] == list(range(CHAIN + 1))
    for version in (*range(CHAIN + 1), 2, CHAIN):  # forwards from what is kept, and back
        assert bytes_of(store, version) == weights.at(version)
    assert store.manifest(CHAIN).stored_bytes < store.manifest(0).stored_bytes / 3


def test_a_late_joiner_is_served_from_the_whole_version_and_the_patches(store: PolicyStore, weights: Weights) -> None:
    assert bytes_of(store, CHAIN, "late") == weights.at(CHAIN)


def test_who_had_a_version_before_needs_only_the_patch(store: PolicyStore, weights: Weights) -> None:
    bytes_of(store, CHAIN - 1)
    (store.folder(0) / WEIGHTS).unlink()
    assert bytes_of(store, CHAIN) == weights.at(CHAIN)
    with pytest.raises(StoreError, match=rf"version {CHAIN}: {WEIGHTS}: .*v00000000"):
        store.hold(CHAIN, "late")


def test_a_spoiled_kept_version_is_not_built_upon(store: PolicyStore, weights: Weights) -> None:
    bytes_of(store, 3)
    kept = store.root / HELD / "r0" / "kept" / "v00000003" / WEIGHTS
    kept.write_bytes(b"\1" + kept.read_bytes()[1:])
    assert bytes_of(store, 4) == weights.at(4)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
def test_a_damaged_patch_is_found(store: PolicyStore, damage: str) -> None:
    patch = store.folder(3) / "model.patch"
    data = bytearray(patch.read_bytes())
    if damage == "remove":
        patch.unlink()
    elif damage == "swap":
        patch.write_bytes((store.folder(2) / "model.patch").read_bytes())
    else:
        data[len(data) // 2] ^= 1
        patch.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(StoreError, match=r"version 4: .*model\.patch"):
        store.hold(4, "r0")
    assert bytes_of(store, 2), "what does not need it is not affected"


def test_a_chain_that_leads_nowhere_is_refused(store: PolicyStore) -> None:
    for path in (store.folder(2) / MANIFEST, store.folder(1)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(StoreError, match="is not in the store"):
            store.hold(CHAIN, "r0")


def test_a_manifest_that_lies_about_its_base_gives_no_version(store: PolicyStore) -> None:
    manifest = store.manifest(4)
    [config, model] = manifest.files
    lies = [
        replace(manifest, base=1),
        replace(manifest, files=[config, replace(model, size=2**40)]),
        replace(manifest, files=[config, replace(model, checksum=config.checksum)]),
        replace(manifest, files=[config, replace(model, name="other.safetensors")]),
    ]
    for lie in lies:
        (store.folder(4) / MANIFEST).unlink()
        (store.folder(4) / MANIFEST).write_bytes(seal(asdict(lie)))
        with pytest.raises(StoreError, match="version 4: "):
            store.hold(4, "r0")
    assert shutil.disk_usage(store.root).free > 0
    assert sum(path.stat().st_blocks for path in store.root.rglob("*")) * 512 < 2**20


def test_retention_keeps_what_a_kept_version_is_a_patch_of(store: PolicyStore, weights: Weights) -> None:
    publish(store, weights, 6)
    publish_patch(store, weights, 7, 6)
    assert store.retain([7, 3], 7) == [4, 5]
    assert store.versions() == [0, 1, 2, 3, 6, 7]
    again = PolicyStore(store.root)
    assert again.retain([7], 7) == [0, 1, 2, 3]
    assert bytes_of(again, 7) == weights.at(7)


def test_a_patch_of_nothing_or_of_itself_cannot_be_published(store: PolicyStore, weights: Weights) -> None:
    weights.at(9)
    with pytest.raises(StoreError, match="version 8 is not in the store"):
        publish_patch(store, weights, 9, 8)
    assert 9 not in store.versions()


def test_what_a_holder_keeps_is_bounded_and_goes_with_it(store: PolicyStore) -> None:
    for version in range(CHAIN + 1):
        bytes_of(store, version)
    assert sorted(path.name for path in (store.root / HELD / "r0").rglob("v*")) == ["v00000004", "v00000005"]
    store.forget("r0")
    assert list((store.root / HELD).iterdir()) == []


def test_what_a_dead_holder_left_goes_when_it_is_old(store: PolicyStore) -> None:
    store.hold(CHAIN, "dead")
    store.hold(CHAIN, "living")
    old = (store.root / HELD / "dead").stat().st_mtime - ABANDONED_S - 1
    os.utime(store.root / HELD / "dead", (old, old))
    store.retain([CHAIN], CHAIN)
    assert [path.name for path in (store.root / HELD).iterdir()] == ["living"]


def test_checksums_taken_while_writing_are_believed_but_not_for_another_size(
    store: PolicyStore, weights: Weights
) -> None:
    known = {file.name: file for file in store.manifest(0).files}
    folder = store.begin(10)
    (folder / WEIGHTS).write_bytes(weights.at(0)[:-1])
    with pytest.raises(StoreError, match=f"{WEIGHTS} has 4,095 bytes; 4,096 were written"):
        store.commit(10, 5, 10, store.manifest(0).probe, 1.0, known)
    (folder / WEIGHTS).write_bytes(bytes(4096))
    with pytest.raises(StoreError, match=r"config\.json was not written"):
        store.commit(10, 5, 10, store.manifest(0).probe, 1.0, known)
    (folder / "config.json").write_text("{}")
    store.commit(10, 5, 10, store.manifest(0).probe, 1.0, known)
    with pytest.raises(StoreError, match=f"version 10: {WEIGHTS} is not what was published"):
        store.hold(10, "r0")


def torn(store: PolicyStore) -> list[int]:
    """What the store withdraws now."""
    told: list[int] = []
    store.drop_torn(told.extend)
    return told


def test_after_another_start_of_the_machine_torn_versions_are_withdrawn(store: PolicyStore, weights: Weights) -> None:
    assert torn(store) == []
    with (store.folder(2) / "model.patch").open("r+b") as file:
        file.write(bytes(100))
    assert torn(store) == [], "the machine has not been started since: the page cache is whole"
    (store.root / "boot").write_bytes(b"an earlier start")
    publish(store, weights, 6)

    def unreachable(versions: list[int]) -> None:
        raise DataLossError("nobody could be told")

    with pytest.raises(DataLossError):
        store.drop_torn(unreachable)
    assert torn(store) == [2, 3, 4, 5], "who could not be told is told again"
    assert store.versions() == [0, 1, 6]
    assert store.begun() == list(range(7)), "nobody takes their numbers again"
    assert store.retain([6], 6) == [0, 1]
    assert store.begun() == [6]

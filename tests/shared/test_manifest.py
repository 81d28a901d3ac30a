"""Manifests that somebody else wrote: nothing in them leads out of the store, or is taken for what it is not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StoreError
from shared.manifest import MANIFEST, Manifest, Probe, StoredFile, parse, seal, unseal
from shared.store import MAX_SMALL, PolicyStore, read_small, stored_file

XXH, SHA = "xxh3_128:" + "0" * 32, "sha256:" + "0" * 64
GOOD = asdict(Manifest(3, 2, 30, 1.5, [StoredFile("model.safetensors", 1, XXH)], Probe([[1, 2, 3]], [[-0.5, -1]])))


def changed(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(GOOD))
    *parents, leaf = path.split(".")
    place: Any = data
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[int(leaf) if leaf.isdigit() else leaf] = value
    return data


def test_a_good_one_comes_back() -> None:
    assert asdict(parse(unseal(seal(GOOD), "here"), "here")) == GOOD


def test_a_manifest_of_an_earlier_release_is_read() -> None:
    claims = ("epoch", "weights_of")
    old = {key: value for key, value in GOOD.items() if key not in claims}
    found = parse(unseal(seal(old).replace(b'"format": 3', b'"format": 2'), "here"), "here")
    assert (found.epoch, found.weights_of) == (0, -1), "nothing is said"
    old = {key: value for key, value in old.items() if key not in ("base", "depth")}
    old["files"] = [{"name": "model.safetensors", "size": 1, "sha256": "0" * 64}]
    sealed = seal(old).replace(b'"format": 3', b'"format": 1')
    assert parse(unseal(sealed, "here"), "here").files == [StoredFile("model.safetensors", 1, SHA)]


def patched(**changes: Any) -> dict[str, Any]:
    patch = {"name": "model.patch", "size": 1, "checksum": XXH}
    return {**changed("files.0.patch", patch), "base": 2, "depth": 1, **changes}


def test_a_patch_is_of_a_lower_version_and_lies_in_the_same_folder() -> None:
    assert parse(unseal(seal(patched()), "here"), "here").stored_bytes == 1
    wrong = [{"base": 3}, {"base": 4}, {"base": -1}, {"depth": 0}, {"depth": 1000}]
    bad = [patched(**change) for change in wrong]
    for name in ("../x", MANIFEST, "", "a/b", None):
        bad.append(patched())
        bad[-1]["files"][0]["patch"]["name"] = name
    bad.append(patched())
    bad[-1]["files"].append({"name": "model.patch", "size": 1, "checksum": XXH})
    for data in bad:
        with pytest.raises(StoreError, match="here is not a manifest of this format"):
            parse(unseal(seal(data), "here"), "here")


OUTSIDE = ["../x", "/etc/passwd", "..", ".", "", "a/b", "a\0b", "x" * 256, MANIFEST, "\ud800", None, 7, ["a"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_its_folder(name: Any) -> None:
    with pytest.raises(StoreError, match="here is not a manifest of this format"):
        parse(unseal(seal(changed("files.0.name", name)), "here"), "here")


PATCH = {"name": "p", "size": 1, "checksum": XXH}
MANY = [{**GOOD["files"][0], "name": str(number)} for number in range(5000)]
WRONG = [
    ("policy_version", "3"), ("policy_version", True), ("policy_version", -2), ("policy_version", 2**70),
    ("parent", None), ("step", 1.5), ("created_at", "now"), ("created_at", float("nan")), ("created_at", True),
    ("files", {}), ("files", [1]), ("files", [{"name": "a"}]), ("files.0.size", -1), ("files.0.size", "1"),
    ("files.0.checksum", "0"), ("files.0.checksum", 7), ("files.0.checksum", "0" * 64), ("files.0.checksum", "md5:00"),
    ("files.0.sha256", "0" * 64), ("files.0.size", 2**50), ("files", MANY),
    ("epoch", -1), ("epoch", None), ("weights_of", 4), ("weights_of", -2), ("weights_of", "0"),
    ("base", 2), ("depth", 1), ("depth", -1), ("base", "2"), ("files.0.patch", PATCH), ("files.0.patch", 7),
    ("probe", []), ("probe.sequences", 3), ("probe.sequences.0", "abc"),
    ("probe.sequences.0.1", -1), ("probe.sequences.0.1", 2**31), ("probe.sequences.0.1", 1.0),
    ("probe.logprobs.0.1", float("-inf")), ("probe.logprobs.0.1", None), ("probe.logprobs.0", [-0.5]),
    ("probe.logprobs", []), ("colour", "blue"), ("files", [GOOD["files"][0]] * 2),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_every_field_is_of_its_type_or_the_manifest_is_refused(path: str, value: Any) -> None:
    with pytest.raises(StoreError, match="here is not a manifest of this format"):
        parse(unseal(seal(changed(path, value)), "here"), "here")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"7", b"null", b"[" * 100_000, b'{"body": ' * 50_000, b"\xff",
        b'{"body": 5, "format": 1, "sha256": "x"}',
        json.dumps({"format": 1, "sha256": "e" * 64, "body": "x"}).encode(), b"9" * 5000, seal([]), seal(5),  # type: ignore[arg-type]
        json.dumps({"format": "x" * 10_000, "sha256": "", "body": ""}).encode(),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_a_short_typed_error(raw: bytes) -> None:
    with pytest.raises(StoreError) as caught:
        parse(unseal(raw, "here"), "here")
    assert len(str(caught.value)) < 400


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    store = PolicyStore(tmp_path / "policy")
    (store.begin(0) / "model.safetensors").write_bytes(b"weights")
    store.commit(0, -1, 0, Probe([[1, 2]], [[-0.5]]), 1.0)
    return store


def test_a_link_out_of_the_store_is_not_followed(store: PolicyStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")  # the very bytes that were published: only the link is wrong
    model = store.folder(0) / "model.safetensors"
    model.unlink()
    model.symlink_to(secret)
    with pytest.raises(StoreError, match="is a link"):
        store.hold(0, "r0")
    with pytest.raises(OSError, match="symbolic links"):
        stored_file(model)


def test_a_version_that_is_a_link_is_refused(store: PolicyStore, tmp_path: Path) -> None:
    store.folder(0).rename(tmp_path / "elsewhere")
    store.folder(0).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        store.hold(0, "r0")


def test_a_pipe_in_place_of_a_file_does_not_hang_its_reader(store: PolicyStore) -> None:
    for name in ("model.safetensors", MANIFEST):
        path = store.folder(0) / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(StoreError, match="not a plain file"):
            store.hold(0, "r0")


def test_what_the_manifest_does_not_list_is_not_handed_to_the_engine(store: PolicyStore) -> None:
    (store.folder(0) / "model-00002.safetensors").write_bytes(b"somebody else's")
    _, folder = store.hold(0, "r0")
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "model.safetensors"]


@pytest.mark.parametrize("holder", ["../../x", "/tmp/x", "a/b", "", "..", "a\0b"])
def test_a_holders_name_cannot_leave_the_store(store: PolicyStore, holder: str) -> None:
    with pytest.raises(StoreError, match="cannot be the name of a folder"):
        store.hold(0, holder)


def test_a_manifest_of_any_size_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(MAX_SMALL + 1)
    with pytest.raises(OSError, match="more than"):
        read_small(path)

"""Whole or patched, whoever holds a version has the bytes that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.model_files import ModelFiles
from learner.version_writer import PATCH, VersionWriter, Written
from learner.weight_file import WEIGHTS
from shared.config.store import StoreConfig
from shared.errors import StoreError
from shared.manifest import Probe
from shared.store import PolicyStore
from tests.learner.test_model_files import model

PROBE = Probe([[1, 2]], [[-0.5]])


class Published:
    """A model that moves, its store, and the weights of every version as they were."""

    def __init__(self, root: Path, dtype: torch.dtype = torch.bfloat16, **keys: float) -> None:
        self.module = model("llama, untied")
        self.store = PolicyStore(root)
        self.gone: set[int] = set()
        config = StoreConfig(**{"full_every": 4, **keys})
        self.writer = VersionWriter(ModelFiles(self.module, dtype), config, lambda version: version not in self.gone)
        self.dtype = dtype
        self.weights: list[dict[str, torch.Tensor]] = []

    def move(self, step: float = 1e-5) -> None:
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(step * torch.sign(torch.randn_like(parameter)))

    def publish(self, parent: int | None = None) -> Written:
        version = len(self.weights)
        written = self.writer.write(self.store.begin(version), version, version - 1 if parent is None else parent)
        self.store.commit(version, version - 1, version, PROBE, 1.0, written.known, written.base)
        self.writer.published()
        self.weights.append({n: t.to(self.dtype, copy=True) for n, t in self.module.state_dict().items()})
        return written

    def is_right(self, version: int, holder: str = "r0") -> bool:
        _, folder = self.store.hold(version, holder)
        found, wanted = load_file(folder / WEIGHTS), self.weights[version]
        return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def test_every_version_is_held_as_published_whole_or_patched(published: Published) -> None:
    bases = []
    for _ in range(10):
        bases.append(published.publish().base)
        published.move()
    assert bases == [-1, 0, 1, 2, -1, 4, 5, 6, -1, 8]
    assert all(published.is_right(version, f"late-{version}") for version in range(10)), "by who joins late"
    assert all(published.is_right(version) for version in range(10)), "by who follows"


def test_a_patch_is_stored_alone_and_much_smaller_than_the_whole(published: Published) -> None:
    whole = published.publish()
    published.move()
    patched = published.publish()
    assert (published.store.folder(0) / WEIGHTS).stat().st_size == whole.stored_bytes
    assert (published.store.folder(1) / PATCH).stat().st_size == patched.stored_bytes
    assert not (published.store.folder(1) / WEIGHTS).exists()
    assert patched.stored_bytes < 0.2 * whole.stored_bytes
    assert (whole.encode_s is None, patched.encode_s is None) == (True, False)


def test_weights_that_did_not_move_take_next_to_nothing(published: Published) -> None:
    published.publish()
    assert published.publish().stored_bytes < 200
    assert published.is_right(1)


def test_a_patch_that_is_not_small_is_not_stored_and_not_tried_at_once_again(tmp_path: Path) -> None:
    published = Published(tmp_path, patch_share=0.01)
    tried = []
    for _ in range(9):
        written = published.publish()
        assert written.base == -1
        tried.append(written.encode_s is not None)
        published.move(0.1)
    assert tried == [False, True, False, False, False, True, False, False, False]
    assert published.is_right(8)


@pytest.mark.parametrize("case", ["the parent is another version", "the parent is not there"])
def test_without_its_parent_a_version_is_stored_whole(published: Published, case: str) -> None:
    for _ in range(2):
        published.publish()
        published.move()
    published.gone = {1} if "not there" in case else set()
    written = published.publish(parent=0 if "another" in case else None)
    assert (written.base, written.encode_s) == (-1, None)
    published.move()
    assert published.publish().base == 2, "the next one has a parent again"
    assert published.is_right(3)


def test_a_publish_that_failed_is_nobodys_parent(published: Published) -> None:
    published.publish()
    published.move()
    folder = published.store.begin(1)
    published.writer.write(folder, 1, 0)
    published.store.discard(1)
    published.move()
    assert published.publish().base == 0
    published.move()
    assert published.publish().base == 1
    assert published.is_right(1)
    assert published.is_right(2)


def test_versions_that_are_all_whole_keep_no_copy_of_the_weights(tmp_path: Path) -> None:
    published = Published(tmp_path, full_every=1)
    for _ in range(3):
        assert published.publish().base == -1
        published.move()
    assert published.is_right(2)
    writer = published.writer
    assert (writer._written, writer._published, writer._spare) == (None, None, None)


def test_float32_weights_are_patched_without_loss_too(tmp_path: Path) -> None:
    published = Published(tmp_path, torch.float32, patch_share=1.0)
    for _ in range(3):
        published.publish()
        published.move(1e-6)
    assert published.is_right(2)


def test_a_patch_that_was_altered_is_never_held(published: Published) -> None:
    published.publish()
    published.move()
    published.publish()
    patch = published.store.folder(1) / PATCH
    raw = bytearray(patch.read_bytes())
    raw[len(raw) // 2] ^= 1
    patch.write_bytes(raw)
    with pytest.raises(StoreError, match="not what was published"):
        published.store.hold(1, "r0")

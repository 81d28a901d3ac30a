"""What is published, and what retention may delete."""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.lineage import START, Lineage
from learner.publish import oldest_in_a_row, probe_sequences, versions_to_keep
from learner.version_writer import VersionWriter
from shared.errors import StoreError
from shared.manifest import MANIFEST
from shared.tensor_table import weight_files
from tests.learner.conftest import MakeWorld
from tests.learner.world import World


def test_the_probe_reaches_the_vocabularys_ends_and_differs_in_length() -> None:
    sequences = probe_sequences(1000)
    assert sequences == probe_sequences(1000)
    tokens = {token for sequence in sequences for token in sequence}
    assert {0, 999} <= tokens
    assert min(map(len, sequences)) == 2
    assert max(map(len, sequences)) == 32
    assert len(tokens) > 50
    assert max(map(len, probe_sequences(1000, longest=10))) == 10


def test_the_probe_of_a_version_is_what_its_own_weights_answer(world: World) -> None:
    learner = world.learner()
    world.append(4)
    learner.iterate()
    first, second = (world.store.manifest(version).probe for version in (0, 1))
    assert first.sequences == second.sequences
    policy = learner.training.parts.policy
    assert second.logprobs == policy.sequence_logprobs(second.sequences)
    changes = np.concatenate(first.logprobs) - np.concatenate(second.logprobs)
    assert np.abs(changes).max() > 0.01


def test_a_full_disk_is_named_with_the_version(world: World) -> None:
    learner = world.learner()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot write version 1 to"):
            learner.training.parts.publisher.write(1, 0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert world.store.versions() == [0]


@pytest.mark.parametrize(("lag", "kept"), [(0, [4, 5]), (2, [2, 3, 4, 5])])
def test_retention_keeps_what_the_lag_needs(make_world: MakeWorld, lag: int, kept: list[int]) -> None:
    world = make_world(f"rollout.lag={lag}", "learner.retain_versions=2", "learner.checkpoint_every=100")
    learner = world.learner()
    for _ in range(5):
        world.append(4)
        learner.iterate()
    assert world.store.versions() == kept
    assert sorted(world.control.parents()) == kept


@pytest.mark.parametrize("told", [{"lag": 3}, {"lag": 0, "largest_lag": 3}])
def test_a_server_that_asks_or_will_ask_for_more_lag_than_configured_is_heard(
    make_world: MakeWorld, told: dict[str, int]
) -> None:
    world = make_world("learner.retain_versions=1", "learner.checkpoint_every=100")
    learner = world.learner()
    world.control.beat("rollout:r0", {"kind": "rollout", **told}, 30)
    for _ in range(5):
        world.append(4)
        learner.iterate()
    assert world.store.versions() == [2, 3, 4, 5]


def test_what_the_dial_can_ask_for_is_kept_before_it_is_asked_for(make_world: MakeWorld) -> None:
    world = make_world("rollout.max_lag=3", "learner.retain_versions=1", "learner.checkpoint_every=100")
    learner = world.learner()
    for _ in range(5):
        world.append(4)
        learner.iterate()
    assert world.store.versions() == [2, 3, 4, 5]


def test_a_wish_is_kept_for_even_by_a_learner_that_was_started_with_less(make_world: MakeWorld) -> None:
    world = make_world("learner.retain_versions=1", "learner.checkpoint_every=100")
    learner = world.learner()
    world.control.wish_lag(b'"uniform:0:3"', "operator")
    for _ in range(5):
        world.append(4)
        learner.iterate()
    assert world.store.versions() == [2, 3, 4, 5]


def test_after_a_restore_the_lag_can_still_be_served() -> None:
    lineage = Lineage((START,), 10).restored(10, 20, {})
    assert versions_to_keep(lineage, lag=3, retain=1, restorable=[8]) == {20, 10, 9, 8, 7, 6, 5}, "20 is 10 again"


def test_a_version_that_a_waiting_group_was_drawn_by_is_kept() -> None:
    lineage = Lineage((START,), 10).restored(4, 20, {})
    assert versions_to_keep(lineage, 0, 1, [], pending=[2, 7]) == {20, 4, 2}, "7 was abandoned"


def test_what_a_torn_publish_left_is_passed_over_and_removed(world: World) -> None:
    world.learner()
    (world.store.begin(1) / "model.safetensors").write_bytes(b"half")
    world.learner()
    assert world.latest == 2, "nobody knows who may still be writing version 1"
    assert not world.store.folder(1).exists()


def test_a_retention_that_fails_is_counted_and_left_to_the_next_publish(make_world: MakeWorld) -> None:
    world = make_world("learner.retain_versions=2", "learner.checkpoint_every=1")
    first = world.learner()
    world.append(4)
    first.iterate()
    manifest = world.store.folder(1) / MANIFEST
    written = manifest.read_bytes()
    manifest.write_bytes(written[:-1])
    learner = world.learner()
    assert learner.metrics.retention_failures._value.get() == 1
    assert (world.latest, world.store.versions()) == (2, [0, 1, 2])
    manifest.write_bytes(written)
    world.append(4)
    for _ in range(2):  # what a former learner has not ended is read first
        learner.iterate()
    assert learner.metrics.retention_failures._value.get() == 1
    assert (world.latest, world.store.versions()) == (3, [1, 2, 3]), "2 is 1 again"


def test_a_publish_that_fails_leaves_nothing_behind_and_may_be_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = world.learner().training.parts.publisher
    with monkeypatch.context() as patch:
        patch.setattr(
            world.store.__class__, "commit", lambda *_, **__: (_ for _ in ()).throw(StoreError("no space left"))
        )
        with pytest.raises(StoreError, match="no space left"):
            publisher.write(1, 0, 1)
    publisher.write(1, 0, 1)
    assert world.store.versions() == [0, 1]


def test_a_version_says_whose_weights_it_has(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world("model.dtype=bfloat16", "learner.learning_rate=0", "store.full_every=16")
    learner = world.learner()
    world.append(4)
    learner.iterate()
    policy, publisher = learner.training.parts.policy, learner.training.parts.publisher
    parameter = next(iter(policy.named_parameters().values()))
    with torch.no_grad():
        parameter.mul_(2.0)
    publisher.write(2, 1, 2)
    with torch.no_grad():
        parameter.div_(2.0)
    publisher.write(3, 2, 3)
    manifests = [world.store.manifest(version) for version in range(4)]
    assert [(manifest.epoch, manifest.weights_of) for manifest in manifests] == [(1, 0), (1, 0), (1, 2), (1, 0)]

    def not_taken(writer: VersionWriter, version: int) -> Any:
        assert writer._published is not None
        return replace(writer._published, version=version)

    monkeypatch.setattr(VersionWriter, "_filled", not_taken)
    with torch.no_grad():
        parameter.mul_(2.0)
    publisher.write(4, 3, 4)
    assert world.store.manifest(4).weights_of == 4, "they are the old ones, and not the policy's"
    assert weights_in(world, 4) == weights_in(world, 3)


def weights_in(world: World, version: int) -> str:
    [file] = weight_files(world.store.manifest(version))
    return file.checksum


def test_versions_of_a_lineage_are_patches_of_each_other_until_a_restore(make_world: MakeWorld) -> None:
    settings = ("learner.learning_rate=1e-6", "learner.checkpoint_every=1", "store.full_every=16")
    world = make_world("model.dtype=bfloat16", *settings)
    learner = world.learner()
    for _ in range(2):
        world.append(4)
        learner.iterate()
    assert [world.store.manifest(version).base for version in range(3)] == [-1, 0, 1]
    counted = {kind: learner.metrics.published_bytes.labels(kind)._value.get() for kind in ("whole", "patch")}
    assert 0 < counted["patch"] < 0.2 * counted["whole"]
    world.learner()
    assert world.store.manifest(3).parent == 2
    assert world.store.manifest(3).base == -1, "a learner that begins has no bytes to compare with"


def test_lag_ends_before_the_first_ancestor_that_is_not_kept() -> None:
    lineage = Lineage((START,), 12)
    kept = versions_to_keep(lineage, lag=2, retain=2, restorable=[4])
    assert kept == {12, 11, 10, 9, 4, 3, 2}
    assert oldest_in_a_row(lineage, kept) == 9
    restored = lineage.restored(4, 20, {})
    assert oldest_in_a_row(restored, {20, 4, 3, 2, 12, 11}) == 2, (
        "the gap after the checkpoint's is not in its ancestry"
    )

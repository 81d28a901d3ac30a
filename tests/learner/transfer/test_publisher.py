"""What a learner with a channel publishes: the table always, files only where somebody needs them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.loop import Learner
from learner.transfer.checksums import tensor_checksum
from learner.transfer.publisher import WirePublisher
from learner.transfer.senders import Tensors
from shared.errors import StoreError, StreamError
from shared.process import Deadline
from shared.tensor_table import has_weights, read_table
from shared.transfer import Transfers
from tests.learner.conftest import MakeWorld
from tests.learner.transfer.peer import Peer
from tests.learner.world import World

pytestmark = pytest.mark.system  # real process groups

MakeWired = Callable[..., tuple[World, Learner, Peer]]


@pytest.fixture
def wired(make_world: MakeWorld) -> Iterator[MakeWired]:
    """A learner that has published version 0, and a server that can receive."""
    made: list[Peer] = []

    def make(*overrides: str) -> tuple[World, Learner, Peer]:
        world = make_world(
            "store.transfer.kind=gloo", "store.transfer.ready_s=0.5", "store.transfer.deadline_s=5", *overrides
        )
        learner = world.learner()
        shapes = [row.shape for row in read_table(world.store.folder(0))]
        made.append(Peer(world.client, world.keys, "s0", shapes))
        return world, learner, made[0]

    yield make
    for peer in made:
        peer.stop()


def half_a_file(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError("no space left on device")


def torn_before_it_is_there(path: Path, *_: object) -> None:
    half_a_file(path.with_name(path.name + ".partial"))


def with_weights(world: World) -> dict[int, bool]:
    return {version: has_weights(world.store.manifest(version)) for version in world.store.versions()}


def check_table(world: World, version: int, tensors: dict[str, torch.Tensor]) -> None:
    rows = read_table(world.store.folder(version))
    assert {row.name: (row.shape, row.checksum) for row in rows} == {
        name: (tuple(tensor.shape), tensor_checksum(tensor)) for name, tensor in tensors.items()
    }


def test_without_a_server_that_can_receive_versions_are_files_with_a_table_that_agrees(make_world: MakeWorld) -> None:
    world = make_world("store.transfer.kind=gloo")
    world.learner()
    assert with_weights(world) == {0: True}
    check_table(world, 0, load_file(world.store.folder(0) / "model.safetensors"))


def test_a_version_that_everybody_received_has_a_probe_and_a_table_and_no_weights(wired: MakeWired) -> None:
    world, learner, peer = wired()
    world.append(4)
    learner.iterate()
    assert peer.versions == [1]
    assert with_weights(world) == {0: True, 1: False}
    policy = learner.training.parts.policy
    published = dict(policy.published())
    check_table(world, 1, published)
    for found, (name, tensor) in zip(peer.tensors, sorted(published.items()), strict=True):
        assert torch.equal(found, tensor), name
    probe = world.store.manifest(1).probe
    assert probe.logprobs == policy.sequence_logprobs(probe.sequences)
    assert world.latest == 1


def test_files_are_written_too_every_so_many_versions_and_while_a_server_needs_them(wired: MakeWired) -> None:
    world, learner, peer = wired("store.full_every=2")
    training = learner.training
    for _ in range(3):
        training.publish(learner.evaluations)
    assert with_weights(world) == {0: True, 1: False, 2: True, 3: False}
    world.control.beat("rollout:new", {"kind": "rollout", "lag": 0, "policy_version": -1}, 60)
    training.publish(learner.evaluations)
    training.publish(learner.evaluations)
    assert with_weights(world)[5]
    assert peer.versions == [1, 2, 3, 4, 5], "whoever can receive still does"


def test_a_patch_is_never_made_of_a_version_that_has_no_files(wired: MakeWired) -> None:
    world, learner, _ = wired("store.full_every=256", "learner.learning_rate=1e-6", "admission.max_staleness=8")

    def publish() -> tuple[int, bool]:
        world.append(4, version=0)
        learner.iterate()
        manifest = world.store.manifest(world.latest)
        return manifest.base, has_weights(manifest)

    assert [publish(), publish()] == [(-1, False), (-1, False)]
    world.control.beat("rollout:new", {"kind": "rollout", "lag": 0, "policy_version": -1}, 60)
    assert [publish(), publish()] == [(-1, True), (3, True)], "whole after versions without files, then a patch"
    world.control.leave("rollout:new")
    assert publish() == (-1, False)
    Transfers(world.client, world.keys).want(5)
    learner.iterate()
    assert world.store.manifest(5).base in (-1, 4)
    for version, holder in ((4, "r1"), (5, "r2")):
        _, folder = world.store.hold(version, holder)
        files, table = load_file(folder / "model.safetensors"), read_table(folder)
        assert {row.name: row.checksum for row in table} == {n: tensor_checksum(t) for n, t in files.items()}


def test_files_that_could_not_be_written_are_tried_again_and_the_version_stays(
    wired: MakeWired, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, learner, _ = wired()
    learner.training.publish(learner.evaluations)
    wire = learner.training.parts.publisher
    assert isinstance(wire, WirePublisher)
    with monkeypatch.context() as broken:
        broken.setattr("learner.version_writer.write_new", half_a_file)
        with pytest.raises(StoreError, match="cannot write version 1"):
            wire.answer()
    assert with_weights(world) == {0: True, 1: False}
    wire.answer()
    assert with_weights(world) == {0: True, 1: True}


def test_a_learner_that_ends_while_files_are_written_after_all_leaves_the_version_as_it_was(
    wired: MakeWired, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, learner, _ = wired()
    learner.training.publish(learner.evaluations)
    wire = learner.training.parts.publisher
    assert isinstance(wire, WirePublisher)
    with monkeypatch.context() as broken:
        broken.setattr("shared.store.policy.write_whole", torn_before_it_is_there)
        with pytest.raises(StoreError, match="cannot write version 1"):
            wire.answer()
    assert with_weights(world) == {0: True, 1: False}
    wire.answer()
    assert with_weights(world) == {0: True, 1: True}
    world.store.hold(1, "s0")


@pytest.mark.parametrize("fault", ["absent", "refuses", "breaks off"])
def test_a_version_that_did_not_arrive_gets_its_files_at_once(wired: MakeWired, fault: str) -> None:
    world, learner, peer = wired()
    assert fault in ("absent", "refuses", "breaks off")
    peer.fault = fault  # type: ignore[assignment]  # one of the three
    world.append(4)
    learner.iterate()
    assert with_weights(world) == {0: True, 1: True}
    manifest, folder = world.store.hold(1, "s0")
    published = dict(learner.training.parts.policy.published())
    files = load_file(folder / "model.safetensors")
    assert all(torch.equal(files[name], tensor) for name, tensor in published.items())
    assert (manifest.parent, manifest.step) == (0, 1)


def test_when_redis_goes_away_on_the_way_nobody_knows_who_has_the_version_and_it_gets_its_files(
    wired: MakeWired, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, learner, _ = wired()
    wire = learner.training.parts.publisher
    assert isinstance(wire, WirePublisher)

    def broken(version: int, tensors: Tensors) -> set[str]:
        raise StreamError("Redis cannot be reached")

    monkeypatch.setattr(wire._channel, "send", broken)
    learner.training.publish(learner.evaluations)
    assert (world.latest, with_weights(world)) == (1, {0: True, 1: True})


def test_a_server_that_asks_gets_the_files_of_the_latest_version(wired: MakeWired) -> None:
    world, learner, _ = wired()
    learner.training.publish(learner.evaluations)
    assert with_weights(world)[1] is False
    transfers = Transfers(world.client, world.keys)
    transfers.want(1)
    learner.iterate()
    assert with_weights(world)[1] is True
    assert transfers.wanted() == -1


def test_who_is_to_evaluate_the_last_version_gets_its_files_although_training_is_over(wired: MakeWired) -> None:
    world, learner, _ = wired("learner.steps=1", "evaluation.deadline_s=5")
    world.append(4)
    learner.iterate()
    assert with_weights(world)[1] is False

    def evaluate() -> None:
        Transfers(world.client, world.keys).want(1)
        deadline = Deadline("the files of version 1", 10)
        while not with_weights(world)[1] and deadline.remaining:
            time.sleep(0.01)
        world.answer_evaluations(0.5)

    server = threading.Thread(target=evaluate)
    server.start()
    learner.finish()
    server.join()
    assert world.control.phase() == ("finished", "all 1 steps are done")
    assert [row["policy_version"] for row in world.lines("evaluations.jsonl")] == [0, 1]


def test_where_the_latest_weights_are_gone_the_ones_of_now_are_published_for_who_asks(wired: MakeWired) -> None:
    world, learner, _ = wired("learner.publish_every=2")
    learner.training.publish(learner.evaluations)
    world.append(4, version=0)
    learner.iterate()
    assert (world.latest, learner.training.unpublished) == (1, True)
    Transfers(world.client, world.keys).want(1)
    learner.iterate()
    assert (world.latest, learner.training.unpublished) == (2, False)
    assert with_weights(world) == {0: True, 1: False, 2: True}


def test_a_restart_publishes_with_files(wired: MakeWired) -> None:
    world, learner, peer = wired()
    world.append(4)
    learner.iterate()
    world.append(4, version=0)
    learner.iterate()
    assert isinstance(learner.training.parts.publisher, WirePublisher)
    assert with_weights(world)[2] is False
    peer.beat(policy_version=-1)  # it went down with the learner
    again = world.learner()
    latest = again.training.lineage.latest
    assert with_weights(world)[latest]

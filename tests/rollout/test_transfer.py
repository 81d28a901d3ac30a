"""A server takes weights over the wire, from a real channel: what arrives is proven, what does not comes by files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from learner.transfer.channel import Channel
from learner.transfer.checksums import tensor_checksum
from learner.transfer.senders import GlooSender
from rollout.engines.renewable import RenewableEngine
from rollout.engines.transfer import Meeting, Receiving
from rollout.engines.transfer_worker import Checked
from rollout.engines.transformers import TransformersEngine
from rollout.parts import Parts
from rollout.sync import Syncer
from shared.config import Config
from shared.config.transfer import TransferConfig
from shared.control import Latest
from shared.errors import TransferError
from shared.log import configure
from shared.tensor_table import TensorRow, write_table
from shared.transfer import Call, Transfers
from tests.learner.transfer.peer import join, receive
from tests.rollout.models import logprobs_of, probe_of
from tests.rollout.run import Run, parts_of, small

pytestmark = [pytest.mark.asyncio, pytest.mark.system]

TRANSFER = TransferConfig(kind="gloo", ready_s=3.0, deadline_s=10.0)


class WiredTransformers(TransformersEngine):
    """transformers' own model, which takes weights as vLLM does."""

    group: Any = None
    joined = 0

    async def receive(
        self, meeting: Meeting, table: Sequence[TensorRow], policy_version: int, receiving: Receiving
    ) -> float:
        if self.joined != meeting.group:
            place = (meeting.host, meeting.port, meeting.rank, meeting.world_size, meeting.group)
            self.group, self.joined = await asyncio.to_thread(join, *place), meeting.group
        await receiving()
        checked = Checked(self, {row.name: row.checksum for row in table}, None)
        try:
            for row in table:
                tensor = await asyncio.to_thread(receive, self.group, row.shape)
                checked.load_weights([(row.name, tensor)])
            checked.check_complete()
        except RuntimeError as error:
            self.group, self.joined = None, 0
            raise TransferError(str(error), untouched=False) from error
        self._policy_version = policy_version
        return 0.0

    def load_weights(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        self._model.load_state_dict(dict(weights), strict=False)


class Wire:
    """The learner's end and the server's, in one process."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.run, self.parts = Run(config), parts
        self.made: list[WiredTransformers] = []
        self.engine = RenewableEngine(self.make(), self.make)
        self.syncer = Syncer(parts, self.engine)
        self.transfers = Transfers(self.run.client, self.run.keys)
        log = configure(config.run.id, "learner", "error")
        self.channel = Channel(TRANSFER, self.run.control, self.transfers, GlooSender(), self.run.epoch, log)

    def make(self) -> WiredTransformers:
        self.made.append(WiredTransformers(dtype="float32", device="cpu"))
        return self.made[-1]

    def tensors(self) -> dict[str, torch.Tensor]:
        named = dict(self.run.model.named_parameters())
        return {name: named[name].detach().clone() for name in sorted(named)}

    def publish_table(self, of: dict[str, torch.Tensor] | None = None) -> int:
        """The weights as they are now, as a version without files."""
        run = self.run
        parent, run.version = run.version, run.version + 1
        rows = [
            TensorRow(name, "float32", tuple(tensor.shape), tensor_checksum(tensor))
            for name, tensor in (of or self.tensors()).items()
        ]
        write_table(run.store.begin(run.version), rows)
        run.store.commit(run.version, parent, 0, probe_of(run.model), 1.0)
        run.control.announce(run.epoch, Latest(run.version, parent, 0), 0, [])
        return run.version

    async def send(self, version: int, tensors: dict[str, torch.Tensor] | None = None) -> set[str]:
        sent = list((tensors or self.tensors()).items())
        return await asyncio.to_thread(self.channel.send, version, lambda: sent)

    async def follow_while_sent(self, version: int, tensors: dict[str, torch.Tensor] | None = None) -> set[str]:
        sending = asyncio.create_task(self.send(version, tensors))
        try:
            await self.syncer.follow(version)
        finally:
            received = await sending
        return received

    async def serves(self) -> bool:
        """True where the engine says what the learner's model says."""
        sequence = [10, 11, 12, 200, 7]
        found = await self.engine.logprobs(np.asarray(sequence, dtype=np.int32))
        return bool(np.abs(found - logprobs_of(self.run.model, sequence)).max() < 1e-4)

    def files_of(self, version: int) -> None:
        """What the learner does for a server that asks: the version once more, with its files."""
        store, folder = self.run.store, self.run.store.folder(version)
        manifest = store.manifest(version)
        (folder / "manifest.json").unlink()
        self.run.model.save_pretrained(folder)
        store.commit(version, manifest.parent, 0, manifest.probe, 1.0)


@pytest_asyncio.fixture
async def wire(config: Config, tiny_model: Path) -> AsyncIterator[Wire]:
    """A server that serves version 0, by files."""
    files = small(config, tiny_model)
    wired = files.model_copy(update={"store": files.store.model_copy(update={"transfer": TRANSFER})})
    made = Wire(files, parts_of(wired))
    made.run.publish()
    await made.syncer.follow(0)
    beat = made.parts.status.heartbeat.status
    assert (beat["transfer"], beat["ranks"], beat["policy_version"]) == ("gloo", 1, 0)
    made.run.control.beat("rollout:r0", beat, 60)
    yield made
    made.channel.close()
    await made.engine.stop()


async def test_versions_without_files_are_received_proven_and_served(wire: Wire) -> None:
    for version in (1, 2, 3):
        wire.run.step()
        assert wire.publish_table() == version
        assert await wire.follow_while_sent(version) == {"r0"}
        assert (wire.syncer.served, wire.syncer.gate.is_set()) == (version, True)
        assert await wire.serves()
    assert wire.parts.metrics.syncs.labels("wire")._value.get() == 3
    assert wire.transfers.wanted() == -1
    assert wire.run.control.events() == []


@pytest.mark.parametrize("size", [0.05, 1e-6])
async def test_one_tensor_of_the_version_before_is_noticed_on_the_wire_and_files_repair_it(
    wire: Wire, size: float
) -> None:
    stale = wire.tensors()
    wire.run.step(size)
    version = wire.publish_table()
    name = "model.layers.1.mlp.down_proj.weight"
    assert await wire.follow_while_sent(version, {**wire.tensors(), name: stale[name]}) == set()
    assert (wire.syncer.served, wire.syncer.halted.is_set()) == (-1, True), "a mixture must not draw"
    assert wire.parts.status.heartbeat.status["policy_version"] == -1
    assert wire.transfers.wanted() == version
    [event] = wire.run.control.events()
    assert f"r0: {name} is not what was published" in event["text"]
    wire.files_of(version)
    await wire.syncer.follow(version)
    assert (wire.syncer.served, wire.syncer.halted.is_set()) == (version, False)
    assert await wire.serves()
    assert len(wire.made) == 1, "a failed transfer is no reason for a fresh engine"
    wire.run.step()
    assert await wire.follow_while_sent(wire.publish_table()) == {"r0"}
    assert await wire.serves()


async def test_where_the_probe_refuses_what_came_over_the_wire_the_files_are_asked_for(wire: Wire) -> None:
    stale = wire.tensors()
    wire.run.step()
    version = wire.publish_table(of=stale)  # the checksums are of what is sent, the probe is of the new weights
    await wire.follow_while_sent(version, stale)
    heartbeat = wire.parts.status.heartbeat
    refused = heartbeat.status["refused_version"]
    assert (wire.syncer.served, wire.syncer.halted.is_set(), refused) == (-1, True, version)
    assert (wire.transfers.wanted(), wire.run.control.events()) == (version, [])
    wire.files_of(version)
    await wire.syncer.follow(version)
    assert (wire.syncer.served, heartbeat.status["refused_version"], len(wire.made)) == (version, None, 1)
    assert await wire.serves()


async def test_where_a_version_has_files_too_they_are_taken_at_once_when_the_wire_fails(wire: Wire) -> None:
    stale = wire.tensors()
    wire.run.step()
    version = wire.publish_table()
    wire.files_of(version)
    assert await wire.follow_while_sent(version, stale) == set()
    assert (wire.syncer.served, wire.transfers.wanted(), len(wire.made)) == (version, -1, 1)
    assert await wire.serves()


async def test_versions_on_the_wire_are_not_taken_for_one_version_under_two_names(wire: Wire) -> None:
    for _ in range(2):
        wire.run.step()
        await wire.follow_while_sent(wire.publish_table())
    assert (wire.syncer.served, wire.run.control.events()) == (2, [])


async def test_a_fresh_engine_asks_for_a_group_of_its_own_instead_of_hanging_in_the_old_one(wire: Wire) -> None:
    wire.run.step()
    await wire.follow_while_sent(wire.publish_table())
    await wire.engine.renew(wire.run.store.folder(0), 0)
    wire.run.step()
    version = wire.publish_table()
    assert await wire.follow_while_sent(version) == set()
    [event] = wire.run.control.events()
    assert "r0: the engine is a fresh one" in event["text"]
    wire.run.step()
    assert await wire.follow_while_sent(wire.publish_table()) == {"r0"}
    assert await wire.serves()


async def test_a_server_that_is_not_called_serves_on_asks_for_files_and_takes_them(wire: Wire) -> None:
    wire.run.step()
    version = wire.publish_table()
    other = Call(wire.run.epoch, 1, "invite", version, invited=["r1"])
    wire.transfers.call(other, 60)
    await wire.syncer.follow(version)
    assert (wire.syncer.served, wire.syncer.gate.is_set()) == (0, True)
    assert wire.transfers.wanted() == version
    wire.transfers.call(replace(other, number=2, invited=[]), 60)
    wire.files_of(version)
    await wire.syncer.follow(version)
    assert wire.syncer.served == version
    assert await wire.serves()


async def test_a_call_with_a_table_that_is_none_is_refused_and_what_is_served_is_served_on(wire: Wire) -> None:
    wire.run.step()
    version = wire.publish_table()
    folder = wire.run.store.folder(version)
    (folder / "manifest.json").unlink()
    (folder / "tensors.json").write_text("[]")
    wire.run.store.commit(version, 0, 0, probe_of(wire.run.model), 1.0)
    assert await wire.follow_while_sent(version) == set()
    assert (wire.syncer.served, wire.syncer.gate.is_set()) == (0, True)
    [event] = wire.run.control.events()
    assert "no table of tensors" in event["text"]

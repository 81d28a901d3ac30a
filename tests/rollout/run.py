"""The learner's part in the tests of the rollout server: publishes versions and reads what comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rollout.parts import Parts
from rollout.server import RolloutServer
from shared.codec import decode_group
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState, Latest
from shared.intervals import Intervals
from shared.keys import Keys
from shared.log import configure
from shared.manifest import Probe
from shared.metrics import RolloutMetrics
from shared.redis_client import connect
from shared.store import PolicyStore
from shared.stream import Entry, GroupReader, backlog
from shared.types import Group
from tests.rollout.models import PROBE, load_model, probe_of, step_away


class Run:
    """A run as its learner sees it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.client = connect(config)
        self.keys = Keys(config.run.id)
        self.control = ControlState(self.client, self.keys)
        self.store = PolicyStore(config.run.folder / "policy")
        self.epoch = self.control.take_epoch()
        self.reader = GroupReader(self.client, self.keys, self.epoch)
        self.reader.open(Intervals())
        self.model = load_model(Path(config.model.path))
        self.version = -1
        self.entries: list[Entry] = []

    def publish(
        self,
        probe: Probe | None = None,
        applied: list[int] | None = None,
        restored_from: int | None = None,
        weights_of: int = -1,
    ) -> int:
        """The weights as they are now, as the next version, or as one that a restored learner publishes."""
        parent, self.version = self.version, self.version + 1
        if restored_from is not None:
            parent, self.version = restored_from, self.version + 10
        self.model.save_pretrained(self.store.begin(self.version))
        probe = probe or probe_of(self.model)
        self.store.commit(self.version, parent, 0, probe, time.time(), epoch=self.epoch, weights_of=weights_of)
        self.control.announce(self.epoch, Latest(self.version, parent, 0), 0, applied or [])
        return self.version

    def lie(self) -> Probe:
        """A probe that no engine answers: each log-prob is off by 1 nat."""
        return Probe(PROBE, [[value + 1.0 for value in row] for row in probe_of(self.model).logprobs])

    def step(self, size: float = 0.05) -> None:
        """Moves the weights."""
        step_away(self.model, size, seed=self.version + 2)

    def read(self) -> list[Entry]:
        """All entries so far."""
        while found := self.client.xlen(self.keys.groups) - len(self.entries):
            self.entries += self.reader.read(found)
        return self.entries

    def groups(self) -> list[Group]:
        """All groups so far."""
        return [decode_group(entry.payload) for entry in self.read() if entry.payload]

    def said(self) -> list[dict[str, Any]]:
        """The events, newest first, but for what the test itself wants of the run."""
        return [event for event in self.control.events() if event["by"] != "operator"]

    def unapplied(self) -> int:
        return backlog(self.client, self.keys).unapplied

    def leased(self) -> int:
        return backlog(self.client, self.keys).leased

    def state_of(self, server_id: str = "r0") -> str:
        status = self.control.status_of(f"rollout:{server_id}")
        return str(status["state"]) if status else ""

    def write_config(self, path: Path) -> Path:
        path.write_text(dump_config(self.config))
        return path


def versions_of(groups: list[Group]) -> set[int]:
    """The versions that drew their tokens."""
    return {span.policy_version for group in groups for t in group.trajectories for span in t.versions}


def served(run: Run) -> int:
    """What the heartbeat of r0 says; -1 while there is none."""
    status = run.control.status_of("rollout:r0") or {}
    return int(status.get("policy_version", -1))


def small(config: Config, model: Path, *overrides: str) -> Config:
    """A configuration for a tiny model on the transformers engine, with credit for 8 groups at once."""
    return load_config(
        None,
        [
            f"redis.url={config.redis.url}",
            f"run.id={config.run.id}",
            f"run.folder={config.run.folder}",
            f"model.path={model}",
            "rollout.engine.kind=transformers",
            "rollout.group_size=4",
            "rollout.groups_in_flight=4",
            "rollout.sampling.max_tokens=6",
            "environment.kind=python",
            "environment.path=tests.rollout.worlds:Parity",
            "evaluation.prompts=8",
            "learner.groups_per_batch=4",
            "admission.max_staleness=1",
            *overrides,
        ],
        {},
    )


def parts_of(config: Config, server_id: str = "r0") -> Parts:
    return Parts.connect(config, server_id, RolloutMetrics(), "", configure(config.run.id, server_id, "info"))


@asynccontextmanager
async def serving(parts: Parts) -> AsyncIterator[asyncio.Task[None]]:
    """A server in this process, stopped in order at the end of the block unless it has ended by itself.

    Start a second one only when the first has its model: transformers' from_pretrained is not made for two threads.
    """
    server = RolloutServer(parts)
    task = asyncio.create_task(server.run())
    try:
        yield task
    finally:
        server.stop()
        await asyncio.wait({task}, timeout=60)
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


async def until(condition: Callable[[], bool], what: str, task: asyncio.Future[Any], deadline_s: float = 60.0) -> None:
    """Waits for a condition while the server lives."""
    ends = time.monotonic() + deadline_s
    while not await asyncio.to_thread(condition):
        if task.done():
            task.result()
            raise AssertionError(f"the server ended before {what}")
        assert time.monotonic() < ends, f"waited {deadline_s} s for {what}"
        await asyncio.sleep(0.01)

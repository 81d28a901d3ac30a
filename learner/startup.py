"""How a learner begins: wait for its predecessor's end, take an epoch, restore, publish, open the stream."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learner.checkpoint import Checkpoint, CheckpointStore, restore_tensors
from learner.files import RunFiles
from learner.ledger import Ledger
from learner.lineage import Lineage
from learner.model import PolicyModel
from learner.publish import highest_version
from shared.config import Config
from shared.control import LEARNER, ControlState
from shared.errors import FencedError, StoreError
from shared.log import Logger
from shared.process import Deadline
from shared.store import PolicyStore

POLL_S = 0.1
HEARTBEATS_LOST = 1.5  # lease times after which a learner that still beats is alive, not dead


@dataclass(frozen=True)
class Begin:
    """Where training begins, or goes on."""

    step: int
    batches: int
    ledger: Ledger
    lineage: Lineage  # its latest version is the one to publish now
    parent: int  # of that version; -1 for the starting model


def await_predecessor(control: ControlState, lease_s: float) -> None:
    """Waits for the heartbeat of another learner to run out. Raises FencedError where it goes on living."""
    deadline = Deadline("the heartbeat of another learner to end", HEARTBEATS_LOST * lease_s)
    while (other := control.status_of(LEARNER)) is not None and not _is_former_self(other):
        if deadline.remaining == 0.0:
            raise FencedError(
                f"another learner is alive (pid {other.get('pid')} on {other.get('host')}, {other.get('state')!r}): "
                "stop it first, or give this run another run.id"
            )
        time.sleep(POLL_S)


def _is_former_self(other: dict[str, Any]) -> bool:
    """True where the heartbeat is of this process, or of one of this machine that is gone."""
    if other.get("host") != socket.gethostname():
        return False
    pid = int(other.get("pid", 0))
    return pid == os.getpid() or not Path(f"/proc/{pid}").exists()


def take_epoch(control: ControlState, checkpoints: CheckpointStore) -> int:
    """A new epoch, above every one that began in this run folder (a Redis that lost its data counts from 1 again)."""
    newest = checkpoints.newest_epoch()
    while (epoch := control.take_epoch()) <= newest or not checkpoints.begin_epoch(epoch):
        pass
    return epoch


def restore(
    checkpoints: CheckpointStore,
    store: PolicyStore,
    control: ControlState,
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
) -> tuple[Begin, Checkpoint | None]:
    """Loads the newest good checkpoint, if there is one, and finds the number of the version to publish.

    Versions that a power loss has torn are withdrawn here: their weights are not published anew, so no lag may lead
    a server to them.
    """
    checkpoint = checkpoints.newest()
    version = highest_version(store, control) + 1
    descent = _descent(store, control)
    store.drop_torn(control.forget_versions)
    if checkpoint is None:
        if version == 0:
            return Begin(0, 0, Ledger(), Lineage(), -1), None
        return Begin(0, 0, Ledger(), Lineage().restored(0, version, *descent), 0), None
    state = checkpoint.state
    restore_tensors(checkpoint.tensors, policy, optimizer)
    version = max(version, state.policy_version + 1)
    lineage = Lineage(state.segments, state.policy_version).restored(state.policy_version, version, *descent)
    return Begin(
        state.step, state.batches, Ledger(state.finished, state.counts), lineage, state.policy_version
    ), checkpoint


def _descent(store: PolicyStore, control: ControlState) -> tuple[dict[int, int], set[int]]:
    """Version -> parent, of published versions, and those of them that have their parent's weights.

    The store tells of branches where Redis has lost its data, and by their steps which versions a restore published.
    """
    parents: dict[int, int] = {}
    steps: dict[int, int] = {}
    for version in store.versions():
        with suppress(StoreError):
            manifest = store.manifest(version)
            parents[version], steps[version] = manifest.parent, manifest.step
    same = {version for version, parent in parents.items() if steps.get(parent) == steps[version]}
    return {**parents, **control.parents()}, same


def remember_buried(ledger: Ledger, buried: Mapping[int, str]) -> None:
    """Adds the prompts that ended as dead letters after the checkpoint: their entries are gone from the stream."""
    for index, reason in buried.items():
        if index in ledger.finished:
            ledger.buried.add(index)
        else:
            ledger.bury(index, reason)


def abandon_lines(files: RunFiles, begin: Begin) -> int:
    """Leaves only the surviving lineage in the run's files. Returns how many history lines were abandoned."""
    finished = begin.ledger.finished
    files.lost.take_over(lambda row: True)
    files.dropped.take_over(lambda row: row["prompt_index"] < 0 or row["prompt_index"] in finished)
    files.evaluations.take_over(lambda row: row["policy_version"] in begin.lineage)
    return files.history.take_over(lambda row: row["step"] <= begin.step)


def report_changes(stored: dict[str, Any], config: Config, log: Logger) -> None:
    """Says which settings differ from those that the checkpoint was made with."""
    now = config_row(config)
    changed = sorted(_leaves(now).items() ^ _leaves(stored).items())
    if changed:
        log.warning("settings changed since the checkpoint", keys=sorted({key for key, _ in changed}))


def config_row(config: Config) -> dict[str, Any]:
    """The resolved configuration without secrets, as JSON can hold it."""
    return config.model_dump(mode="json", exclude={"redis": {"password"}})


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(_leaves(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = repr(value)
    return out

"""The flight recorder: the learner's last optimizer steps in the run folder, within a bound on their bytes.

The oldest go first; those that were skipped as not finite go last, so that the offending group is there the day
after. Nothing waits for the disk (no fsync), and a disk that refuses costs the recording, never the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.batch import NO_VERSION
from learner.lineage import Lineage
from learner.minibatches import Minibatch
from learner.model import matrix_dtype
from learner.recording import FOLDER, MAX_BYTES, RecordedFile, Recording, encode, recorded_files
from learner.step import StepOutcome
from shared.config import Config
from shared.log import Logger

PARTIAL = ".partial"


def eviction_order(files: Sequence[RecordedFile], max_bytes: int) -> list[RecordedFile]:
    """Which to remove first: the oldest, but skipped steps last.

    Of skipped steps, the newest that fit into half of the bound are meant: a run that skips every other step still
    records the steps between.
    """
    pinned: set[RecordedFile] = set()
    held = 0
    for file in reversed(files):
        if file.skipped:
            held += file.bytes
            if pinned and held > max_bytes // 2:
                break
            pinned.add(file)
    return [f for f in files if f not in pinned] + [f for f in files if f in pinned]


class Recorder:
    """The folder that one learner records into."""

    def __init__(self, config: Config, epoch: int, log: Logger) -> None:
        self._config = config
        self._epoch = epoch
        self._log = log
        self._folder = config.run.folder / FOLDER
        self._files: list[RecordedFile] = []
        self._batch = -1
        self._failing = False
        self.max_bytes = int(config.learner.record_bytes)

    def begin(self, step: int) -> None:
        """Looks at what is recorded; what is of steps after this one belongs to a branch that a restore left."""
        try:
            for torn in self._folder.glob(f"*{PARTIAL}"):
                torn.unlink()
            for file in recorded_files(self._folder):
                kept = replace(file, abandoned=file.abandoned or file.step > step)
                (self._folder / file.name).replace(self._folder / kept.name)
                self._files.append(kept)
        except OSError as error:
            self._say(error)

    def follow(self, wish: int | None) -> None:
        """Takes the operator's bound in bytes; None is the configured one, 0 records nothing more."""
        self.max_bytes = int(self._config.learner.record_bytes) if wish is None else wish

    def keep(
        self,
        step: int,
        batch: int,
        minibatch: Minibatch,
        number: int,
        lineage: Lineage,
        outcome: StepOutcome,
        knobs: Mapping[str, Any],
    ) -> None:
        """Records a step if it is due, `learner.record_every`-th or skipped, with the knobs that it was taken with."""
        first = batch != self._batch
        self._batch = batch
        due = outcome.skipped or step % self._config.learner.record_every == 0
        if not due or not self.max_bytes:
            return
        try:
            self._check_room(step, minibatch)
            recording = recording_of(
                self._config, self._epoch, step, batch, minibatch, number, lineage, outcome, first, knobs
            )
            self._write(recording, encode(recording))
            self._failing = False
        except (OSError, ValueError, MemoryError) as error:  # whatever it is, the run is worth more
            self._say(error)

    def _check_room(self, step: int, minibatch: Minibatch) -> None:
        """Refuses a step whose groups alone are too large, before anything is made of it."""
        needed, most = sum(len(held.payload) for held in minibatch.held), min(self.max_bytes, MAX_BYTES)
        if needed > most:
            raise OSError(f"step {step} takes more than {needed:,} bytes of {most:,}; raise the bound")

    def _write(self, recording: Recording, data: bytes) -> None:
        if len(data) > min(self.max_bytes, MAX_BYTES):
            raise OSError(f"step {recording.step} takes {len(data):,} bytes of {self.max_bytes:,}; raise the bound")
        file = RecordedFile(self._epoch, recording.step, bool(recording.skipped), False, len(data))
        self._make_room(len(data))
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / (file.name + PARTIAL)
        try:
            partial.write_bytes(data)
            partial.replace(self._folder / file.name)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        self._files.append(file)

    def _make_room(self, needed: int) -> None:
        excess = sum(f.bytes for f in self._files) + needed - self.max_bytes
        for file in eviction_order(self._files, self.max_bytes) if excess > 0 else ():
            (self._folder / file.name).unlink(missing_ok=True)
            self._files.remove(file)
            excess -= file.bytes
            if excess <= 0:
                return

    def _say(self, error: Exception) -> None:
        """What keeps a step from being recorded, once until it works again."""
        if not self._failing:
            self._log.warning("the step is not recorded; training goes on", folder=str(self._folder), error=str(error))
        self._failing = True


def recording_of(
    config: Config,
    epoch: int,
    step: int,
    batch: int,
    minibatch: Minibatch,
    number: int,
    lineage: Lineage,
    outcome: StepOutcome,
    first_of_batch: bool,
    knobs: Mapping[str, Any],
) -> Recording:
    """What is kept of a step."""
    learner, own = config.learner, outcome.own
    versions = minibatch.step_batch.versions
    return Recording(
        step=step,
        epoch=epoch,
        at=time.time(),
        batch=batch,
        pass_number=number,
        first_of_batch=first_of_batch,
        policy_version=lineage.latest,
        staleness={int(v): lineage.staleness(int(v)) for v in np.unique(versions[versions != NO_VERSION])},
        groups=tuple(held.payload for held in minibatch.held),
        tokens={name: value.cpu().numpy() for name, value in vars(own).items() if isinstance(value, Tensor)},
        objective=learner.objective.name,
        knobs=dict(knobs),
        advantage=learner.advantage,
        micro_batch_tokens=learner.micro_batch_tokens,
        learning_rate=outcome.learning_rate,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        skipped=outcome.skipped,
        statistics={name: float(value) for name, value in asdict(outcome.statistics.summary()).items()},
        dtype=config.model.dtype,
        device=own.policy_logprobs.device.type,
        threads=torch.get_num_threads(),
        matrix_dtype=matrix_dtype(learner.matrix_dtype, config.model.dtype, own.policy_logprobs.device),
    )

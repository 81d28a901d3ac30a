"""What of a sample's log ratios is the engine's doing, and what is the way that the learner has gone since.

    log_ratio = (learner at the behavior's version - engine) + (learner now - learner at that version)
                 engine_nats: numerics, sampling, a wrong version      drift_nats: staleness

Of one version that drew many of the step's tokens and that the store still has, a second copy of the model is loaded
for as long as its log-probs of a few groups take. The weights in training are not touched, and the step's own log-probs
are those that it was taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.batch import NO_VERSION, StepBatch, batch_rewards, build_step
from learner.lineage import Lineage
from learner.model import PolicyModel
from learner.objective.core import Step
from learner.provision import logprobs_now
from shared.config import Config
from shared.errors import TrustbatchError
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.store import PolicyStore, open_store

HOLDER = "learner-split"
EVERY = 20  # steps, where nothing is configured
LARGEST = 2**30  # bytes of the published weights, up to which it is done where nothing is configured


@dataclass(frozen=True)
class Split:
    """Of a sample of tokens that one version drew."""

    engine_nats: float  # mean |learner at that version - engine|
    drift_nats: float  # mean |learner now - learner at that version|
    staleness: int  # versions


class Splitter:
    """Takes the sample every so many steps."""

    def __init__(
        self, config: Config, policy: PolicyModel, metrics: LearnerMetrics, log: Logger, came: Callable[[], None]
    ) -> None:
        """`came` is called for each part of a version that is there."""
        self._config = config
        self._policy = policy
        self._metrics = metrics
        self._log = log
        self._came = came
        self._every = steps_between(config, policy)
        self._store: PolicyStore | None = None
        self._failing = False

    def of_step(self, step: int, batch: StepBatch, own: Step, lineage: Lineage) -> Split | None:
        """The split of a step that has just been taken; None where none is due or no version is there."""
        if not self._every or step % self._every:
            return None
        started = time.monotonic()
        try:
            found = self._split(batch, own, lineage)
            self._failing = False
        except (TrustbatchError, OSError, MemoryError, torch.OutOfMemoryError) as error:  # the run is worth more
            self._metrics.split_failures.inc()
            if not self._failing:
                self._log.warning("the log ratios of a sample were not split", error=str(error))
            self._failing = True
            return None
        self._metrics.split_seconds.observe(time.monotonic() - started)
        return found

    def _split(self, batch: StepBatch, own: Step, lineage: Lineage) -> Split | None:
        self._store = self._store or open_store(self._config, HOLDER)
        version = sampled_version(batch, set(self._store.versions()))
        if version is None:
            return None
        groups = sampled_groups(batch, version, self._config.learner.floor_groups)
        try:
            _, folder = self._store.hold(version, HOLDER, self._came)
            dtype, now = self._config.model.dtype, self._policy
            then = PolicyModel.load(str(folder), dtype, now.device, matrices=now.matrices, key="store")
        finally:
            self._store.let_go(HOLDER)
        return split(batch, own, then, groups, version, lineage.staleness(version))


def steps_between(config: Config, policy: PolicyModel) -> int:
    """`learner.floor_every`, or what it is where it is not given."""
    if config.learner.floor_every is not None:
        return config.learner.floor_every
    size = sum(p.numel() for p in policy.named_parameters().values()) * policy.dtype.itemsize
    return EVERY if size <= LARGEST and "://" not in config.store.url else 0


def sampled_version(batch: StepBatch, there: set[int]) -> int | None:
    """The version, of those that are there, that drew most of the step's tokens."""
    versions, counts = np.unique(batch.versions[batch.versions != NO_VERSION], return_counts=True)
    known = [(count, version) for version, count in zip(versions.tolist(), counts.tolist(), strict=True)]
    return max(((count, version) for count, version in known if version in there), default=(0, None))[1]


def sampled_groups(batch: StepBatch, version: int, most: int) -> list[int]:
    """The groups, by their place in the step, with most tokens of that version."""
    group_of = batch.group_of.numpy()[batch.sequence_of.numpy()]
    counts = np.bincount(group_of[batch.versions == version], minlength=len(batch.groups))
    return [int(g) for g in np.argsort(-counts, kind="stable")[:most] if counts[g]]


def split(batch: StepBatch, own: Step, then: PolicyModel, groups: list[int], version: int, staleness: int) -> Split:
    """The split of these groups' tokens that the version drew, whose weights `then` has."""
    sampled = [batch.groups[g] for g in groups]
    longest = max(len(m.packed.ids) for m in batch.micro_batches)
    sample = build_step(sampled, batch_rewards(sampled), "group_mean", longest)
    at_version = _in_order(logprobs_now(then, sample), sample.sequence_of)
    versions = _in_order(torch.from_numpy(sample.versions), sample.sequence_of)
    mine, place = _places(batch, groups)
    mine = mine.to(own.policy_logprobs.device)
    now, behavior = (_in_order(v[mine], place).double().cpu() for v in (own.policy_logprobs, own.behavior_logprobs))
    at_version, drawn = at_version.double().cpu(), versions == version
    return Split(
        engine_nats=(at_version - behavior)[drawn].abs().mean().item(),
        drift_nats=(now - at_version)[drawn].abs().mean().item(),
        staleness=staleness,
    )


def _places(batch: StepBatch, groups: list[int]) -> tuple[Tensor, Tensor]:
    """Which of the step's tokens are of these groups, and the number of each one's trajectory within the sample."""
    sizes = [len(group.trajectories) for group in batch.groups]
    first = np.concatenate([[0], np.cumsum(sizes)])
    numbers = torch.full((first[-1],), -1)
    count = 0
    for g in groups:
        numbers[first[g] : first[g + 1]] = torch.arange(count, count + sizes[g])
        count += sizes[g]
    place = numbers[batch.sequence_of]
    return place >= 0, place[place >= 0]


def _in_order(values: Tensor, place: Tensor) -> Tensor:
    """The tokens by trajectory, and in each as they stand there."""
    return values[place.argsort(stable=True).to(values.device)]

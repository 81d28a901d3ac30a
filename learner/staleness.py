"""Where staleness comes from: what was asked for, what came in flight, what came in the queue. Pure functions.

    version that drew the token ---- lag ---- flight ---- latest at the append ---- queue ---- latest at the step
                                     `---- behind when its group was appended ----'

Lag is what the operator asked for, as far as the token was behind by the append; flight is what came on top until then
(a sync that took its time, generation, rewards); queue is what came while the group waited. The three add up to the
staleness of every token, exactly. Where nobody knows when a group was appended, all that is beyond its lag is queue.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.batch import NO_VERSION, Int64Array, StepBatch
from learner.lineage import Lineage
from learner.objective.staleness import bucket_name, staleness_bucket
from shared.types import Group


@dataclass(frozen=True)
class StalenessParts:
    """Of the n trained tokens that the policy drew, versions."""

    lag: Int64Array  # [n]
    flight: Int64Array  # [n]
    queue: Int64Array  # [n]

    @property
    def total(self) -> Int64Array:
        """Their staleness, [n]."""
        return self.lag + self.flight + self.queue


def split(total: int, behind_at_append: int | None, asked: int) -> tuple[int, int, int]:
    """(lag, flight, queue) of a token; they add up to `total`.

    Args:
        total: its staleness at the step, versions.
        behind_at_append: latest version at the append minus the version that drew it; None where nobody knows. An
            abandoned branch may have gone further than the one that the step is on: what exceeds `total` is cut.
        asked: the lag that the operator had asked for.

    """
    behind = min(asked, total) if behind_at_append is None else min(max(behind_at_append, 0), total)
    lag = min(asked, behind)
    return lag, behind - lag, total - behind


def parts_of_staleness(batch: StepBatch, latest_at_append: Sequence[int], lineage: Lineage) -> StalenessParts:
    """The staleness of every trained token that the policy drew, by where it comes from.

    Args:
        batch: of the step.
        latest_at_append: of each group of the batch, the latest version when it was appended; -1 where nobody knows.
        lineage: at the step.

    """
    drawn = batch.versions != NO_VERSION
    group_of = batch.group_of.numpy()[batch.sequence_of.numpy()[drawn]]
    pairs = np.stack([group_of, batch.versions[drawn]], axis=1)
    known, where = np.unique(pairs, axis=0, return_inverse=True)
    table = [_of(int(v), batch.groups[g].lag, latest_at_append[g], lineage) for g, v in known]
    columns = np.array(table, dtype=np.int64).reshape(len(table), 3)[where.reshape(-1)]
    return StalenessParts(*columns.T)


def _of(version: int, asked: int, latest_at_append: int, lineage: Lineage) -> tuple[int, int, int]:
    behind = None if latest_at_append < 0 else lineage.depth(latest_at_append) - lineage.depth(version)
    return split(lineage.staleness(version), behind, asked)


def arm_of(group: Group) -> str:
    """The arm of a comparison that a group belongs to: the control, or the bucket of the lag that was asked for."""
    return group.arm or _lag_bucket(group.lag)


@functools.cache
def _lag_bucket(lag: int) -> str:
    return f"lag {bucket_name(int(staleness_bucket(torch.tensor([lag]))))}"

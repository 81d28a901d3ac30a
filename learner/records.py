"""From a step and its batch to the step's record."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from learner.batch import Int64Array, StepBatch
from learner.step import StepOutcome
from shared.metrics import LearnerMetrics
from shared.records import StepRecord


def step_record(
    step: int,
    policy_version: int,
    batch: StepBatch,
    staleness: Int64Array,
    outcome: StepOutcome,
    applied: Sequence[int],
    wait_s: float,
) -> StepRecord:
    """The record of one step; what publishing took is filled in later."""
    trajectories = batch.trajectories
    lengths = np.array([t.length for t in trajectories])
    statistics = {name: value.item() for name, value in vars(outcome.statistics).items()}
    return StepRecord(
        step=step,
        policy_version=policy_version,
        at=time.time(),
        groups=len(batch.groups),
        prompt_indices=list(applied),
        trajectories=len(trajectories),
        tokens=batch.trained_tokens,
        reward_mean=float(batch.rewards.mean()),
        signal_share=batch.signal_share,
        length_mean=float(lengths.mean()),
        truncated_share=sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
        staleness_mean=float(staleness.mean()),
        staleness_max=int(staleness.max()),
        floor_max_nats=outcome.floor_max_nats,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        learning_rate=outcome.learning_rate,
        skipped=outcome.skipped,
        wait_s=wait_s,
        compute_s=outcome.seconds,
        publish_s=0.0,
        **statistics,
    )


def observe_staleness(metrics: LearnerMetrics, staleness: Int64Array) -> None:
    """Counts every trained token's staleness."""
    for value, count in zip(*np.unique(staleness, return_counts=True), strict=True):
        for _ in range(int(count)):
            metrics.staleness.observe(float(value))

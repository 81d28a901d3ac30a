"""From a step and its batch to the step's record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from learner.batch import StepBatch
from learner.parted import Parted
from learner.split import Split
from learner.staleness import StalenessParts
from learner.step import StepOutcome
from shared.histogram import LOG_RATIO_EDGES
from shared.records import StepRecord

STEP_FIELDS = frozenset(field.name for field in fields(StepRecord)) - {"tokens"}  # trained ones, an expert's too


@dataclass(frozen=True)
class Pace:
    """How the learner's time goes, and what waits for it; None: not known."""

    wait_s: float  # waited for groups
    busy_share: float | None = None
    wait_share: float | None = None
    backlog_groups: int | None = None
    backlog_bytes: int | None = None
    backlog_oldest_s: float | None = None
    backlog_drain_s: float | None = None


def step_record(
    step: int,
    policy_version: int,
    batch: StepBatch,
    parts: StalenessParts,
    outcome: StepOutcome,
    applied: Sequence[int],
    pace: Pace,
    settings: Mapping[str, float],
    split: Split | None = None,
) -> StepRecord:
    """The record of one step; what publishing took is filled in later."""
    trajectories = batch.drawn
    lengths = np.array([t.length for t in trajectories])
    of_all = asdict(outcome.statistics.summary())
    return StepRecord(
        step=step,
        policy_version=policy_version,
        at=time.time(),
        groups=len(batch.groups),
        prompt_indices=list(applied),
        trajectories=len(trajectories),
        tokens=batch.trained_tokens,
        computed_tokens=batch.computed_tokens,
        micro_batches=len(batch.micro_batches),
        packing_efficiency=batch.packing_efficiency,
        reward_mean=float(np.mean([t.reward for t in trajectories])),
        signal_share=batch.signal_share,
        length_mean=float(lengths.mean()),
        truncated_share=sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
        log_ratio_counts=outcome.statistics.sketch.counts_between(LOG_RATIO_EDGES).tolist(),
        lags=dict(Counter(group.arm or str(group.lag) for group in batch.groups)),
        settings=dict(settings),
        publish_s=0.0,
        shadows=[asdict(shadow) for shadow in outcome.shadows],
        engine_nats=split.engine_nats if split else None,
        drift_nats=split.drift_nats if split else None,
        split_staleness=split.staleness if split else None,
        **_of_staleness(parts),
        **_of_outcome(outcome),
        **Parted(batch, outcome).parts(parts.total),
        **asdict(pace),
        **{name: of_all[name] for name in of_all.keys() & STEP_FIELDS},
    )


def _of_staleness(parts: StalenessParts) -> dict[str, Any]:
    named = {"staleness": parts.total, **vars(parts)}
    found: dict[str, Any] = {f"{name}_mean": float(values.mean()) for name, values in named.items()}
    return found | {f"{name}_max": int(values.max()) for name, values in named.items()}


def _of_outcome(outcome: StepOutcome) -> dict[str, Any]:
    floor = outcome.floor
    return {
        "kl_weight": outcome.kl_weight,
        "entropy_mean": outcome.entropy_mean,
        "floor_max_nats": floor.max_nats if floor else None,
        "floor_mean_nats": floor.mean_nats if floor else None,
        "floor_token_ess": floor.token_ess if floor else None,
        "loss": outcome.loss,
        "prepass_s": outcome.prepass_s,
        "loss_score": outcome.loss - outcome.loss_kl - outcome.loss_entropy,
        "loss_kl": outcome.loss_kl,
        "loss_entropy": outcome.loss_entropy,
        "grad_norm": outcome.grad_norm,
        "update_norm": outcome.update_norm,
        "learning_rate": outcome.learning_rate,
        "skipped": outcome.skipped,
        "compute_s": outcome.seconds,
    }

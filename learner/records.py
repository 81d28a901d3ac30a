"""From a step and its batch to the step's record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields

import numpy as np
import torch
from torch import Tensor

from learner.batch import Int64Array, StepBatch
from learner.objective.core import Step
from learner.objective.staleness import bucket_name, staleness_bucket
from learner.objective.statistics import by_key
from learner.staleness import StalenessParts, arm_of
from learner.step import StepOutcome
from shared.records import StepRecord

PART_FIELDS = ("tokens", "token_ess", "sequence_ess", "ratio_p50", "ratio_max", "kl", "capped_share")
STEP_FIELDS = frozenset(field.name for field in fields(StepRecord)) - {"tokens"}  # trained ones, an expert's too


def step_record(
    step: int,
    policy_version: int,
    batch: StepBatch,
    parts: StalenessParts,
    outcome: StepOutcome,
    applied: Sequence[int],
    wait_s: float,
) -> StepRecord:
    """The record of one step; what publishing took is filled in later."""
    trajectories = [t for group in batch.groups for t in group.own]
    lengths = np.array([t.length for t in trajectories])
    of_all = asdict(outcome.statistics.summary())
    own = outcome.own.drawn()
    staleness = parts.total
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
        staleness_mean=float(staleness.mean()),
        staleness_max=int(staleness.max()),
        lag_mean=float(parts.lag.mean()),
        lag_max=int(parts.lag.max()),
        flight_mean=float(parts.flight.mean()),
        flight_max=int(parts.flight.max()),
        queue_mean=float(parts.queue.mean()),
        queue_max=int(parts.queue.max()),
        lags=dict(Counter(group.arm or str(group.lag) for group in batch.groups)),
        floor_max_nats=outcome.floor_max_nats,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        learning_rate=outcome.learning_rate,
        skipped=outcome.skipped,
        wait_s=wait_s,
        compute_s=outcome.seconds,
        prepass_s=outcome.prepass_s,
        publish_s=0.0,
        by_staleness=_by(own, outcome, staleness_bucket(torch.from_numpy(staleness)), bucket_name),
        by_environment=_by(own, outcome, *_of_groups(own, [group.environment for group in batch.groups])),
        by_arm=_arms(own, outcome, batch, staleness),
        shadows=[asdict(shadow) for shadow in outcome.shadows],
        **{name: of_all[name] for name in of_all.keys() & STEP_FIELDS},
    )


def _by(own: Step, outcome: StepOutcome, key_of: Tensor, name_of: Callable[[int], str]) -> dict[str, dict[str, float]]:
    """The statistics of every key's tokens, by the key's name."""
    mine = slice(None) if outcome.own.expert is None else ~outcome.own.expert
    parts = by_key(
        own.log_ratio,
        own.sequence_of,
        own.sequences,
        key_of.to(own.sequence_of.device),
        weight=outcome.weight[mine],
        cut=outcome.cut[mine],
    )
    summaries = {name_of(key): asdict(part.summary()) for key, part in parts.items()}
    return {name: {key: of_part[key] for key in PART_FIELDS} for name, of_part in summaries.items()}


def _of_groups(own: Step, labels: Sequence[str]) -> tuple[Tensor, Callable[[int], str]]:
    """The number of the label of each token's group, and what it is called."""
    names = sorted(set(labels))
    number = torch.tensor([names.index(label) for label in labels], device=own.group_of.device)
    return number[own.group_of][own.sequence_of], names.__getitem__


def _arms(own: Step, outcome: StepOutcome, batch: StepBatch, staleness: Int64Array) -> dict[str, dict[str, float]]:
    """Ratios, rewards, lengths and staleness of every arm."""
    labels = [arm_of(group) for group in batch.groups]
    key_of, name_of = _of_groups(own, labels)
    found = _by(own, outcome, key_of, name_of)
    where = key_of.cpu().numpy()
    for key, name in enumerate(sorted(found)):
        groups = [group for group, label in zip(batch.groups, labels, strict=True) if label == name]
        trajectories = [t for group in groups for t in group.own]
        found[name] |= {
            "groups": len(groups),
            "trajectories": len(trajectories),
            "reward_mean": float(np.mean([t.reward for t in trajectories])),
            "length_mean": float(np.mean([t.length for t in trajectories])),
            "staleness_mean": float(staleness[where == key].mean()),
        }
    return found

"""From a step and its batch to the step's record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.batch import Int64Array, StepBatch
from learner.objective.core import Step
from learner.objective.staleness import bucket_name, staleness_bucket
from learner.objective.statistics import by_key
from learner.split import Split
from learner.staleness import StalenessParts, arm_of
from learner.step import StepOutcome
from shared.histogram import LOG_RATIO_EDGES
from shared.records import MOST_LABELS, OTHERS, StepRecord

PART_FIELDS = (
    "tokens",
    "token_ess",
    "sequence_ess",
    "ratio_p50",
    "ratio_max",
    "top_1_percent_mass",
    "kl",
    "capped_share",
)
STEP_FIELDS = frozenset(field.name for field in fields(StepRecord)) - {"tokens"}  # trained ones, an expert's too
POSITIONS = (16, 64, 256, 1024)  # where a bucket of positions in the completion begins
POSITION_NAMES = ("0-15", "16-63", "64-255", "256-1023", "1024+")


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
    split: Split | None = None,
) -> StepRecord:
    """The record of one step; what publishing took is filled in later."""
    trajectories = [t for group in batch.groups for t in group.own]
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
        reward_mean=float(np.mean([t.reward for t in trajectories])),
        signal_share=batch.signal_share,
        length_mean=float(lengths.mean()),
        truncated_share=sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
        log_ratio_counts=outcome.statistics.sketch.counts_between(LOG_RATIO_EDGES).tolist(),
        lags=dict(Counter(group.arm or str(group.lag) for group in batch.groups)),
        publish_s=0.0,
        shadows=[asdict(shadow) for shadow in outcome.shadows],
        engine_nats=split.engine_nats if split else None,
        drift_nats=split.drift_nats if split else None,
        split_staleness=split.staleness if split else None,
        **_of_staleness(parts),
        **_of_outcome(outcome),
        **_of_parts(batch, parts.total, outcome),
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
        "loss_score": outcome.loss - outcome.loss_kl - outcome.loss_entropy,
        "loss_kl": outcome.loss_kl,
        "loss_entropy": outcome.loss_entropy,
        "grad_norm": outcome.grad_norm,
        "update_norm": outcome.update_norm,
        "learning_rate": outcome.learning_rate,
        "skipped": outcome.skipped,
        "compute_s": outcome.seconds,
    }


def _of_parts(batch: StepBatch, staleness: Int64Array, outcome: StepOutcome) -> dict[str, Any]:
    """The statistics by staleness, environment, server, position and arm."""
    own = outcome.own.drawn()
    drawn = ~batch.expert.numpy()
    positions = torch.bucketize(torch.from_numpy(batch.positions[drawn]), torch.tensor(POSITIONS), right=True)
    return {
        "by_staleness": _by(own, outcome, staleness_bucket(torch.from_numpy(staleness)), bucket_name),
        "by_environment": _by(own, outcome, *_of_groups(own, bounded([g.environment for g in batch.groups]))),
        "by_server": _by(own, outcome, *_of_groups(own, bounded([g.server_id for g in batch.groups]))),
        "by_position": _by(own, outcome, positions, POSITION_NAMES.__getitem__),
        "by_arm": _arms(own, outcome, batch, staleness),
    }


def bounded(labels: Sequence[str]) -> list[str]:
    """The label of each group; beyond MOST_LABELS of them, those of the fewest groups are OTHERS."""
    counts = Counter(labels)
    named = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
    return [label if label in named else OTHERS for label in labels]


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
    found = {}
    for key, part in parts.items():
        of_part = asdict(part.summary())
        shown = {name: of_part[name] for name in PART_FIELDS}
        found[name_of(key)] = shown | {"weight_share": part.weight_share(outcome.statistics)}
    return found


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

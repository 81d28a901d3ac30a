"""Step records, evaluations and dropped groups as the learner writes them, any field of which can be replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shared.records import Dropped, StepRecord

Row = dict[str, Any]


def step(number: int, indices: Iterable[int] = (), **changes: Any) -> Row:
    """The record of one optimizer step that applied the groups of these prompt indices."""
    record = StepRecord(
        step=number,
        policy_version=max(0, number - 1),
        at=1000.0 + number,
        groups=2,
        prompt_indices=list(indices),
        trajectories=8,
        tokens=100,
        computed_tokens=160,
        micro_batches=1,
        packing_efficiency=0.8,
        reward_mean=0.5,
        signal_share=1.0,
        length_mean=12.5,
        truncated_share=0.0,
        token_ess=0.98,
        sequence_ess=0.9,
        log1m_token_ess=-3.9,
        chi2=0.02,
        ratio_min=0.5,
        ratio_p1=0.8,
        ratio_p50=1.0,
        ratio_p99=1.2,
        ratio_max=1.5,
        log_ratio_abs_max=0.7,
        largest_weight_share=0.015,
        top_1_percent_mass=0.015,
        kl=0.001,
        k1=0.001,
        k2=0.001,
        k3=0.001,
        log_ratio_counts=[0] * 20 + [100] + [0] * 20,
        capped_share=0.1,
        weight_lost=0.02,
        zero_weight_share=0.0,
        kl_weight=0.02,
        entropy_mean=None,
        staleness_mean=1.0,
        staleness_max=2,
        lag_mean=0.0,
        lag_max=0,
        flight_mean=0.5,
        flight_max=1,
        queue_mean=0.5,
        queue_max=1,
        lags={"0": 2},
        floor_max_nats=1e-6,
        floor_mean_nats=1e-7,
        floor_token_ess=1.0,
        engine_nats=None,
        drift_nats=None,
        split_staleness=None,
        loss=-0.1,
        loss_score=-0.11,
        loss_kl=0.01,
        loss_entropy=0.0,
        grad_norm=0.3,
        update_norm=0.01,
        learning_rate=1e-4,
        settings={"max_staleness": 4, "learning_rate_factor": 1.0},
        skipped="",
        wait_s=0.1,
        compute_s=0.5,
        prepass_s=0.0,
        publish_s=0.05,
        busy_share=0.7,
        wait_share=0.1,
        backlog_groups=4,
        backlog_bytes=4096,
        backlog_oldest_s=1.5,
        backlog_drain_s=2.0,
        by_staleness={},
        by_environment={},
        by_server={},
        by_position={},
        by_arm={},
        shadows=[],
    )
    return asdict(replace(record, **changes))


def dropped(index: int, reason: str = "too_stale", **changes: Any) -> Row:
    """The record of a group that ended without a step."""
    record = Dropped(prompt_index=index, reason=reason, length_mean=4.0, reward_mean=0.0, at=1.0)
    return asdict(replace(record, **changes))


def evaluation(version: int, accuracy: float) -> Row:
    """A held-out result."""
    return {
        "policy_version": version,
        "accuracy": accuracy,
        "prompts": 64,
        "mean_length": 5.0,
        "seconds": 1.0,
        "server_id": "r0",
        "at": 1.0,
    }


def write_lines(path: Path, rows: Iterable[Row], torn: str = "") -> None:
    """Writes rows as JSON lines, and what a killed process left of the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)

"""Well-formed groups for tests, any part of which can be replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from shared.types import Group, SamplingSettings, Source, Trajectory, VersionSpan, group_id_for


def trajectory(length: int = 5, version: int = 0, reward: float = 0.0, seed: int = 0, **changes: Any) -> Trajectory:
    """A completion of `length` policy tokens, all drawn by one version."""
    rng = np.random.default_rng(seed)
    return replace(
        Trajectory(
            token_ids=rng.integers(0, 100, length, dtype=np.int32),
            behavior_logprobs=-rng.random(length, dtype=np.float32),
            loss_mask=np.ones(length, dtype=np.bool_),
            source=np.full(length, Source.POLICY, dtype=np.uint8),
            versions=(VersionSpan(version, 0, length),) if length else (),
            reward=reward,
            rewards={"exact": reward},
            finish_reason="stop",
            sampling=SamplingSettings(),
        ),
        **changes,
    )


def expert(length: int = 4, version: int = 0, reward: float = 1.0, seed: int = 0) -> Trajectory:
    """An expert's answer of `length` tokens, beside completions of that version."""
    source, logprobs = np.full(length, Source.EXPERT, dtype=np.uint8), np.zeros(length, dtype=np.float32)
    return trajectory(length, version, reward, seed, source=source, behavior_logprobs=logprobs)


def with_experts(group: Group, count: int, version: int = 0) -> Group:
    """The same group with answers of an expert after its own completions."""
    answers = tuple(expert(2 + i, version, reward=5.0 + i, seed=900 + i) for i in range(count))
    return replace(group, trajectories=(*group.trajectories, *answers))


def group(index: int = 0, run_id: str = "run", size: int = 4, version: int = 0, **changes: Any) -> Group:
    """A group of `size` completions of different lengths and rewards."""
    return replace(
        Group(
            group_id=group_id_for(run_id, index),
            prompt_index=index,
            environment="test",
            prompt_ids=np.arange(1, 7, dtype=np.int32),
            trajectories=tuple(
                trajectory(3 + i, version, reward=float(i % 2), seed=100 * index + i) for i in range(size)
            ),
            server_id="s0",
            lag=0,
            started_at=1.0,
            completed_at=2.0,
            trace_id=f"trace-{index}",
        ),
        **changes,
    )

"""The record of a step: its parts by server, position and the rest, and what becomes of too many of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import batch_rewards, build_step
from learner.lineage import Lineage
from learner.model import PolicyModel
from learner.objectives import objectives_of
from learner.pace import Clock
from learner.parts import bounded
from learner.records import step_record
from learner.staleness import parts_of_staleness
from learner.step import make_optimizer, take_step
from shared.config.learner import LearnerConfig
from shared.records import MOST_LABELS, OTHERS, StepRecord
from shared.types import Group
from tests import builders


def record_of(tiny_folder: Path, groups: list[Group], **changes: Any) -> StepRecord:
    policy = PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu"))
    config = LearnerConfig(learning_rate=1e-3, **changes)
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    outcome = take_step(policy, make_optimizer(policy, config), batch, objectives_of(config), config, 1, drawn_by=0)
    parts = parts_of_staleness(batch, [0] * len(groups), Lineage(latest=0))
    return step_record(1, 0, batch, parts, outcome, [], Clock().stepped(outcome.seconds, 0), {})


def long_group(index: int, length: int, **changes: Any) -> Group:
    """With one completion of that many tokens."""
    drawn = builders.group(index, **changes)
    return replace(drawn, trajectories=(builders.trajectory(length, reward=1.0, seed=7), *drawn.trajectories[1:]))


def test_servers_and_positions_share_out_the_tokens_and_the_weight(tiny_folder: Path) -> None:
    record = record_of(tiny_folder, [long_group(0, 40), long_group(1, 20, server_id="s1"), builders.group(2)])
    lengths = [4, 5, 6]
    assert {name: part["tokens"] for name, part in record.by_server.items()} == {
        "s0": 40 + sum(lengths) + 3 + sum(lengths),
        "s1": 20 + sum(lengths),
    }
    assert {name: part["tokens"] for name, part in record.by_position.items()} == {
        "0-15": 32 + 3 * sum(lengths) + 3,
        "16-63": 24 + 4,
    }
    for parts in (record.by_server, record.by_position, record.by_staleness, record.by_environment):
        assert sum(part["weight_share"] for part in parts.values()) == pytest.approx(1)
        assert all(0 < part["top_1_percent_mass"] <= 1 for part in parts.values())
    assert sum(record.log_ratio_counts) == record.tokens


def test_the_parts_of_the_loss_are_the_loss(tiny_folder: Path) -> None:
    rare = builders.trajectory(9, behavior_logprobs=np.full(9, -8, dtype=np.float32))
    plain = record_of(tiny_folder, [builders.group(0), replace(builders.group(1), trajectories=(rare, rare))])
    assert plain.loss_score + plain.loss_kl + plain.loss_entropy == pytest.approx(plain.loss)
    assert plain.loss_kl > 0
    assert plain.kl_weight == pytest.approx(1 - plain.token_ess)
    assert (plain.loss_entropy, plain.entropy_mean) == (0, None)
    assert 0 < plain.weight_lost < 1
    assert plain.update_norm is not None
    assert plain.update_norm > 0
    rewarded = record_of(tiny_folder, [builders.group(0)], objective={"name": "grpo", "entropy_weight": 0.5})
    assert rewarded.entropy_mean is not None
    assert rewarded.loss_entropy == pytest.approx(-0.5 * rewarded.entropy_mean)
    assert (rewarded.loss_kl, rewarded.kl_weight) == (0, 0)


def test_entropy_is_measured_where_it_is_asked_for_and_changes_nothing(tiny_folder: Path) -> None:
    asked = record_of(tiny_folder, [builders.group(0)], entropy=True)
    plain = record_of(tiny_folder, [builders.group(0)])
    assert asked.entropy_mean is not None
    assert 0 < asked.entropy_mean < 6
    assert (asked.loss, asked.grad_norm, asked.update_norm) == (plain.loss, plain.grad_norm, plain.update_norm)


def test_the_floor_is_that_of_the_tokens_that_these_weights_drew(tiny_folder: Path) -> None:
    record = record_of(tiny_folder, [builders.group(0), builders.group(1, version=1)])
    alone = record_of(tiny_folder, [builders.group(0)])
    assert record.floor_mean_nats == pytest.approx(alone.floor_mean_nats, rel=1e-5)
    assert record.floor_token_ess == pytest.approx(alone.token_ess, rel=1e-5)
    assert record.floor_max_nats == alone.log_ratio_abs_max


def test_beyond_a_bound_labels_of_the_fewest_groups_are_others() -> None:
    labels = [f"r{i}" for i in range(MOST_LABELS + 5)] + [f"r{i}" for i in range(10, MOST_LABELS + 5)]
    found = bounded(labels)
    assert len(set(found)) == MOST_LABELS + 1
    others = {name for name, label in zip(labels, found, strict=True) if label == OTHERS}
    assert others == {"r5", "r6", "r7", "r8", "r9"}, "of those with one group, the last by name"
    assert bounded(["a", "b", "a"]) == ["a", "b", "a"]

"""The groups that an operator is shown of a step."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.batch import StepBatch, batch_rewards, build_step
from learner.examples import LOG_RATIO, WEIGHT, Decoder, chosen, examples_of, window
from learner.files import finite
from learner.objective.core import Step
from shared.log import configure
from tests import builders
from tests.learner.conftest import MakeWorld


def step_with(batch: StepBatch, log_ratio: dict[tuple[int, int], float]) -> Step:
    """All ratios 1 but for those of (trajectory, position)."""
    at = zip(batch.sequence_of.tolist(), batch.positions.tolist(), strict=True)
    values = torch.tensor([log_ratio.get(place, 0.0) for place in at])
    nothing = torch.zeros(len(values))
    return Step(values, nothing, nothing, batch.sequence_of, batch.group_of, torch.from_numpy(batch.rewards))


def decoder() -> Decoder:
    return Decoder("/nowhere", configure("run", "learner", "critical"))


def test_the_groups_of_the_largest_weight_are_shown_and_that_of_the_farthest_token() -> None:
    groups = [builders.group(i, server_id=f"r{i}") for i in range(5)]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    own = step_with(batch, {(4 * 1 + 2, 3): 4.0, (4 * 3, 0): 3.0, (4 * 4 + 1, 1): -9.0})
    first, second, farthest = examples_of(7, batch, own, decoder())
    assert [(e["step"], e["group_id"], e["why"]) for e in (first, second, farthest)] == [
        (7, "run:1", [WEIGHT]),
        (7, "run:3", [WEIGHT]),
        (7, "run:4", [LOG_RATIO]),
    ]
    assert (first["server_id"], first["environment"], first["prompt_index"]) == ("r1", "test", 1)
    total = 90 + math.exp(4) + math.exp(3) + math.exp(-9) - 3
    assert first["weight_share"] == pytest.approx((math.exp(4) + 17) / total)
    assert (first["log_ratio_abs_max"], farthest["log_ratio_abs_max"]) == (4.0, 9.0)
    assert first["rewards"] == [0.0, 1.0, 0.0, 1.0]
    told = first["trajectories"][2]
    assert told["log_ratio"] == [0.0, 0.0, 0.0, 4.0, 0.0]
    assert told["tokens"] == [f"<{i}>" for i in groups[1].trajectories[2].token_ids.tolist()]
    assert (told["start"], told["length"], told["versions"], told["finish_reason"]) == (0, 5, [[0, 0, 5]], "stop")
    assert sum(t["weight_share"] for t in first["trajectories"]) == pytest.approx(first["weight_share"])


def test_tokens_that_are_not_trained_have_no_log_ratio_and_long_completions_are_shown_in_part() -> None:
    mask = np.arange(3000) >= 2500
    long = builders.trajectory(3000, loss_mask=mask, reward=1.0)
    groups = [replace(builders.group(0), trajectories=(long, builders.trajectory(3)))]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    [told] = examples_of(1, batch, step_with(batch, {(0, 2510): 2.0}), decoder())
    shown = told["trajectories"][0]
    assert (len(shown["tokens"]), len(shown["log_ratio"]), shown["length"]) == (512, 512, 3000)
    assert shown["log_ratio"][2510 - shown["start"]] == 2.0
    values = finite(shown["log_ratio"])
    assert values[2499 - shown["start"]] is None
    assert values[2500 - shown["start"]] == 0.0
    assert len(json.dumps(finite(told))) < 32_000


def test_what_is_not_finite_is_the_farthest_and_has_all_the_weight() -> None:
    groups = [builders.group(i) for i in range(4)]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    for broken in (math.nan, math.inf):
        [only] = examples_of(1, batch, step_with(batch, {(9, 0): broken}), decoder())
        assert (only["group_id"], only["why"]) == ("run:2", [WEIGHT, LOG_RATIO])
        assert only["weight_share"] == pytest.approx(1)
    zero = examples_of(1, batch, step_with(batch, {(9, 0): -math.inf}), decoder())
    assert zero[-1]["why"] == [LOG_RATIO]


def test_an_expert_s_answers_carry_no_weight() -> None:
    groups = [builders.with_experts(builders.group(0), 1), builders.group(1)]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10_000)
    told = {e["group_id"]: e for e in examples_of(1, batch, step_with(batch, {(4, 0): 9.0, (5, 0): 1.0}), decoder())}
    assert [t["weight_share"] > 0 for t in told["run:0"]["trajectories"]] == [True] * 4 + [False]
    assert told["run:1"]["why"] == [WEIGHT, LOG_RATIO]


def test_of_no_token_nothing_is_shown() -> None:
    assert chosen(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)) == {}


@pytest.mark.parametrize(("heaviest", "expected"), [(0, (0, 4)), (5, (3, 7)), (9, (6, 10))])
def test_the_window_is_around_the_heaviest_token_and_within_the_completion(
    heaviest: int, expected: tuple[int, int]
) -> None:
    assert window(np.eye(10)[heaviest], 4) == expected


@pytest.mark.system
def test_a_run_shows_its_examples_as_text_by_step(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=2")
    learner = world.learner()
    for _ in range(2):
        world.append(2, version=0)
        learner.iterate()
    newest, *_ = world.control.examples(last=1)
    assert newest["step"] == 2
    of_first = world.control.examples(step=1)
    assert {example["step"] for example in of_first} == {1}
    assert 1 <= len(of_first) <= 2
    trajectory = newest["trajectories"][0]
    assert newest["prompt"]
    assert not any(token.strip("<>").isdigit() and "<" in token for token in trajectory["tokens"]), "text, not ids"
    assert max(abs(d) for t in newest["trajectories"] for d in t["log_ratio"]) == pytest.approx(
        newest["log_ratio_abs_max"], abs=1e-6
    )


@pytest.mark.system
def test_without_bytes_for_them_there_are_none(make_world: MakeWorld) -> None:
    world = make_world("learner.groups_per_batch=2", "learner.examples_bytes=0")
    learner = world.learner()
    world.append(2)
    learner.iterate()
    assert world.control.examples() == []

"""One optimizer step on a tiny model: the same gradient however it is cut, or no step at all."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.batch import StepBatch, batch_rewards, build_step
from learner.model import PolicyModel
from learner.objective.core import Step, TokenLoss
from learner.objectives import Objectives, objectives_of
from learner.provision import logprobs_now
from learner.ranks import ALONE
from learner.step import learning_rate, make_optimizer, prepare, take_step
from shared.config import load_config
from shared.config.learner import LearnerConfig
from shared.types import Group
from tests import builders
from tests.learner import stale

CONFIG = LearnerConfig(learning_rate=1e-3, max_grad_norm=1e9)


def load(tiny_folder: Path) -> PolicyModel:
    return PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu"))


def stale_groups() -> list[Group]:
    """Behavior log-probs that are far from the tiny model's: an ESS well below 1."""
    return [builders.group(i) for i in range(3)]


def cut_into(groups: list[Group], micro_batch_tokens: int) -> StepBatch:
    return build_step(groups, batch_rewards(groups), "group_std", micro_batch_tokens)


def gradient(policy: PolicyModel, batch: StepBatch) -> torch.Tensor:
    """The step's gradient; the weights stay."""
    config = CONFIG.model_copy(update={"learning_rate": 0.0})
    optimizer = make_optimizer(policy, config)
    before = torch.cat([p.detach().flatten() for p in policy.named_parameters().values()])
    outcome = take_step(policy, optimizer, batch, objectives_of(config), config, 1)
    assert outcome.skipped == ""
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in policy.named_parameters().values()]))
    return torch.cat([p.grad.flatten() for p in policy.named_parameters().values() if p.grad is not None])


@pytest.mark.parametrize("micro_batch_tokens", [1, 20, 30])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gradient_does_not_depend_on_micro_batches(
    tiny_folder: Path, dtype: torch.dtype, tolerance: float, micro_batch_tokens: int
) -> None:
    policy = stale.load(tiny_folder, dtype)
    groups = stale_groups()
    whole, pieces = cut_into(groups, 10_000), cut_into(groups, micro_batch_tokens)
    assert len(whole.micro_batches) == 1
    assert len(pieces.micro_batches) > 2
    one, many = gradient(policy, whole), gradient(policy, pieces)
    assert one.norm() > 0
    assert ((one - many).norm() / one.norm()).item() < tolerance


def test_statistics_do_not_depend_on_micro_batches(tiny_folder: Path) -> None:
    policy = stale.load(tiny_folder, torch.float64)
    config = CONFIG.model_copy(update={"learning_rate": 0.0})
    seen = []
    for tokens in (10_000, 20):
        outcome = take_step(
            policy, make_optimizer(policy, config), cut_into(stale_groups(), tokens), objectives_of(config), config, 1
        )
        seen.append([outcome.loss, outcome.grad_norm, *asdict(outcome.statistics.summary()).values()])
    assert seen[0] == pytest.approx(seen[1], rel=1e-10)
    assert seen[0][4] < 0.9  # token ESS


@pytest.mark.parametrize("micro_batch_tokens", [20, 10_000])
def test_a_ratio_that_is_not_finite_skips_the_step(tiny_folder: Path, micro_batch_tokens: int) -> None:
    policy = load(tiny_folder)
    groups = stale_groups()
    first, *others = groups[0].trajectories
    broken = replace(first, behavior_logprobs=np.full(3, -np.inf, dtype=np.float32))
    groups[0] = replace(groups[0], trajectories=(broken, *others))
    before = policy.sequence_logprobs([[1, 2, 3]])
    optimizer = make_optimizer(policy, CONFIG)
    outcome = take_step(policy, optimizer, cut_into(groups, micro_batch_tokens), objectives_of(CONFIG), CONFIG, 1)
    assert "non-finite ESS" in outcome.skipped
    assert policy.sequence_logprobs([[1, 2, 3]]) == before
    assert all(p.grad is None for p in policy.named_parameters().values())
    assert not optimizer.state


def test_a_loss_that_is_not_finite_skips_the_step(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    groups = stale_groups()
    rewards = [np.array([0.0, 1e39, 0.0, 1.0]), *batch_rewards(groups)[1:]]
    batch = build_step(groups, rewards, "group_mean", 10_000)
    before = policy.sequence_logprobs([[1, 2, 3]])
    outcome = take_step(policy, make_optimizer(policy, CONFIG), batch, objectives_of(CONFIG), CONFIG, 1)
    assert "non-finite loss" in outcome.skipped
    assert policy.sequence_logprobs([[1, 2, 3]]) == before


def test_a_gradient_that_is_not_finite_skips_the_step(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    weight = policy.named_parameters()["model.norm.weight"]
    weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    before = policy.sequence_logprobs([[1, 2, 3]])
    outcome = take_step(
        policy, make_optimizer(policy, CONFIG), cut_into(stale_groups(), 10_000), objectives_of(CONFIG), CONFIG, 1
    )
    assert "non-finite gradient" in outcome.skipped
    assert policy.sequence_logprobs([[1, 2, 3]]) == before


def test_the_gradient_norm_is_clipped_and_reported_before_clipping(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    config = CONFIG.model_copy(update={"max_grad_norm": 1e-4, "learning_rate": 0.0})
    outcome = take_step(
        policy, make_optimizer(policy, config), cut_into(stale_groups(), 10_000), objectives_of(config), config, 1
    )
    clipped = torch.cat([p.grad.flatten() for p in policy.named_parameters().values() if p.grad is not None])
    assert outcome.grad_norm > 1e-3
    assert clipped.norm().item() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_schedules_rise_in_the_warm_up_and_then_follow_their_name(schedule: str, expected: list[float]) -> None:
    config = LearnerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2, steps=6)
    assert [learning_rate(config, step) for step in range(1, 7)] == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["{name: p3o, step_scale: sequence_ess}", "{name: vcpo}"])
def test_the_objectives_step_factor_is_a_factor_of_the_learning_rate(tiny_folder: Path, objective: str) -> None:
    config = load_config(None, [f"learner.objective={objective}", "learner.learning_rate=0.01"], {}).learner
    policy, objectives = PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu")), objectives_of(config)
    batch = cut_into(stale_groups(), 10_000)
    factor = float(prepare(policy, batch, objectives, {}, ALONE).token_loss.step_factor)
    assert 0 < factor < 0.99
    optimizer = make_optimizer(policy, config)
    outcome = take_step(policy, optimizer, batch, objectives, config, 1)
    assert optimizer.param_groups[0]["lr"] == outcome.learning_rate == pytest.approx(0.01 * factor, rel=1e-12)


def test_a_step_factor_that_is_not_finite_skips_the_step(tiny_folder: Path) -> None:
    policy, config = PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu")), CONFIG
    before = {name: weight.clone() for name, weight in policy.named_parameters().items()}
    honest = objectives_of(config).trained

    def function(step: Step) -> TokenLoss:
        return replace(honest(step), step_factor=torch.tensor(math.nan))

    broken = Objectives(replace(honest, function=function))
    outcome = take_step(policy, make_optimizer(policy, config), cut_into(stale_groups(), 10_000), broken, config, 1)
    assert "learning rate (nan)" in outcome.skipped
    assert all(torch.equal(before[name], weight) for name, weight in policy.named_parameters().items())


@pytest.mark.parametrize("micro_batch_tokens", [20, 10_000])
def test_fresh_data_has_a_ratio_of_exactly_one_in_both_passes(tiny_folder: Path, micro_batch_tokens: int) -> None:
    policy = load(tiny_folder)
    batch = cut_into(stale_groups(), micro_batch_tokens)
    now = logprobs_now(policy, batch).split([m.trained_tokens for m in batch.micro_batches])
    pieces = zip(batch.micro_batches, now, strict=True)
    fresh = replace(batch, micro_batches=tuple(replace(m, behavior_logprobs=values) for m, values in pieces))
    outcome = take_step(policy, make_optimizer(policy, CONFIG), fresh, objectives_of(CONFIG), CONFIG, 1)
    assert outcome.own.log_ratio.abs().max() == 0
    assert outcome.statistics.summary().token_ess == 1
    assert (outcome.prepass_s > 0) == (len(batch.micro_batches) > 1)


def test_adafactor_takes_steps_with_next_to_no_state_of_its_own(tiny_folder: Path) -> None:
    config = CONFIG.model_copy(update={"optimizer": "adafactor", "learning_rate": 0.01})
    policy, batch = load(tiny_folder), cut_into(stale_groups(), 10_000)
    before, optimizer = stale.weights_of(policy), make_optimizer(policy, config)
    for step in (1, 2):
        assert not take_step(policy, optimizer, batch, objectives_of(config), config, step).skipped
    assert 1e-3 < (stale.weights_of(policy) - before).norm() / before.norm() < 0.1
    weights = sum(p.numel() for p in policy.named_parameters().values())
    assert sum(v.numel() for state in optimizer.state.values() for v in state.values()) < 0.2 * weights

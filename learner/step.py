"""One optimizer step of P3O: the ratios of the whole step first, then the gradient, or a reason why not."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from learner.batch import MicroBatch, StepBatch
from learner.model import PolicyModel
from learner.objective import p3o
from learner.objective.statistics import RatioStatistics, ratio_statistics
from shared.config.models import LearnerConfig


@dataclass(frozen=True)
class StepOutcome:
    """What a step did. NaN where it was skipped before the number existed."""

    skipped: str  # '' or the reason why the weights did not change
    statistics: RatioStatistics
    floor_max_nats: float | None  # largest |log ratio| of the tokens that these very weights drew
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float


def make_optimizer(policy: PolicyModel, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW over every weight of the policy."""
    return torch.optim.AdamW(
        policy.named_parameters().values(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: LearnerConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (the first is 1)."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = min(1.0, (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * factor[config.schedule]


def take_step(
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    batch: StepBatch,
    config: LearnerConfig,
    step: int,
    drawn_by: int | None = None,
) -> StepOutcome:
    """Updates the policy, unless anything on the way is not finite: then the weights stay as they are.

    Args:
        policy: the weights to update.
        optimizer: over the policy's weights.
        batch: the step's groups.
        config: the learner's section.
        step: number of this step, from 1.
        drawn_by: the version that has exactly the policy's weights now, if any; tokens that it drew show the
            numerics floor.

    """
    started = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    micro_batches = [m.to(policy.device) for m in batch.micro_batches]
    log_ratio, kept = _log_ratios(policy, micro_batches)
    ess = p3o.prepare(log_ratio).ess
    sequence_of = torch.cat([m.sequence_of for m in micro_batches])
    statistics = ratio_statistics(log_ratio, sequence_of, len(batch.rewards))
    floor = _floor(log_ratio, batch, drawn_by)
    rate = learning_rate(config, step)

    def outcome(skipped: str, loss: float = math.nan, norm: float = math.nan) -> StepOutcome:
        if skipped:
            optimizer.zero_grad(set_to_none=True)
        return StepOutcome(skipped, statistics, floor, loss, norm, rate, time.monotonic() - started)

    if not torch.isfinite(ess):
        return outcome(f"non-finite ESS ({ess.item()})")
    loss = _backward(policy, micro_batches, kept, ess, batch.trained_tokens, config)
    if not math.isfinite(loss):
        return outcome(f"non-finite loss ({loss})", loss)
    norm = clip_grad_norm_(policy.named_parameters().values(), config.max_grad_norm).item()
    if not math.isfinite(norm):
        return outcome(f"non-finite gradient (norm {norm})", loss, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return outcome("", loss, norm)


def _log_ratios(policy: PolicyModel, micro_batches: list[MicroBatch]) -> tuple[Tensor, Tensor | None]:
    """Log ratios of the whole step, [n], and policy_logprobs with gradient where one pass serves both."""
    if len(micro_batches) == 1:
        logprobs = policy.logprobs(micro_batches[0])
        return (logprobs - micro_batches[0].behavior_logprobs).detach(), logprobs
    with torch.no_grad():
        return torch.cat([policy.logprobs(m) - m.behavior_logprobs for m in micro_batches]), None


def _backward(
    policy: PolicyModel,
    micro_batches: Iterable[MicroBatch],
    kept: Tensor | None,
    ess: Tensor,
    total_tokens: int,
    config: LearnerConfig,
) -> float:
    """Accumulates the gradient of the step's loss; returns the loss."""
    losses = []
    for m in micro_batches:
        logprobs = policy.logprobs(m) if kept is None else kept
        estimator = config.objective.kl_estimator
        loss = p3o.loss(logprobs, m.behavior_logprobs, m.advantages, ess, total_tokens, estimator)
        loss.backward()
        losses.append(loss.detach().double())
    return reduce(torch.add, losses).item()


def _floor(log_ratio: Tensor, batch: StepBatch, drawn_by: int | None) -> float | None:
    fresh = torch.from_numpy(batch.versions == drawn_by) if drawn_by is not None else None
    if fresh is None or not fresh.any():
        return None
    return log_ratio[fresh.to(log_ratio.device)].abs().max().item()

"""One optimizer step: log-probs of the whole step, the objective, the gradient; or a reason why not."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from learner.batch import MicroBatch, StepBatch
from learner.model import PolicyModel
from learner.objective.core import Step, TokenLoss, piece_loss
from learner.objective.statistics import RatioStatistics, ratio_statistics
from learner.objectives import objective_of
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
    proximal_logprobs: Tensor | None = None,
) -> StepOutcome:
    """Updates the policy, unless anything on the way is not finite: then the weights stay as they are.

    Args:
        policy: the weights to update.
        optimizer: over the policy's weights.
        batch: the step's groups.
        config: the learner's section; its objective is what is minimized.
        step: number of this step, from 1.
        drawn_by: the version that has exactly the policy's weights now, if any; tokens that it drew show the
            numerics floor.
        proximal_logprobs: [n], of the policy before the batch's first step, for objectives that need them.

    """
    started = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    micro_batches = [m.to(policy.device) for m in batch.micro_batches]
    logprobs, kept = _step_logprobs(policy, micro_batches)
    tokens = step_tokens(batch, micro_batches, logprobs, proximal_logprobs)
    statistics = ratio_statistics(tokens.log_ratio, tokens.sequence_of, tokens.sequences)
    floor = _floor(tokens.log_ratio, batch, drawn_by)
    token_loss = objective_of(config)(tokens)
    rate = learning_rate(config, step) * float(token_loss.step_factor)

    def outcome(skipped: str, loss: float = math.nan, norm: float = math.nan) -> StepOutcome:
        if skipped:
            optimizer.zero_grad(set_to_none=True)
        return StepOutcome(skipped, statistics, floor, loss, norm, rate, time.monotonic() - started)

    if not torch.isfinite(statistics.token_ess):
        return outcome(f"non-finite ESS ({statistics.token_ess.item()})")
    loss = token_loss.loss.item()
    if not math.isfinite(loss) or not math.isfinite(rate):
        return outcome(f"non-finite loss ({loss}) or learning rate ({rate})", loss)
    _backward(policy, micro_batches, kept, token_loss)
    norm = clip_grad_norm_(policy.named_parameters().values(), config.max_grad_norm).item()
    if not math.isfinite(norm):
        return outcome(f"non-finite gradient (norm {norm})", loss, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return outcome("", loss, norm)


def step_tokens(
    batch: StepBatch,
    micro_batches: Sequence[MicroBatch],
    policy_logprobs: Tensor,
    proximal_logprobs: Tensor | None = None,
) -> Step:
    """What an objective sees: all trained tokens of the step, in the order of the micro-batches."""
    device = policy_logprobs.device
    sizes = torch.tensor([m.trained_tokens for m in micro_batches], device=device)
    return Step(
        policy_logprobs=policy_logprobs,
        behavior_logprobs=torch.cat([m.behavior_logprobs for m in micro_batches]),
        advantages=torch.cat([m.advantages for m in micro_batches]),
        sequence_of=torch.cat([m.sequence_of for m in micro_batches]),
        group_of=batch.group_of.to(device),
        rewards=torch.from_numpy(batch.rewards).to(device),
        micro_batch_of=torch.arange(len(micro_batches), device=device).repeat_interleave(sizes),
        proximal_logprobs=proximal_logprobs,
    )


@torch.no_grad()
def logprobs_now(policy: PolicyModel, batch: StepBatch) -> Tensor:
    """The step's log-probs under the policy's present weights, [n], without gradient."""
    return torch.cat([policy.logprobs(m.to(policy.device)) for m in batch.micro_batches])


def _step_logprobs(policy: PolicyModel, micro_batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor | None]:
    """policy_logprobs of the whole step, [n], and the same with gradient where one pass serves both."""
    if len(micro_batches) == 1:
        logprobs = policy.logprobs(micro_batches[0])
        return logprobs.detach(), logprobs
    with torch.no_grad():
        return torch.cat([policy.logprobs(m) for m in micro_batches]), None


def _backward(
    policy: PolicyModel, micro_batches: Sequence[MicroBatch], kept: Tensor | None, token_loss: TokenLoss
) -> None:
    """Accumulates the gradient of the step's loss."""
    start = 0
    for m in micro_batches:
        logprobs = policy.logprobs(m) if kept is None else kept
        piece_loss(token_loss, slice(start, start + m.trained_tokens), logprobs).backward()
        start += m.trained_tokens


def _floor(log_ratio: Tensor, batch: StepBatch, drawn_by: int | None) -> float | None:
    fresh = torch.from_numpy(batch.versions == drawn_by) if drawn_by is not None else None
    if fresh is None or not fresh.any():
        return None
    return log_ratio[fresh.to(log_ratio.device)].abs().max().item()

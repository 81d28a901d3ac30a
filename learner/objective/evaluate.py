"""One call for notebooks and other people's trainers: any objective on padded tensors, [B, T]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.objective.core import Step, TokenLoss, piece_loss
from learner.objective.registry import build
from learner.objective.statistics import RatioStatistics, step_statistics


@dataclass(frozen=True)
class Evaluation:
    """What an objective says of a step."""

    loss: Tensor  # [], differentiable in policy_logprobs; the objective's own aggregation
    token_ess: Tensor  # [], float64
    sequence_ess: Tensor  # [], float64
    statistics: RatioStatistics
    token_loss: TokenLoss  # of the trained tokens, row by row


def evaluate(
    name: str,
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    rewards: Tensor | None = None,
    group_of: Tensor | None = None,
    proximal_logprobs: Tensor | None = None,
    preceding_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    expert: Tensor | None = None,
    replayed: Tensor | None = None,
    **knobs: Any,
) -> Evaluation:
    """Evaluates an objective on a whole optimizer step.

    Args:
        name: of the objective, or one of its aliases.
        policy_logprobs: [B, T], nats, with gradient; positions outside the mask may hold anything.
        behavior_logprobs: [B, T], nats.
        advantages: [B, T], or [B] for one a completion.
        loss_mask: [B, T], bool; True = trained token.
        rewards: [B], for objectives that look at them; default: each completion's mean advantage.
        group_of: [B], int64, for objectives that look at groups; default: all of one group.
        proximal_logprobs: [B, T], where the objective needs them.
        preceding_logprobs: [B, T], likewise.
        ref_logprobs: [B, T], likewise.
        entropy: [B, T], nats, with gradient, likewise.
        expert: [B, T], bool, likewise.
        replayed: [B, T], bool, likewise.
        **knobs: of the objective.

    Raises:
        ValueError: shapes that do not fit, no trained token, an unknown objective or knob, a missing need.

    """
    objective = build(name, knobs)
    shape = policy_logprobs.shape
    if policy_logprobs.dim() != 2 or behavior_logprobs.shape != shape or loss_mask.shape != shape:
        raise ValueError("policy_logprobs, behavior_logprobs and loss_mask must have one shape, [B, T]")
    if not loss_mask.any():
        raise ValueError("loss_mask has no trained token")
    per_token = advantages if advantages.dim() == 2 else advantages[:, None].expand(shape)
    if per_token.shape != shape:
        raise ValueError(f"advantages must be [B, T] or [B], not {tuple(advantages.shape)}")

    def flat(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[loss_mask].detach()

    trained = policy_logprobs[loss_mask]
    sequence_of = loss_mask.nonzero()[:, 0]
    batch = shape[0]
    if rewards is None:
        counts = loss_mask.sum(1).clamp(min=1)
        rewards = torch.where(loss_mask, per_token, 0).sum(1).detach() / counts
    step = Step(
        policy_logprobs=trained.detach(),
        behavior_logprobs=behavior_logprobs[loss_mask].detach(),
        advantages=per_token[loss_mask].detach(),
        sequence_of=sequence_of,
        group_of=torch.zeros_like(sequence_of[:1]).expand(batch) if group_of is None else group_of,
        rewards=rewards,
        micro_batch_of=torch.zeros_like(sequence_of),
        proximal_logprobs=flat(proximal_logprobs),
        preceding_logprobs=flat(preceding_logprobs),
        ref_logprobs=flat(ref_logprobs),
        entropy=flat(entropy),
        expert=flat(expert),
        replayed=flat(replayed),
    )
    token_loss = objective(step)
    statistics = step_statistics(step, token_loss)
    trained_entropy = None if entropy is None else entropy[loss_mask]
    loss = piece_loss(token_loss, slice(None), trained, trained_entropy)
    return Evaluation(loss, statistics.token_ess, statistics.sequence_ess, statistics, token_loss)

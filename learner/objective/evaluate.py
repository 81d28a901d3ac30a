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
        loss_mask: [B, T], bool, or 0 and 1 of any dtype; True = trained token. A row may have none.
        rewards: [B], for objectives that look at them, taken in the log-probs' dtype; default: each completion's mean
            advantage.
        group_of: [B], for objectives that look at groups: any integers, equal for completions of one group; default:
            all of one group.
        proximal_logprobs: [B, T], where the objective needs them.
        preceding_logprobs: [B, T], likewise.
        ref_logprobs: [B, T], likewise.
        entropy: [B, T], nats, with gradient, likewise.
        expert: [B, T], like loss_mask, likewise.
        replayed: [B, T], like loss_mask, likewise.
        **knobs: of the objective.

    Raises:
        ValueError: shapes that do not fit, a mask of other numbers than 0 and 1, groups that are no integers, no
            trained token, an unknown objective or knob, a missing need.

    """
    objective = build(name, knobs)
    shape = policy_logprobs.shape
    if policy_logprobs.dim() != 2:
        raise ValueError(f"policy_logprobs must be [B, T], not {list(shape)}")
    mask = _mask("loss_mask", _shaped("loss_mask", loss_mask, shape))
    if not mask.any():
        raise ValueError("loss_mask has no trained token")
    if advantages.dim() == 1:
        advantages = _shaped("advantages", advantages, shape[:1])[:, None].expand(shape)
    per_token = _shaped("advantages", advantages, shape).to(policy_logprobs.dtype)

    def flat(name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else _shaped(name, values, shape)[mask].detach()

    def flags(name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else _mask(name, _shaped(name, values, shape)[mask])

    trained = policy_logprobs[mask]
    sequence_of = mask.nonzero()[:, 0]
    if rewards is None:
        rewards = torch.where(mask, per_token, 0).sum(1) / mask.sum(1).clamp(min=1)
    step = Step(
        policy_logprobs=trained.detach(),
        behavior_logprobs=_shaped("behavior_logprobs", behavior_logprobs, shape)[mask].detach(),
        advantages=per_token[mask].detach(),
        sequence_of=sequence_of,
        group_of=_groups(group_of, mask),
        rewards=_shaped("rewards", rewards, shape[:1]).detach().to(trained.dtype),
        micro_batch_of=torch.zeros_like(sequence_of),
        proximal_logprobs=flat("proximal_logprobs", proximal_logprobs),
        preceding_logprobs=flat("preceding_logprobs", preceding_logprobs),
        ref_logprobs=flat("ref_logprobs", ref_logprobs),
        entropy=flat("entropy", entropy),
        expert=flags("expert", expert),
        replayed=flags("replayed", replayed),
    )
    token_loss = objective(step)
    statistics = step_statistics(step, token_loss)
    trained_entropy = None if entropy is None else entropy[mask]
    loss = piece_loss(token_loss, slice(None), trained, trained_entropy)
    return Evaluation(loss, statistics.token_ess, statistics.sequence_ess, statistics, token_loss)


def _shaped(name: str, values: Tensor, shape: torch.Size) -> Tensor:
    """The values. Raises ValueError where they have another shape."""
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(values.shape)}")
    return values


def _mask(name: str, values: Tensor) -> Tensor:
    """As bool. Raises ValueError where there is anything but 0 and 1."""
    if values.dtype != torch.bool and not ((values == 0) | (values == 1)).all():
        raise ValueError(f"{name} must be bool, or 0 and 1 alone")
    return values.bool()


def _groups(group_of: Tensor | None, mask: Tensor) -> Tensor:
    """The group of each row, numbered from 0: [B], int64."""
    if group_of is None:
        return torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    if group_of.is_floating_point() or group_of.is_complex() or group_of.dtype == torch.bool:
        raise ValueError(f"group_of must be integers, not {group_of.dtype}")
    numbers: Tensor = _shaped("group_of", group_of, mask.shape[:1]).unique(return_inverse=True)[1]
    return numbers

"""What every objective is: a pure function from an optimizer step's tokens to each token's share of the loss.

    Step (log-probs of the whole step, no gradient) --objective--> TokenLoss (value and slope of every token)
    loss of a piece = sum_t value_t + slope_t (policy_logprobs_t - sg(policy_logprobs_t))

The slope is the derivative of the whole step's loss with respect to the token's log-prob (and, where the loss has
the entropy of the policy in it, a second one with respect to that), statistics of the step
(ESS, quantiles, sequence ratios) included as the objective defines their gradient. So the backward pass knows
nothing of the objective, the pieces of a step add up exactly however it is cut or spread over ranks, and what
another objective would have done on the same tokens costs no pass of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

OF_COMPLETIONS = ("group_of", "rewards")
"""The fields of a step that are [B]; the others are [n]."""


@dataclass(frozen=True)
class Step:
    """All n trained tokens of one optimizer step, over every micro-batch and rank; B completions. No gradient."""

    policy_logprobs: Tensor  # [n], nats, at the temperature that the tokens were drawn at
    behavior_logprobs: Tensor  # [n], nats, of the distribution that was sampled
    advantages: Tensor  # [n]
    sequence_of: Tensor  # [n], int64, completion of each token, in [0, B); tokens of one stand in order
    group_of: Tensor  # [B], int64, group of each completion
    rewards: Tensor  # [B]
    micro_batch_of: Tensor | None = None  # [n], int64; for scopes smaller than the step
    proximal_logprobs: Tensor | None = None  # [n], nats, of the policy before this batch's first step
    preceding_logprobs: Tensor | None = None  # [n], nats, of the policy before the batch before this one
    ref_logprobs: Tensor | None = None  # [n], nats, of a frozen reference policy
    entropy: Tensor | None = None  # [n], nats, of the policy's distribution that the token was drawn from
    expert: Tensor | None = None  # [n], bool: written by an expert, not drawn by the behavior policy
    replayed: Tensor | None = None  # [n], bool: trained on before

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.policy_logprobs)

    @property
    def sequences(self) -> int:
        """B."""
        return len(self.rewards)

    @property
    def log_ratio(self) -> Tensor:
        """Policy - behavior, [n], nats."""
        return self.policy_logprobs - self.behavior_logprobs

    def drawn(self) -> Step:
        """Without what an expert wrote: its tokens were drawn from no policy, so they have no ratio."""
        if self.expert is None:
            return self
        token = ~self.expert
        by_expert = torch.zeros(self.sequences, dtype=torch.bool, device=token.device)
        completion = ~by_expert.index_fill(0, self.sequence_of[self.expert], True)
        kept = {
            name: values[completion if name in OF_COMPLETIONS else token]
            for name, values in vars(self).items()
            if values is not None
        }
        number = completion.cumsum(0) - 1
        return dataclasses.replace(self, **kept | {"sequence_of": number[kept["sequence_of"]]})

    @property
    def tokens_of(self) -> Tensor:
        """Trained tokens of each completion, [B], in the dtype of the log-probs."""
        ones = torch.ones_like(self.policy_logprobs)
        return self.policy_logprobs.new_zeros(self.sequences).index_add(0, self.sequence_of, ones)


@dataclass(frozen=True)
class TokenLoss:
    """Each token's share of the step's loss."""

    value: Tensor  # [n]; the loss is its sum
    slope: Tensor  # [n], d loss / d policy_logprobs
    weight: Tensor  # [n], what multiplies advantage * grad log policy in the score term, before aggregation
    cut: Tensor  # [n], bool: clipped, capped or masked
    entropy_slope: Tensor | None = None  # [n], d loss / d entropy; None where the loss has no entropy in it
    step_factor: Tensor | float = 1.0  # [] multiplies the learning rate of this step
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # [] each, the objective's own; see `pulled`

    @property
    def loss(self) -> Tensor:
        """The step's loss, []."""
        return self.value.sum()


def piece_loss(
    token_loss: TokenLoss, tokens: slice | Tensor, policy_logprobs: Tensor, entropy: Tensor | None = None
) -> Tensor:
    """The loss of some of the step's tokens, with gradient; pieces add up to the step's loss.

    Args:
        token_loss: of the whole step.
        tokens: which of the step's tokens these are.
        policy_logprobs: [N] theirs, with gradient.
        entropy: [N] theirs, with gradient; where the loss has entropy in it.

    """
    value = token_loss.value[tokens].to(policy_logprobs.dtype)
    loss = value + _carries(token_loss.slope[tokens], policy_logprobs)
    if token_loss.entropy_slope is not None and entropy is not None:
        loss = loss + _carries(token_loss.entropy_slope[tokens], entropy)
    return loss.sum()


def _carries(slope: Tensor, of: Tensor) -> Tensor:
    """Zero, with the gradient slope * grad of."""
    return slope.to(of.dtype) * (of - of.detach())


def pulled(token_weights: Tensor, pull: Tensor, kl: Tensor) -> dict[str, Tensor]:
    """What an objective says of its pull to another policy: mean weight of the KL, and its part of the loss, [] each.

    Args:
        token_weights: [n], of the aggregation.
        pull: [] or [n], what multiplies the KL.
        kl: [n], nats.

    """
    return {"kl_weight": pull.mean(), "kl_loss": (token_weights * pull * kl).sum()}


def sequence_sum(values: Tensor, step: Step) -> Tensor:
    """Sum over the trained tokens of each completion: [n] -> [B]."""
    return values.new_zeros(step.sequences).index_add(0, step.sequence_of, values)


@dataclass(frozen=True)
class Bounds:
    """Between which a knob's value must lie, both ends allowed."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


def needs(*fields: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Callable[[F], F]:
    """Declares that an objective needs these optional fields of Step, always or for some values of its knobs.

    `when` is asked with every knob of the objective, those that are not given at their defaults.
    """

    def declare(function: F) -> F:
        earlier = getattr(function, "_needs", ())
        function._needs = (*earlier, (fields, when))  # type: ignore[attr-defined]
        return function

    return declare


def needs_of(function: Callable[..., Any], knobs: Mapping[str, Any]) -> frozenset[str]:
    """The optional fields of Step that an objective needs with these knobs, the others at their defaults."""
    declared = getattr(function, "_needs", ())
    parameters = inspect.signature(function).parameters.values()
    set_to = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(knobs)
    return frozenset(name for fields, when in declared if when is None or when(set_to) for name in fields)

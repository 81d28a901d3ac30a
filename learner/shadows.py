"""Shadow objectives: what others would have done with the very tokens that are trained on.

Loss and weights come from the same log-probs; on request their gradients, from the same forward pass, are compared
with the one taken. A comparison costs one more backward pass and one more copy of the gradient for each shadow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.core import TokenLoss, piece_loss
from learner.objective.ess import weight_sums
from learner.objective.registry import Objective
from learner.ranks import Ranks


@dataclass(frozen=True)
class ShadowOutcome:
    """What one objective would have done with a step."""

    objective: str  # its name, with the knobs that were set
    loss: float
    cut_share: float  # of tokens: clipped, capped or masked
    zero_weight_share: float  # of tokens: no score term at all
    weight_mean: float  # of what multiplies advantage * grad log policy
    weight_p1: float
    weight_p50: float
    weight_p99: float
    weight_max: float
    weight_ess: float  # normalized effective sample size of the weights, in [1/n, 1]; NaN if all are zero
    step_factor: float  # of the learning rate
    cosine: float | None  # between its gradient and the one taken; None where they were not compared


def shadow_outcome(
    objective: Objective, token_loss: TokenLoss, cosine: float | None, expert: Tensor | None = None
) -> ShadowOutcome:
    """Sums up what an objective says of a step; shares and weights are of the n >= 1 tokens that no expert wrote."""
    own = slice(None) if expert is None else ~expert
    weight, cut = token_loss.weight[own].double(), token_loss.cut[own]
    ordered = weight.sort().values
    return ShadowOutcome(
        objective=objective.label,
        loss=token_loss.loss.item(),
        cut_share=cut.double().mean().item(),
        zero_weight_share=(weight == 0).double().mean().item(),
        weight_mean=weight.mean().item(),
        weight_p1=_quantile(ordered, 0.01),
        weight_p50=_quantile(ordered, 0.5),
        weight_p99=_quantile(ordered, 0.99),
        weight_max=ordered[-1].item(),
        weight_ess=weight_sums(weight.abs().log()).ess.item(),
        step_factor=float(token_loss.step_factor),
        cosine=cosine,
    )


def _quantile(ordered: Tensor, q: float) -> float:
    """The value with this share of the others at or below it."""
    return ordered[round(q * (len(ordered) - 1))].item()


class GradientComparison:
    """Gathers the gradients of several objectives from the passes that one of them makes."""

    def __init__(self, token_losses: Sequence[TokenLoss], parameters: Sequence[Tensor]) -> None:
        self._token_losses = token_losses
        self._parameters = parameters
        self._gradients = [[torch.zeros_like(p) for p in parameters] for _ in token_losses]

    def add(self, tokens: slice, logprobs: Tensor, entropy: Tensor | None) -> None:
        """Adds the gradients of some of the step's tokens; the graph stays for the pass of the objective itself."""
        for token_loss, gradients in zip(self._token_losses, self._gradients, strict=True):
            loss = piece_loss(token_loss, tokens, logprobs, entropy)
            pieces = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
            for gradient, piece in zip(gradients, pieces, strict=True):
                if piece is not None:
                    gradient.add_(piece)

    def norms(self) -> list[float]:
        """Of each, on this rank."""
        return [_dot(gradients, gradients).sqrt().item() for gradients in self._gradients]

    def cosines(self, ranks: Ranks) -> list[float]:
        """Of each with the gradient that the parameters hold, summed over the ranks; NaN where one of them is zero."""
        taken = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        for gradients in self._gradients:
            ranks.sum(gradients)
        norm = _dot(taken, taken).sqrt()
        return [(_dot(g, taken) / (_dot(g, g).sqrt() * norm)).item() for g in self._gradients]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Summed in float64, without a copy of either in float64: a gradient is as large as the model."""
    return torch.stack([(u * v).sum(dtype=torch.float64) for u, v in zip(a, b, strict=True)]).sum()

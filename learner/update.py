"""How far the optimizer has just moved the weights, from its own state: no copy of the weights is kept for it.

    AdamW    p' = (1 - rate decay) p - rate m,  m = (exp_avg / c1) / (sqrt(exp_avg_sq / c2) + eps),  ci = 1 - beta_i^t
    so       p' - p = -rate (m + decay p),  p = (p' + rate m) / (1 - rate decay)

Source: Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECE = 2**24  # weights that are looked at at once


@torch.no_grad()
def update_norm(optimizer: torch.optim.Optimizer) -> float | None:
    """L2 norm of the last step's change of every weight, without the weights' own rounding; None: not AdamW's."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return None
    squares = [
        _change(group, optimizer.state[p]["step"].double(), *pieces).square().sum(dtype=torch.float64)
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
        for pieces in zip(*map(_pieces, (p, *_moments(optimizer.state[p]))), strict=True)
    ]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0


def _moments(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return state["exp_avg"], state["exp_avg_sq"]


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = tensor.detach().reshape(-1).split(PIECE)
    return pieces


def _change(group: dict[str, Any], steps: Tensor, now: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """Minus the change of these weights; `steps` is [], float64."""
    rate, decay, eps, (beta_1, beta_2) = group["lr"], group["weight_decay"], group["eps"], group["betas"]
    moved: Tensor = mean / (1 - beta_1**steps) / ((square / (1 - beta_2**steps)).sqrt() + eps)
    if decay:
        moved = moved + decay * (now + rate * moved) / (1 - rate * decay)
    change: Tensor = rate * moved
    return change

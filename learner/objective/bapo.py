"""BAPO: PPO's clip with bounds that move, every step, until positive tokens carry their share of the loss.

    pull_t = behavior_t |min(ratio_t A_t, clip(ratio_t, c_low, c_high) A_t)|       behavior_t = exp(behavior_logprobs_t)
    share  = sum_{A_t > 0} pull_t / sum_t pull_t
    loss   = -mean_t min(ratio_t A_t, clip(ratio_t, c_low, c_high) A_t)

The search starts at (low_start, high_start) and raises c_high by high_step up to high_end, and only then c_low by
low_step up to low_end, until share >= target_share. It carries no gradient. As written (in the paper and in its code) a
negative token below c_low still counts, with c_low |A_t|: raising c_low takes its gradient but never raises the share,
so c_low ends where it starts or, where c_high did not suffice, at low_end. Raising c_high never lowers the share, since
only positive tokens' pulls grow with it: its first step that balances is found by halving, whatever the steps' number.

Source: Xi et al., "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with
Adaptive Clipping", arXiv 2510.18927, its condition on the share and algorithm 1; target .4, ranges [.6, .9] and
[1.2, 3], steps .02 and .05. The public code differs: it leaves the factor behavior_t out, raises c_low first, asks
for a share of one half, and adds a dual clip at 3. An advantage of zero pulls nowhere; with no pull at all the bounds
stay where they start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import aggregated, clipped_surrogate


def bapo(
    step: Step,
    *,
    target_share: Annotated[float, Bounds(0, 1)] = 0.4,
    low_start: Annotated[float, Bounds(0, 1)] = 0.6,
    low_end: Annotated[float, Bounds(0, 1)] = 0.9,
    low_step: Annotated[float, Bounds(0.001, 1)] = 0.02,
    high_start: Annotated[float, Bounds(1, 1000)] = 1.2,
    high_end: Annotated[float, Bounds(1, 1000)] = 3.0,
    high_step: Annotated[float, Bounds(0.001, 1000)] = 0.05,
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The BAPO loss of a step.

    Args:
        step: the step's tokens.
        target_share: the share of the loss that tokens with a positive advantage should carry.
        low_start: c_low before the search, a ratio.
        low_end: the highest c_low that the search may take.
        low_step: by how much c_low rises at a time.
        high_start: c_high before the search, a ratio.
        high_end: the highest c_high that the search may take.
        high_step: by how much c_high rises at a time.
        aggregation: how tokens are averaged.

    Raises:
        ValueError: unknown aggregation.

    """
    moves = _moves(high_start, high_end, high_step)

    def balanced_after(k: Tensor) -> Tensor:
        return _is_balanced(step, low_start, high_start + k.double() * high_step, target_share)

    taken = _first(moves + 1, balanced_after, step.policy_logprobs.device)
    high = high_start + taken.clamp(max=moves).double() * high_step
    low = low_start + (taken > moves).double() * (_moves(low_start, low_end, low_step) * low_step)
    surrogate = clipped_surrogate(step.log_ratio, step.advantages, 1 - low, high - 1)
    statistics = {"clip_low": low, "clip_high": high}
    return replace(aggregated(surrogate, token_weights(step, aggregation)), statistics=statistics)


def _moves(start: float, end: float, step: float) -> int:
    """How often a bound may move."""
    return max(0, math.floor((end - start) / step + 1e-9))


def _first(count: int, holds: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """The first of 0..count-1 from which on it holds, count if of none: [], int64. Nothing waits for the device."""
    start = torch.zeros((), dtype=torch.int64, device=device)
    end = start + count
    for _ in range(count.bit_length()):
        middle = (start + end) // 2
        held = holds(middle)
        start, end = torch.where(held, start, middle + 1), torch.where(held, middle, end)
    return end


def _is_balanced(step: Step, low: float, high: Tensor, target: float) -> Tensor:
    """Whether positive tokens carry the target share under these bounds: [], bool."""
    surrogate = clipped_surrogate(step.log_ratio, step.advantages, 1 - low, high - 1).value
    pull = step.behavior_logprobs.double().exp() * surrogate.double().abs()
    return torch.where(step.advantages > 0, pull, 0.0).sum() >= target * pull.sum()

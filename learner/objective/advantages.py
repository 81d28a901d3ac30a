"""Advantages from the rewards of a group: every completion against the others of its prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["group_std", "group_mean", "leave_one_out"]

STD_EPSILON = 1e-8


def group_advantages(rewards: Tensor, group_of: Tensor, normalization: Normalization = "group_std") -> Tensor:
    """The advantage of each trajectory.

        group_std      (r - mean) / (std + 1e-8), std with n - 1     DeepSeekMath, arXiv 2402.03300, eq. 4.1.2
        group_mean     r - mean                                      Dr. GRPO, arXiv 2503.20783
        leave_one_out  r - mean of the others                        RLOO, arXiv 2402.14740

    A group of one, or of equal rewards, carries no signal: exactly 0. In a group with a reward that is not finite all
    are NaN.

    Args:
        rewards: [B].
        group_of: [B], int64, 0..groups-1.
        normalization: which of the three.

    Returns:
        [B], dtype of rewards.

    Raises:
        ValueError: unknown normalization.
    """
    groups = int(group_of.max()) + 1 if group_of.numel() else 0
    r = torch.where(rewards.isfinite(), rewards, torch.nan).double()
    size = torch.zeros(groups, dtype=r.dtype, device=r.device).index_add(0, group_of, torch.ones_like(r))
    mean = torch.zeros_like(size).index_add(0, group_of, r) / size
    centered = r - mean[group_of]
    n = size[group_of]
    if normalization == "group_std":
        variance = torch.zeros_like(size).index_add(0, group_of, centered**2) / (size - 1).clamp(min=1)
        advantages = centered / (variance.sqrt()[group_of] + STD_EPSILON)
    elif normalization == "group_mean":
        advantages = centered
    elif normalization == "leave_one_out":
        advantages = centered * n / (n - 1).clamp(min=1)
    else:
        raise ValueError(f"advantage {normalization!r} is none of 'group_std', 'group_mean', 'leave_one_out'")
    return torch.where(has_signal(rewards, group_of)[group_of], advantages, 0.0).to(rewards.dtype)


def has_signal(rewards: Tensor, group_of: Tensor) -> Tensor:
    """Which groups have unequal rewards, or one that is not finite: [groups], bool."""
    groups = int(group_of.max()) + 1 if group_of.numel() else 0
    low = torch.full((groups,), torch.inf, dtype=rewards.dtype, device=rewards.device)
    high = torch.full_like(low, -torch.inf)
    low = low.scatter_reduce(0, group_of, rewards, "amin")
    high = high.scatter_reduce(0, group_of, rewards, "amax")
    return (high > low) | is_broken(rewards, group_of)


def is_broken(rewards: Tensor, group_of: Tensor) -> Tensor:
    """Which groups have a reward that is not finite: [groups], bool."""
    groups = int(group_of.max()) + 1 if group_of.numel() else 0
    broken = (~rewards.isfinite()).long()
    return torch.zeros(groups, dtype=broken.dtype, device=broken.device).index_add(0, group_of, broken) > 0

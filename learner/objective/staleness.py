"""Staleness in buckets by powers of two: 0, 1, 2, 3-4, 5-8, 9-16 and on, versions."""

from __future__ import annotations

import torch
from torch import Tensor


def staleness_bucket(staleness: Tensor) -> Tensor:
    """The bucket of each staleness: 0, 1, 2, 3-4, 5-8, 9-16 and on by powers of two; what is below 0 counts as 0.

    Args:
        staleness: [n], int64, versions.

    Returns:
        [n], int64; a name for each from `bucket_name`.
    """
    most = torch.tensor([0, *(1 << k for k in range(62))], device=staleness.device)
    return torch.bucketize(staleness, most)


def bucket_name(bucket: int) -> str:
    """The stalenesses of a bucket, versions: '0', '1', '2', '3-4', '5-8' and on."""
    if bucket < 3:
        return str(bucket)
    return f"{(1 << (bucket - 2)) + 1}-{1 << (bucket - 1)}"

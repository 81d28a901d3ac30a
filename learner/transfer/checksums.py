"""A checksum of a tensor's bytes that is taken where the tensor is: no copy to the host, a pass over the memory.

    words of 4 bytes w_i, blocks b of 2^20 of them:  c_b = sum_i w_i (2i + 1),  c = (... (c_0 K + c_1) K + ...) + bytes

all modulo 2^64. A word that differs changes it for certain (2i + 1 and K are odd), so do tensors exchanged and
tensors cut off, but for accidents. It is no protection against intent. A rollout server computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**20  # words
K = 0x9E3779B97F4A7C15
_MODULUS = 2**64


@torch.no_grad()
def tensor_checksum(tensor: Tensor) -> int:
    """The checksum of a tensor of any shape and dtype, in [0, 2^64)."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if not (total := flat.numel()):
        return 0
    if total % 4:
        flat = torch.nn.functional.pad(flat, (0, 4 - total % 4))
    words = flat.view(torch.int32)
    odd = torch.arange(1, 2 * min(BLOCK, len(words)), 2, dtype=torch.int64, device=flat.device)
    sums = [(block.to(torch.int64) * odd[: len(block)]).sum() for block in words.split(BLOCK)]
    found = 0
    for part in torch.stack(sums).tolist():
        found = (found * K + part) % _MODULUS
    return (found + total) % _MODULUS

"""Weights of 8 bits: what a quantized engine would compute with, kept in the precision that it computes in."""

from __future__ import annotations

import torch

LEVELS = 127


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    """True for the matrices that an 8-bit engine quantizes: all but embedding and output layer."""
    return tensor.dim() == 2 and name.endswith("_proj.weight")


def to_int8(weight: torch.Tensor) -> torch.Tensor:
    """Each output row rounded to 255 levels, symmetric around 0: [out, in] in, the same shape and dtype out."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / LEVELS
    rounded = torch.round(weight.float() / torch.where(scale > 0, scale, 1.0)) * scale
    return rounded.to(weight.dtype)

"""DAPO's soft overlong punishment: a reward for length, before any advantage is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """What to add to the reward of each completion, so that too long is worse the longer it is.

        0                                        length <= max_length - buffer
        (max_length - buffer - length) / buffer  up to max_length
        -1                                       above

    It is used on the rewards, not in a loss: `group_advantages(rewards + overlong_penalty(lengths, ...), group_of)`.
    A completion's length is of all its tokens, trained or not. The paper has max_length 20480 and buffer 4096.

    Source: DAPO, arXiv 2503.14476, section 3.4, eq. 13.

    Args:
        lengths: [B], tokens.
        max_length: tokens at which the penalty is full.
        buffer: tokens before max_length over which it grows.

    Returns:
        [B], in [-1, 0]; dtype of lengths if floating, else torch's default.

    Raises:
        ValueError: buffer outside (0, max_length].

    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must be in (0, max_length = {max_length}], not {buffer}")
    tokens = lengths if lengths.is_floating_point() else lengths.to(torch.get_default_dtype())
    return ((max_length - buffer - tokens) / buffer).clamp(-1, 0)

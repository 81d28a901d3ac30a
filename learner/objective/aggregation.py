"""How the losses of tokens become the loss of a step: a weight for every token, [n].

token_mean      1 / n                   every token alike
sequence_mean   1 / (B |o_i|)           every completion alike, however long it is
sequence_sum    1 / B                   every completion counts with the sum of its tokens: long ones weigh more
fixed_length    1 / (B L)               every token alike, whatever the batch's lengths: no length bias
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.objective.core import Step

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


def token_mean(step: Step) -> Tensor:
    """1 / n. Source: DAPO, arXiv 2503.14476, eq. 12 (token-level loss)."""
    return torch.full_like(step.policy_logprobs, 1 / max(1, step.tokens))


def sequence_mean(step: Step) -> Tensor:
    """1 / (B |o_i|), over completions with trained tokens. Source: GRPO, arXiv 2402.03300, eq. 3."""
    size = step.tokens_of
    return (1 / (size * (size > 0).sum()))[step.sequence_of]


def fixed_length(step: Step, length: float) -> Tensor:
    """1 / (B L) with a constant L. Source: Dr. GRPO, arXiv 2503.20783, section 3.2."""
    return torch.full_like(step.policy_logprobs, 1 / (max(1, step.sequences) * length))


def token_weights(step: Step, aggregation: Aggregation) -> Tensor:
    """The weights of the named aggregation. Raises ValueError for an unknown name."""
    if aggregation == "token_mean":
        return token_mean(step)
    if aggregation == "sequence_mean":
        return sequence_mean(step)
    if aggregation == "sequence_sum":
        return fixed_length(step, 1)
    raise ValueError(f"aggregation {aggregation!r} is none of 'token_mean', 'sequence_mean', 'sequence_sum'")

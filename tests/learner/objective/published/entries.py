"""What a derivation states, and the two small batches that all of them are about. numpy only, nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Probabilities, not their logs, of the n tokens that were drawn from the behavior policy; B completions."""

    behavior: Numbers  # [n]
    policy: Numbers  # [n]
    proximal: Numbers  # [n]
    advantages: Numbers  # [n]
    completion: list[int]  # [n]
    group: list[int]  # [B]
    rewards: Numbers  # [B]
    ref: Numbers | None = None  # [n]
    preceding: Numbers | None = None  # [n]
    expert: list[bool] | None = None  # [n]


@dataclass(frozen=True)
class Entry:
    """An objective's share of the loss for every token of a batch, and the gradient by the token's log-prob."""

    name: str
    source: str  # of the equation: arXiv id and number, or where it was read instead
    batch: Batch
    value: Numbers  # [n]
    slope: Numbers  # [n]
    knobs: Mapping[str, float | str | bool] = field(default_factory=dict)
    step_factor: float = 1.0  # of the learning rate


# Completions of 2, 1 and 3 tokens; only the first two make a group with unequal rewards. Ratios to the behavior policy
# 2, 1/2 | 1.1 | 1/4, 2, 1, so those of the completions are 1, 1.1 and 1/2; the snapshot is 2, 1/2 | 10 | 1, 1, 1 times
# the behavior policy.
_BEHAVIOR = np.array([0.3, 0.4, 0.05, 0.4, 0.2, 0.9])
SIX = Batch(
    behavior=_BEHAVIOR,
    policy=_BEHAVIOR * np.array([2, 0.5, 1.1, 0.25, 2, 1]),
    proximal=_BEHAVIOR * np.array([2, 0.5, 10, 1, 1, 1]),
    advantages=np.array([1, 1, -2, -0.5, -0.5, -0.5]),
    completion=[0, 0, 1, 2, 2, 2],
    group=[0, 0, 1],
    rewards=np.array([1.0, 0.0, 0.3]),
)

# Completions of 2, 1 and 2 tokens; the first two are one group. Ratios to the behavior policy 2, 1/2 | 4 | 1, 1/4; to
# the snapshot 1, 1 | 2 | 1/2, 1.
FIVE = Batch(
    behavior=np.array([0.2, 0.4, 0.1, 0.5, 0.8]),
    policy=np.array([0.4, 0.2, 0.4, 0.5, 0.2]),
    proximal=np.array([0.4, 0.2, 0.2, 1.0, 0.2]),
    advantages=np.array([1.0, 1.0, -1.0, -2.0, -2.0]),
    completion=[0, 0, 1, 2, 2],
    group=[0, 0, 1],
    rewards=np.array([1.0, 0.0, 3.0]),
    ref=np.array([0.2, 0.5, 0.3, 0.4, 0.1]),
    preceding=np.array([0.4, 0.1, 0.6, 0.25, 0.5]),
    expert=[False, False, False, True, True],
)

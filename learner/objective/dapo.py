"""DAPO: GRPO with a higher upper bound, every token alike, and only groups that can teach something.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    loss = (1/n_s) sum_{t: group of t has unequal rewards} - min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)

with n_s the trained tokens of those groups; a step without any has loss 0, and one with a reward that is not finite has
loss NaN, whatever its advantages: whether that group counts is not known, and so neither is n_s. Its fourth part, the
overlong penalty, belongs to the rewards: `learner.objective.overlong`.

Source: DAPO, arXiv 2503.14476, eq. 8. Deviations: the equation divides by the tokens of each prompt's group, its
public code (and this) by the tokens of the batch; the paper samples until the batch is full of groups that are
neither all right nor all wrong, here the others are left out of what came; "equal" is said of `step.rewards`, which
the penalty may already have made unequal (the paper counts right answers).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from learner.objective.advantages import has_signal, is_broken
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import aggregated, clipped_surrogate


def dapo(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 0.2,
    eps_high: Annotated[float, Bounds(0, 1000)] = 0.28,
) -> TokenLoss:
    """The DAPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions; its rewards say which groups count.
        eps_low: a ratio below 1 - eps_low has no gradient where A < 0.
        eps_high: a ratio above 1 + eps_high has no gradient where A > 0.

    """
    surrogate = clipped_surrogate(step.log_ratio, step.advantages, eps_low, eps_high)
    return aggregated(surrogate, _mean_over_tokens_with_signal(step))


def _mean_over_tokens_with_signal(step: Step) -> Tensor:
    """1 / n_s for tokens of groups with unequal rewards, else 0: [n]."""
    dtype = step.policy_logprobs.dtype
    signal = has_signal(step.rewards, step.group_of).to(dtype)
    signal = signal.masked_fill(is_broken(step.rewards, step.group_of), torch.nan)
    counted = signal[step.group_of][step.sequence_of]
    return counted / counted.sum().clamp(min=1)

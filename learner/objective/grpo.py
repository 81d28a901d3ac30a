"""GRPO: PPO's clip on the ratio to the behavior policy, every completion alike.

    r_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    loss = (1/B) sum_i (1/|o_i|) sum_{t in o_i} - min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)

Source: DeepSeekMath, arXiv 2402.03300, eq. 3, with one eps for both sides. Deviations: its KL to a reference policy
is not here (every objective may have it beside); B counts completions with trained tokens, over all groups.
"""

from __future__ import annotations

from typing import Annotated

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss
from learner.objective.surrogates import aggregated, clipped_surrogate


def grpo(
    step: Step,
    *,
    eps_low: Annotated[float, Bounds(0, 1)] = 0.2,
    eps_high: Annotated[float, Bounds(0, 1000)] = 0.2,
    aggregation: Aggregation = "sequence_mean",
) -> TokenLoss:
    """The GRPO loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        eps_low: a ratio below 1 - eps_low has no gradient where A < 0.
        eps_high: a ratio above 1 + eps_high has no gradient where A > 0.
        aggregation: the paper's, or another; most public code has `token_mean`.

    Raises:
        ValueError: unknown aggregation.

    """
    surrogate = clipped_surrogate(step.log_ratio, step.advantages, eps_low, eps_high)
    return aggregated(surrogate, token_weights(step, aggregation))

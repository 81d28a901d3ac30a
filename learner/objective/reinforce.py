"""REINFORCE: as if the policy itself had drawn the tokens, whatever drew them.

    loss = - (1/n) sum_t A_t policy_logprobs_t

Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
Machine Learning 8 (1992). Deviation: there the tokens of an episode are summed (`aggregation: sequence_sum`), here
they are averaged over the step: smaller by n / B of the step. The behavior log-probs are not read.
"""

from __future__ import annotations

import torch

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Step, TokenLoss
from learner.objective.surrogates import weighted_score


def reinforce(step: Step, *, aggregation: Aggregation = "token_mean") -> TokenLoss:
    """The REINFORCE loss of a step.

    Args:
        step: the step's tokens, n of them in B completions.
        aggregation: see `learner.objective.aggregation`.

    Raises:
        ValueError: unknown aggregation.

    """
    one = torch.ones_like(step.policy_logprobs)
    return weighted_score(step, one, torch.zeros_like(one, dtype=torch.bool), token_weights(step, aggregation))

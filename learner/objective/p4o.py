"""P4O: P3O with a proximal snapshot; the ESS against both policies sets the cap and the mixture to be pulled to.

    ratio_t  = exp(policy_logprobs_t - behavior_logprobs_t)
    ess_b    = ESS of policy / behavior,  ess_p = ESS of policy / proximal,  ess = min(ess_b, ess_p)
    mixture  = ((1 - ess_b) behavior + (1 - ess_p) proximal) / (2 - ess_b - ess_p)
    loss     = (1/n) sum_t [ - sg(min(ratio_t, ess)) A_t policy_logprobs_t + (1 - ess) KL_t(policy || mixture) ]

over the n trained tokens of one optimizer step; no ESS carries a gradient, nor does the mixture. With proximal equal
to behavior it is P3O; with every ESS 1 it is REINFORCE. `cut` and another `aggregation` than 1/n are P3O's.

The estimators of the KL to the mixture are those of `learner.objective.kl.kl_to`.

Source: FeynRL (FeynRL-project/FeynRL, algs/P4O/p4o.py); no paper. Deviations are P3O's: the estimator is a choice
(the public code uses k3), the ESS covers the whole step (there a micro-batch), a non-finite ESS stays non-finite
(there it reads 1), and a KL weight below 1e-6 stays what it is (there it is 0): 1 - ess is taken in float64, and so is
the log ratio to the mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Step, TokenLoss, needs, pulled
from learner.objective.ess import weight_sums
from learner.objective.kl import KlEstimator, kl_to
from learner.objective.p3o import capped


@needs("proximal_logprobs")
def p4o(step: Step, *, kl_estimator: KlEstimator = "unbiased", aggregation: Aggregation = "token_mean") -> TokenLoss:
    """The P4O loss of a step.

    Args:
        step: the step's tokens.
        kl_estimator: of the KL to the mixture.
        aggregation: how tokens are averaged: the public code's, or another.

    Raises:
        ValueError: an unknown choice.

    """
    assert step.proximal_logprobs is not None, "declared as needed"
    log_ratio = step.log_ratio
    ess_behavior = weight_sums(log_ratio).ess
    ess_proximal = weight_sums(step.policy_logprobs - step.proximal_logprobs).ess
    ess = torch.minimum(ess_behavior, ess_proximal)
    log_mixture = mixture_logprobs(step.behavior_logprobs, step.proximal_logprobs, 1 - ess_behavior, 1 - ess_proximal)
    kl, kl_slope = kl_to(log_ratio, step.policy_logprobs - log_mixture, kl_estimator)
    weight, cut = capped(log_ratio.exp(), ess)
    pull = (1 - ess).to(log_ratio.dtype)
    mean = token_weights(step, aggregation)
    return TokenLoss(
        value=mean * (-weight * step.advantages * step.policy_logprobs + pull * kl),
        slope=mean * (-weight * step.advantages + pull * kl_slope),
        weight=weight,
        cut=cut,
        statistics={
            "ess_behavior": ess_behavior,
            "ess_proximal": ess_proximal,
            "kl": kl.mean(),
            **pulled(mean, pull, kl),
        },
    )


def mixture_logprobs(behavior: Tensor, proximal: Tensor, behavior_share: Tensor, proximal_share: Tensor) -> Tensor:
    """Log-probs of the mixture of two policies in these proportions, half and half where both are 0: [n], float64."""
    fresh = behavior_share + proximal_share == 0
    shares = torch.where(fresh, 0.5, torch.stack([behavior_share, proximal_share]))
    log_shares = (shares / shares.sum()).log()
    return torch.logaddexp(log_shares[0] + behavior.double(), log_shares[1] + proximal.double())

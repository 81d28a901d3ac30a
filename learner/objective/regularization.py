"""What any objective can be told to add: entropy of the policy, and a pull to a frozen reference.

    loss = objective's loss - entropy_weight (1/n) sum_t entropy_t + ref_kl_weight (1/n) sum_t KL_t(policy || reference)

entropy_t is that of the whole distribution that token t was drawn from, under the policy and at the temperature of
sampling, so its gradient is exact. KL_t is estimated from the token itself, which the behavior policy drew:
`learner.objective.kl.kl_to`; for a token that an expert wrote it is 0. Both are means over the n trained tokens,
whatever the objective's own aggregation, and both are off unless asked for.

Source: entropy bonus: Williams and Peng, "Function optimization using connectionist reinforcement learning
algorithms", 1991; pull to a reference as a term of the loss: DeepSeekMath, arXiv 2402.03300, eq. 3 and 4 (which uses
k3 without a ratio).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch

from learner.objective.core import Bounds, Step, TokenLoss, needs, pulled
from learner.objective.kl import KlEstimator, kl_to


@needs("entropy", when=lambda knobs: knobs["entropy_weight"] > 0)
@needs("ref_logprobs", when=lambda knobs: knobs["ref_kl_weight"] > 0)
def regularized(
    token_loss: TokenLoss,
    step: Step,
    *,
    entropy_weight: Annotated[float, Bounds(0, 10)] = 0.0,
    ref_kl_weight: Annotated[float, Bounds(0, 100)] = 0.0,
    ref_kl_estimator: KlEstimator = "unbiased",
) -> TokenLoss:
    """The loss with these terms.

    Args:
        token_loss: of the objective itself, n tokens.
        step: the step's tokens, with `entropy` and `ref_logprobs` where their weights are above 0.
        entropy_weight: of the mean entropy, which the loss then rewards.
        ref_kl_weight: of the mean KL to the reference.
        ref_kl_estimator: see `learner.objective.kl`.

    """
    mean = 1 / max(1, step.tokens)
    if entropy_weight > 0:
        assert step.entropy is not None, "declared as needed"
        token_loss = dataclasses.replace(
            token_loss,
            value=token_loss.value - entropy_weight * mean * step.entropy,
            entropy_slope=torch.full_like(step.entropy, -entropy_weight * mean),
            statistics={
                **token_loss.statistics,
                "entropy": step.entropy.mean(),
                "entropy_loss": -entropy_weight * mean * step.entropy.sum(),
            },
        )
    if ref_kl_weight > 0:
        assert step.ref_logprobs is not None, "declared as needed"
        d = step.policy_logprobs - step.ref_logprobs
        kl, slope = kl_to(step.log_ratio, d, ref_kl_estimator)
        if step.expert is not None:
            kl, slope = torch.where(step.expert, 0.0, kl), torch.where(step.expert, 0.0, slope)
        own = token_loss.statistics
        pull = pulled(kl.new_full((), mean), kl.new_tensor(ref_kl_weight), kl)
        added = {name: value + own[name] if name in own else value for name, value in pull.items()}
        token_loss = dataclasses.replace(
            token_loss,
            value=token_loss.value + ref_kl_weight * mean * kl,
            slope=token_loss.slope + ref_kl_weight * mean * slope,
            statistics={**token_loss.statistics, "ref_kl": kl.mean()} | added,
        )
    return token_loss

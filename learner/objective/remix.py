"""ReMix: PPO's clip around where the batch began, on fresh and replayed tokens alike, between two anchors.

    r_t    = exp(policy_logprobs_t - behavior_logprobs_t)
    c_t    = exp(proximal_logprobs_t - behavior_logprobs_t)           1 on a fresh token
    loss   = mean_t [ - min(r_t A_t, clip(r_t, c_t - eps, c_t + eps) A_t)
                      + kl_weight (base_share KL_t(policy || reference) + (1 - base_share) KL_t(policy || preceding)) ]

The clip is centred on the ratio that the token had before the batch's first step, so old data is cut for what this
batch does with it, not for its age. The KL is convex in two anchors: the frozen reference, which keeps the run
stable, and the policy before the batch before this one, which lets it move.

Source: Liang et al., "Squeeze the Soaked Sponge: Efficient Off-policy Reinforcement Finetuning for Large Language
Model", arXiv 2507.06892 (Mix-PPG and the KL-convex constraint); the clip is GePPO's, arXiv 2111.00072. From notes on
the paper, whose text could not be read: eps, kl_weight and the estimator are not in them, so they are PPO's .2 and the
public trainer's .001. The paper lowers base_share from 1 by .1 every 10 steps after step 50, down to .5, which is the
default here, and after T steps makes the policy its own new reference and replays no more: both are schedules, the
caller's. Its .4 of replayed data is the stream's own staleness here, or `learner.passes`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from learner.objective.aggregation import Aggregation, token_weights
from learner.objective.core import Bounds, Step, TokenLoss, needs, pulled
from learner.objective.kl import KlEstimator, kl_to
from learner.objective.surrogates import Surrogate, aggregated, finite_or_nan


@needs("proximal_logprobs")
@needs("ref_logprobs", when=lambda knobs: knobs["kl_weight"] > 0 and knobs["base_share"] > 0)
@needs("preceding_logprobs", when=lambda knobs: knobs["kl_weight"] > 0 and knobs["base_share"] < 1)
def remix(
    step: Step,
    *,
    eps: Annotated[float, Bounds(0, 1000)] = 0.2,
    kl_weight: Annotated[float, Bounds(0, 100)] = 0.001,
    base_share: Annotated[float, Bounds(0, 1)] = 0.5,
    kl_estimator: KlEstimator = "unbiased",
    aggregation: Aggregation = "token_mean",
) -> TokenLoss:
    """The ReMix loss of a step.

    Args:
        step: the step's tokens.
        eps: how far the ratio may go from where the batch began, in the direction of the advantage.
        kl_weight: of both anchors together; 0 asks for neither.
        base_share: the reference's share of it; the preceding policy has the rest. Who has no share is not asked for.
        kl_estimator: see `learner.objective.kl`.
        aggregation: how tokens are averaged.

    Raises:
        ValueError: an unknown choice.

    """
    assert step.proximal_logprobs is not None, "declared as needed"
    ratio = finite_or_nan(step.log_ratio).exp()
    centre = finite_or_nan(step.proximal_logprobs - step.behavior_logprobs).exp()
    advantages = step.advantages
    cut = ((advantages > 0) & (ratio > centre + eps)) | ((advantages < 0) & (ratio < centre - eps))
    clipped = torch.minimum(torch.maximum(ratio, centre - eps), centre + eps)
    weight = torch.where(cut, 0.0, ratio)
    surrogate = Surrogate(-torch.minimum(ratio * advantages, clipped * advantages), -weight * advantages, weight, cut)
    mean = token_weights(step, aggregation)
    if kl_weight == 0:
        return aggregated(surrogate, mean)
    kl, kl_slope = _anchored(step, base_share, kl_estimator)
    return TokenLoss(
        value=mean * (surrogate.value + kl_weight * kl),
        slope=mean * (surrogate.slope + kl_weight * kl_slope),
        weight=weight,
        cut=cut,
        statistics={"kl": kl.mean(), **pulled(mean, kl.new_tensor(kl_weight), kl)},
    )


def _anchored(step: Step, base_share: float, estimator: KlEstimator) -> tuple[Tensor, Tensor]:
    """The convex KL of each token and its derivative, [n] each; an anchor without a share is not looked at."""
    value, slope = torch.zeros_like(step.log_ratio), torch.zeros_like(step.log_ratio)
    for share, anchor in ((base_share, step.ref_logprobs), (1 - base_share, step.preceding_logprobs)):
        if share > 0:
            assert anchor is not None, "declared as needed"
            kl, kl_slope = kl_to(step.log_ratio, step.policy_logprobs - anchor, estimator)
            value, slope = value + share * kl, slope + share * kl_slope
    return value, slope

"""P3O and P4O: the capped score and the pull to the behavior policy, with both estimators of the KL.

Ratios of FIVE to the behavior policy: sum 7.75, squares 21.3125, so ess = 7.75^2 / (5 * 21.3125) = 31/55; to the
snapshot: 5.5 and 7.25, so ess = 121/145. Of the three completions by themselves: (5/2)^2 / (2 * 17/4) = 25/34, 1 and
(5/4)^2 / (2 * 17/16) = 25/34.
"""

from __future__ import annotations

import numpy as np

from tests.learner.objective.published.entries import FIVE, Entry, Numbers

RATIO = np.array([2, 1 / 2, 4, 1, 1 / 4])
PAPER = "2605.12380, the P3O objective, from notes on the paper"
CODE = "2605.12380, from the authors' public code"


def capped(ess: float | Numbers, kl: Numbers, kl_slope: Numbers) -> tuple[Numbers, Numbers]:
    """Value and slope of each token, averaged over the five."""
    score = -np.minimum(RATIO, ess) * FIVE.advantages
    return (score * np.log(FIVE.policy) + (1 - ess) * kl) / 5, (score + (1 - ess) * kl_slope) / 5


def unbiased(anchor: Numbers) -> tuple[Numbers, Numbers]:
    """Ratio times the log ratio to the anchor, less the ratio, plus anchor over behavior."""
    d = np.log(FIVE.policy / anchor)
    return RATIO * d - RATIO + anchor / FIVE.behavior, RATIO * d


def k3(anchor: Numbers) -> tuple[Numbers, Numbers]:
    """The log ratio to the anchor plus its inverse less 1."""
    return np.log(FIVE.policy / anchor) + anchor / FIVE.policy - 1, 1 - anchor / FIVE.policy


WHOLE, SNAPSHOT = 31 / 55, 121 / 145
BY_COMPLETION = np.array([25 / 34, 25 / 34, 1, 25 / 34, 25 / 34])
MIXTURE = ((1 - WHOLE) * FIVE.behavior + (1 - SNAPSHOT) * FIVE.proximal) / (2 - WHOLE - SNAPSHOT)
P4O = "no paper; FeynRL's public code, algs/P4O"

NUMBERS = [
    Entry("p3o", PAPER, FIVE, *capped(WHOLE, *unbiased(FIVE.behavior))),
    Entry("p3o", CODE, FIVE, *capped(WHOLE, *k3(FIVE.behavior)), {"kl_estimator": "k3"}),
    Entry("p3o", CODE, FIVE, *capped(BY_COMPLETION, *unbiased(FIVE.behavior)), {"ess_scope": "completion"}),
    Entry("p4o", P4O, FIVE, *capped(min(WHOLE, SNAPSHOT), *unbiased(MIXTURE))),
    Entry("p4o", P4O, FIVE, *capped(min(WHOLE, SNAPSHOT), *k3(MIXTURE)), {"kl_estimator": "k3"}),
]

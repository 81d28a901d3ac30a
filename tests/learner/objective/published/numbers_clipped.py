"""Objectives that differentiate through the ratio: PPO's clip in its forms, a mask, a soft gate."""

from __future__ import annotations

import numpy as np

from tests.learner.objective.published.entries import FIVE, SIX, Entry, Numbers

BY_TOKEN = np.full(6, 1 / 6)
BY_COMPLETION = np.array([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])
INFORMATIVE = np.array([1 / 3, 1 / 3, 1 / 3, 0, 0, 0])


def gains(
    name: str, source: str, gain: list[float], slope: list[float], mean: Numbers, **knobs: float | str | bool
) -> Entry:
    """Of SIX: the loss is minus the mean gain."""
    return Entry(name, source, SIX, -mean * np.array(gain), mean * np.array(slope), knobs)


def grpo() -> Entry:
    """Clipped: the 2 that was good (gain 1.2) and the 1/4 that was bad (gain -0.8/2)."""
    gain, slope = [1.2, 0.5, -2.2, -0.4, -1, -0.5], [0, -0.5, 2.2, 0, 1, 0.5]
    return gains("grpo", "2402.03300, eq. 3", gain, slope, BY_COMPLETION)


def dapo() -> Entry:
    """The third completion is alone in its group; the other three tokens are averaged, the first clipped at 1.28."""
    gain, slope = [1.28, 0.5, -2.2, 0, 0, 0], [0, -0.5, 2.2, 0, 0, 0]
    return gains("dapo", "2503.14476, eq. 8", gain, slope, INFORMATIVE)


def decoupled_ppo(over_cap: str, w: float) -> Entry:
    """Ratios to the snapshot: 1, 1 | 0.11 | 1/4, 2, 1. Clipped: 0.11 and 1/4, both bad (gain 0.8 A); w 10 is cut."""
    gain, slope = [2, 0.5, -1.6 * w, -0.4, -1, -0.5], [-2, -0.5, 0, 0, 1, 0.5]
    source = "2110.00641 and 2505.24298, from notes; the cap from AReaL's public code"
    return gains("decoupled_ppo", source, gain, slope, BY_TOKEN, over_cap=over_cap)


def gspo() -> Entry:
    """Geometric means 1, 1.1 and 2^(-1/3). Bad at 1.1 is not clipped; bad at 0.79 is, at 0.9997."""
    gain, slope = [1, 1, -2.2, -0.49985, -0.49985, -0.49985], [-1, -1, 2.2, 0, 0, 0]
    return gains("gspo", "2507.18071, eq. 5 to 7", gain, slope, BY_COMPLETION)


def sapo() -> Entry:
    """For the first token sigmoid(1) = .731058579, 4 p (1 - p) = .786447733, times its ratio 2: 1.572895466."""
    ratio, tau = SIX.policy / SIX.behavior, np.array([1, 1, 1.05, 1.05, 1.05, 1.05])
    p = 1 / (1 + np.exp(-tau * (ratio - 1)))
    slope = -4 * p * (1 - p) * ratio * SIX.advantages
    assert abs(slope[0] + 1.5728954659318548) < 1e-15
    value = -4 / tau * p * SIX.advantages
    return Entry("sapo", "2511.20347, eq. 5 and 6", SIX, BY_COMPLETION * value, BY_COMPLETION * slope)


def bapo() -> Entry:
    """Positive pull .2*min(2,c)+.4*.5, negative .1*4+.5*1*2+.8*max(.25,.6)*2 = 2.36.

    At c = 2 the share is .6/2.96 and higher c change nothing: the search runs to (.9, 3), where the last token's
    ratio .25 is cut.
    """
    value, slope = np.array([-2, -0.5, 4, 2, 1.8]), np.array([-2, -0.5, 4, 2, 0])
    return Entry("bapo", "2510.18927, algorithm 1", FIVE, value / 5, slope / 5)


def m2po() -> Entry:
    """Trust region: token 0 (A > 0, ratio 2) and token 4 (A < 0, ratio 1/4), squares .48 and 1.92.

    Their mean 1.2 is above the limit .5, the first alone is below it: the last token goes.
    """
    surrogate = -np.array([2, 0.5, 4, 1, 0]) * FIVE.advantages / 5
    return Entry("m2po", "2510.01161, algorithm 1", FIVE, surrogate, surrogate, {"second_moment": 0.5})


def chord() -> Entry:
    """Own tokens 0 (cut at 1.2), 1 (ratio .5, A > 0: kept), 2 (ratio 4, A < 0: kept); mu .1; experts p (1 - p)."""
    factor = -0.1 / 2 * np.array([0.5 * 0.5, 0.2 * 0.8])
    value = np.concatenate([0.9 / 3 * np.array([-1.2, -0.5, 4]), factor * np.log([0.5, 0.2])])
    slope = np.concatenate([0.9 / 3 * np.array([0, -0.5, 4]), factor])
    return Entry("chord", "2508.11408, CHORD-phi; the stopped factor from its public code", FIVE, value, slope)


def remix() -> Entry:
    """The clip's centres, snapshot over behavior: 2, 1/2 | 2 | 2, 1/4. Only token 3 is cut: bad, 1 < 2 - .2.

    The pull is .1 times .7 of that to the reference and .3 of that to the preceding policy.
    """
    ratio = FIVE.policy / FIVE.behavior
    value, slope = np.array([-2, -0.5, 4, 3.6, 0.5]), np.array([-2, -0.5, 4, 0, 0.5])
    for share, anchor in ((0.7, FIVE.ref), (0.3, FIVE.preceding)):
        assert anchor is not None
        d = np.log(FIVE.policy / anchor)
        value = value + 0.1 * share * (ratio * d - ratio + anchor / FIVE.behavior)
        slope = slope + 0.1 * share * ratio * d
    source = "2507.06892, Mix-PPG and KL-convex constraint, from notes on the paper"
    return Entry("remix", source, FIVE, value / 5, slope / 5, {"kl_weight": 0.1, "base_share": 0.7})


NUMBERS = [
    grpo(),
    dapo(),
    decoupled_ppo("truncate", 5),
    decoupled_ppo("drop", 0),
    gspo(),
    sapo(),
    bapo(),
    m2po(),
    chord(),
    remix(),
]

"""What one optimizer step says about the trust in its data: a vote, with the confidence that its size allows. Pure.

    lost  = 1 - token_ess                               the share of the batch's weight that is lost
    limit = (1 - controller.token_ess) + (1 - floor)    floor: the token ESS of the engines on the same weights

On the scale log(lost), where a loss of .02 is as far from .1 as that is from .5:

    good                     unclear                       low
    ----------|----------------------|----------------------> log(lost)
        limit / 2 - spread      limit + spread

`lost` is about the variance of the ratios over their squared mean. Of m independent normal values the variance is known
to sqrt(2/m) of itself; the tokens of a completion depend on each other, so m is the completions. A fall that one single
token makes is not low: what counts is the ESS of all the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from shared.config.controller import ControllerConfig

Vote = Literal["good", "unclear", "low", "collapsed"]

HYSTERESIS = 2.0  # factor of the loss between what is too much and what is little enough to widen
MOST_LOST = 0.99  # whatever the floor
TAIL_TOKENS = 200  # from here on the largest hundredth is more than one token


def vote(row: Mapping[str, Any], rules: ControllerConfig, floor: float) -> Vote:
    """What a step record says.

    Args:
        row: of shared.records.StepRecord.
        rules: the limits.
        floor: token ESS where nothing is stale, in (0, 1].

    """
    ess, spread = _number(row, "token_ess"), spread_of(row)
    if row.get("skipped") or ess is None or not 0 < ess <= 1:
        return "low"  # what is not finite is not trusted
    lost, largest = 1 - ess, _number(row, "largest_weight_share") or 0.0
    without = 1 - without_largest(ess, largest, int(row.get("tokens") or 1))
    if rules.pause_token_ess and without > limit(rules.pause_token_ess, floor) * spread:
        return "collapsed"
    mass, most = _number(row, "top_1_percent_mass") or 0.0, limit(rules.token_ess, floor)
    heavy = int(row.get("tokens") or 0) >= TAIL_TOKENS and mass - largest > rules.top_1_percent_mass
    if heavy or without > most * spread:
        return "low"
    return "good" if lost * spread < most / HYSTERESIS and mass <= rules.top_1_percent_mass + 0.01 else "unclear"


def limit(token_ess: float, floor: float) -> float:
    """The share of the weight that may be lost: what the target allows, and what nothing could give back."""
    return min(MOST_LOST, (1 - token_ess) + (1 - floor))


def spread_of(row: Mapping[str, Any]) -> float:
    """The factor that the loss of a step is uncertain by, at least 1."""
    return math.exp(math.sqrt(2 / max(1, int(row.get("trajectories") or 1))))


def without_largest(ess: float, largest: float, n: int) -> float:
    """Token ESS of all tokens but the one of the largest weight.

    Args:
        ess: of all, in [1/n, 1].
        largest: its weight / sum of all.
        n: tokens.

    """
    if n < 2 or largest >= 1:
        return 1.0
    rest = 1 / (n * ess) - largest**2  # sum of the others' squares, the sum of all being 1
    least = (1 - largest) ** 2 / (n - 1)  # which it cannot be below
    return least / max(rest, least)


def floor_of(row: Mapping[str, Any], servers: Iterable[Mapping[str, Any]]) -> float:
    """Token ESS on the same weights: the learner's own measure where the step had such tokens, else the best server's.

    The best, so that one bad server does not move the limit for all.
    """
    own = _number(row, "floor_token_ess")
    told = [own] if own is not None else [_number(values, "floor_token_ess") for values in servers]
    return max((value for value in told if value is not None and 0 < value <= 1), default=1.0)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)

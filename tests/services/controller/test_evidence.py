"""Votes: against the limit on a log scale, with the confidence that a step's size allows, whatever one token does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.evidence import Vote, floor_of, limit, spread_of, vote, without_largest
from shared.config.controller import ControllerConfig
from tests.services.controller.rows import row

RULES = ControllerConfig()
ORDER: dict[Vote, int] = {"good": 0, "unclear": 1, "low": 2, "collapsed": 3}


@pytest.mark.parametrize(
    ("ess", "changes", "floor", "expected"),
    [
        (1.0, {}, 1.0, "good"),
        (0.96, {}, 1.0, "good"),
        (0.93, {}, 1.0, "unclear"),
        (0.905, {}, 1.0, "unclear"),
        (0.85, {}, 1.0, "low"),
        (0.3, {}, 1.0, "collapsed"),
        (0.85, {"trajectories": 16}, 1.0, "low"),
        (0.87, {"trajectories": 16}, 1.0, "unclear"),  # .13 of so few completions may well be .1
        (0.87, {"trajectories": 4096}, 1.0, "low"),
        (0.96, {"trajectories": 4}, 1.0, "unclear"),  # and so may .04
        (0.85, {}, 0.93, "unclear"),  # the engines alone lose .07
        (0.5, {"largest_weight_share": 0.0213}, 1.0, "unclear"),  # all but one token are even
        (0.05, {"largest_weight_share": 0.09678}, 1.0, "unclear"),
        (
            0.303,
            {"largest_weight_share": 0.0355, "tokens": 1845, "top_1_percent_mass": 0.056},
            1.0,
            "unclear",
        ),  # as seen
        (0.99, {"top_1_percent_mass": 0.3}, 1.0, "low"),
        (0.99, {"top_1_percent_mass": 0.3, "largest_weight_share": 0.25}, 1.0, "unclear"),
        (math.nan, {}, 1.0, "low"),
        (1.2, {}, 1.0, "low"),
        (0.99, {"skipped": "non-finite loss"}, 1.0, "low"),
        (0.99, {"token_ess": None}, 1.0, "low"),
    ],
)
def test_a_step_votes(ess: float, changes: dict[str, Any], floor: float, expected: Vote) -> None:
    assert vote(row(1, ess, **changes), RULES, floor) == expected


def test_without_a_pause_nothing_is_called_collapsed() -> None:
    assert vote(row(1, 0.001), ControllerConfig(pause_token_ess=0), 1.0) == "low"


def test_the_ess_without_the_largest_is_that_of_the_others() -> None:
    ratio = np.random.default_rng(0).lognormal(0, 1, 500)
    others = np.sort(ratio)[:-1]
    whole, expected = (float(r.sum() ** 2 / (r.size * (r**2).sum())) for r in (ratio, others))
    assert without_largest(whole, float(ratio.max() / ratio.sum()), 500) == pytest.approx(expected, rel=1e-9)
    assert without_largest(1.0, 1.0, 1) == 1.0


def test_the_spread_covers_what_few_completions_scatter() -> None:
    """Of small ratios' losses, drawn again and again, about two thirds lie within it."""
    rng = np.random.default_rng(1)
    for completions in (16, 64, 256):
        ratio = np.exp(0.2 * rng.standard_normal((400, completions)))
        lost = 1 - ratio.sum(1) ** 2 / (completions * (ratio**2).sum(1))
        spread = spread_of({"trajectories": completions})
        inside = np.abs(np.log(lost / np.median(lost))) < math.log(spread)
        assert 0.55 < inside.mean() < 0.85


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 1000), st.floats(0.001, 0.3), st.floats(0.5, 1))
def test_a_lower_ess_never_votes_for_more_trust(a: float, b: float, n: int, largest: float, floor: float) -> None:
    low, high = sorted((a, b))
    votes = [vote(row(1, ess, trajectories=n, largest_weight_share=largest), RULES, floor) for ess in (low, high)]
    assert ORDER[votes[0]] >= ORDER[votes[1]]


def test_the_floor_is_the_steps_own_or_the_best_servers() -> None:
    servers = [{"floor_token_ess": 0.2}, {"floor_token_ess": 0.97}, {"floor_token_ess": math.nan}, {}]
    assert floor_of({"floor_token_ess": 0.95}, servers) == 0.95
    assert floor_of({"floor_token_ess": None}, servers) == 0.97
    assert floor_of({}, []) == 1.0
    assert limit(0.9, 0.97) == pytest.approx(0.13)
    assert limit(0.01, 0.01) == 0.99

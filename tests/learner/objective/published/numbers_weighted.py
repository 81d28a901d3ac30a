"""Objectives that put a stopped weight on the log-prob: slope -weight A and value slope * log policy, aggregated."""

from __future__ import annotations

import numpy as np

from tests.learner.objective.published.entries import FIVE, SIX, Entry, Numbers

BY_TOKEN = np.full(6, 1 / 6)
BY_COMPLETION = np.array([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])


def weighted(
    name: str, source: str, weights: list[float], mean: Numbers = BY_TOKEN, **knobs: float | str | bool
) -> Entry:
    slope = -mean * np.array(weights) * SIX.advantages
    return Entry(name, source, SIX, slope * np.log(SIX.policy), slope, knobs)


def vcpo() -> Entry:
    """w = 1, 4, 1/4; g^2 = sum (1 - p)^2 = .6^2 + .8^2 = 1 and .6^2 = .36: b = 1 / (1 + 16 * .36). Truncated at 2.

    The third completion is alone in its group and its own baseline. ESS of the completions (5.25)^2 / (3 * 17.0625).
    """
    b = 1 / (1 + 16 * 0.36)
    slope = -np.array([(1 - b) / 2, (1 - b) / 2, 2 * (0 - b), 0, 0]) / 3
    source = "2602.17616, eq. 5 (step) and sections 3.3 (baseline) and 3.5 (truncation)"
    factor = float(np.sqrt(5.25**2 / (3 * 17.0625)))
    return Entry("vcpo", source, FIVE, slope * np.log(FIVE.policy), slope, {"cap": 2}, factor)


def asymre() -> Entry:
    """Mean rewards 1/2 and 3, shift -.1: 1 - 1/2 + .1 and so on."""
    slope = -np.array([0.6, 0.6, -0.4, 0.1, 0.1]) / 5
    return Entry("asymre", "2506.20520, section 5", FIVE, slope * np.log(FIVE.policy), slope)


def minirl() -> Entry:
    """Only token 3 is masked (A < 0, q = 1/2 < .8); q = 2 with A < 0 is not. Cap 3 binds on token 2."""
    slope = -np.array([2, 0.5, 3, 0, 1 / 4]) * FIVE.advantages / 3
    return Entry("minirl", "2512.01374, section 3", FIVE, slope * np.log(FIVE.policy), slope, {"cap": 3})


def kimi_pmd() -> list[Entry]:
    """Coefficient .1. By completion: log ratios 0, ln 4, -ln 4; sums over tokens, mean over completions."""
    log_ratio, score = np.log(FIVE.policy / FIVE.behavior), -FIVE.advantages * np.log(FIVE.policy)
    whole = np.log(np.array([1, 1, 4, 1 / 4, 1 / 4]))
    return [
        Entry(
            "kimi_pmd",
            "2509.24203, from its public code (squares the token's log ratio)",
            FIVE,
            (score + 0.1 * log_ratio**2) / 5,
            (-FIVE.advantages + 0.2 * log_ratio) / 5,
        ),
        Entry(
            "kimi_pmd",
            "2501.12599, policy optimization (its objective, per completion)",
            FIVE,
            (score + 0.1 * whole * log_ratio) / 3,
            (-FIVE.advantages + 0.2 * whole) / 3,
            {"departure": "sequence", "aggregation": "sequence_sum"},
        ),
    ]


RATIOS = [2, 0.5, 1.1, 0.25, 2, 1]
NUMBERS = [
    weighted("reinforce", "Williams 1992, from notes (episodic REINFORCE), averaged over tokens", [1] * 6),
    weighted("opmd", "2505.17826, its one-step OPMD, tau 1", [0.5] * 6),
    weighted("truncated_is", "2505.24034, section on AIPO", RATIOS),
    weighted("truncated_is", "2505.24034, section on AIPO", [1.5, 0.5, 1.1, 0.25, 1.5, 1], cap=1.5),
    weighted("cispo", "2506.13585, eq. 4 and 5", RATIOS),
    weighted("cispo", "2506.13585, eq. 4 and 5", [1.6, 0.7, 1.1, 0.7, 1.6, 1], eps_low=0.3, eps_high=0.6),
    weighted("topr", "2503.14286, eq. 7 and 8", [1, 1, 1, 0.5, 0.5, 0.5], BY_COMPLETION),
    weighted("minpro", "2601.22718, from a public survey's equation", [2, 1, 1.1, 0.25, 0.5, 0.25]),
    weighted(
        "minpro", "2601.22718, from a public survey's equation", [1.5, 1, 1.1, 0.4, 0.5, 0.4], eps_low=0.6, eps_high=0.5
    ),
    vcpo(),
    asymre(),
    minirl(),
    *kimi_pmd(),
]

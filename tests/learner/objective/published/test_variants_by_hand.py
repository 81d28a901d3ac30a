"""Numbers worked out from the papers in plain numpy on one small batch, never by our code, then compared with it.

Three completions of 2, 1 and 2 tokens; the first two are one group. Ratios to the behavior policy 2, 1/2 | 4 | 1, 1/4;
to the snapshot 1, 1 | 2 | 1/2, 1.
"""

from typing import Any

import numpy as np
import pytest
import torch

from learner.objective.core import Step
from learner.objective.registry import build

B = np.array([0.2, 0.4, 0.1, 0.5, 0.8])  # behavior's probabilities
R = np.array([2, 1 / 2, 4, 1, 1 / 4])
P = B * R  # policy's
Q = np.array([1, 1, 2, 1 / 2, 1])
A = np.array([1.0, 1.0, -1.0, -2.0, -2.0])
REWARDS = np.array([1.0, 0.0, 3.0])
EXPERT = np.array([False, False, False, True, True])
LP, D = np.log(P), np.log(R)
MEAN = 1 / 5


def bapo() -> tuple[np.ndarray, np.ndarray]:
    """Positive pull .2*min(2,c)+.4*.5, negative .1*4+.5*1*2+.8*max(.25,.6)*2 = 2.36; at c = 2 the share is .6/2.96 and
    higher c change nothing: the search runs to (.9, 3), where the last token's ratio .25 is cut."""
    return MEAN * np.array([-2, -0.5, 4, 2, 1.8]), MEAN * np.array([-2, -0.5, 4, 2, 0])


def m2po() -> tuple[np.ndarray, np.ndarray]:
    """Trust region: token 0 (A > 0, ratio 2) and token 4 (A < 0, ratio 1/4): squares .48 and 1.92; both above .5's
    mean 1.2, the first alone below."""
    kept = np.array([1, 1, 1, 1, 0])
    return -MEAN * kept * R * A, -MEAN * kept * R * A


def vcpo() -> tuple[np.ndarray, np.ndarray]:
    """w = 1, 4, 1/4; g^2 = sum (1 - p)^2 = .6^2 + .8^2 = 1 and .6^2 = .36: b = 1 / (1 + 16 * .36). Truncated at 2."""
    b = 1 / (1 + 16 * 0.36)
    slope = -np.array([(1 - b) / 2, (1 - b) / 2, 2 * (0 - b), 0, 0]) / 3
    return slope * LP, slope


def opmd() -> tuple[np.ndarray, np.ndarray]:
    return -MEAN * A * LP / 2, -MEAN * A / 2


def asymre() -> tuple[np.ndarray, np.ndarray]:
    """Mean rewards 1/2 and 3, shift -.1."""
    slope = -MEAN * np.array([0.6, 0.6, -0.4, 0.1, 0.1])
    return slope * LP, slope


def kimi_pmd() -> tuple[np.ndarray, np.ndarray]:
    """Log ratios of completions 0, ln 4, -ln 4; coefficient .1; sums over tokens, mean over completions."""
    departed = np.log(np.array([1, 1, 4, 1 / 4, 1 / 4]))
    return (-A * LP + 0.1 * departed * D) / 3, (-A + 0.2 * departed) / 3


def minirl() -> tuple[np.ndarray, np.ndarray]:
    """Only token 3 is masked (A < 0, q = 1/2 < .8); q = 2 with A < 0 is not. Cap 3 binds on token 2."""
    slope = -np.array([2, 0.5, 3, 0, 1 / 4]) * A / 3
    return slope * LP, slope


def chord() -> tuple[np.ndarray, np.ndarray]:
    """Own tokens 0 (cut at 1.2), 1 (ratio .5, A > 0: kept), 2 (ratio 4, A < 0: kept); mu .1."""
    factor = -0.1 / 2 * P[3:] * (1 - P[3:])
    own = 0.9 / 3
    value = np.concatenate([own * np.array([-1.2, -0.5, 4]), factor * LP[3:]])
    return value, np.concatenate([own * np.array([0, -0.5, 4]), factor])


def p4o() -> tuple[np.ndarray, np.ndarray]:
    """Sums of R: 7.75, of squares 21.3125; of Q: 5.5 and 7.25."""
    ess_b, ess_q = 7.75**2 / (5 * 21.3125), 5.5**2 / (5 * 7.25)
    mixture = ((1 - ess_b) * B + (1 - ess_q) * P / Q) / (2 - ess_b - ess_q)
    weight, d = np.minimum(R, ess_b), LP - np.log(mixture)
    value = -weight * A * LP + (1 - ess_b) * (R * d - R + mixture / B)
    return MEAN * value, MEAN * (-weight * A + (1 - ess_b) * R * d)


KNOBS: dict[str, dict[str, Any]] = {
    "m2po": {"second_moment": 0.5},
    "vcpo": {"cap": 2},
    "kimi_pmd": {"departure": "sequence", "aggregation": "sequence_sum"},
    "minirl": {"cap": 3},
}


@pytest.mark.parametrize("by_hand", [bapo, m2po, vcpo, opmd, asymre, kimi_pmd, minirl, chord, p4o])
def test_value_and_slope_of_every_token_are_the_papers(by_hand: Any) -> None:
    behavior, policy, proximal, advantages, rewards = (
        torch.from_numpy(x) for x in (np.log(B), LP, np.log(P / Q), A, REWARDS)
    )
    step = Step(
        policy_logprobs=policy,
        behavior_logprobs=behavior,
        advantages=advantages,
        sequence_of=torch.tensor([0, 0, 1, 2, 2]),
        group_of=torch.tensor([0, 0, 1]),
        rewards=rewards,
        proximal_logprobs=proximal,
        expert=torch.from_numpy(EXPERT),
    )
    token_loss = build(by_hand.__name__, KNOBS.get(by_hand.__name__))(step)
    value, slope = by_hand()
    np.testing.assert_allclose(token_loss.value.numpy(), value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(token_loss.slope.numpy(), slope, rtol=1e-12, atol=1e-12)


def test_vcpos_step_is_the_root_of_the_sequence_ess() -> None:
    """w = 1, 4, 1/4: (5.25)^2 / (3 * 17.0625)."""
    step = Step(
        torch.from_numpy(LP),
        torch.from_numpy(np.log(B)),
        torch.from_numpy(A),
        torch.tensor([0, 0, 1, 2, 2]),
        torch.tensor([0, 0, 1]),
        torch.from_numpy(REWARDS),
    )
    assert float(build("vcpo")(step).step_factor) == pytest.approx(np.sqrt(5.25**2 / (3 * 17.0625)))

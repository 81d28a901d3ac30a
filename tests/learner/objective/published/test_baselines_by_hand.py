"""Six tokens worked out on paper from the published equations; numpy only up to the comparison.

Completions of 2, 1 and 3 tokens with advantages 1, -2 and -1/2. Ratios to the behavior policy: 2, 1/2 | 1.1 |
1/4, 2, 1; so the completions' ratios are 1, 1.1 and 1/2. Of the two groups only the first, the first two
completions, has unequal rewards. The snapshot is 2, 1/2 | 10 | 1, 1, 1 times the behavior policy.
"""

from typing import Any

import numpy as np
import pytest
import torch

from learner.objective.core import Step
from learner.objective.registry import build

OF = np.array([0, 0, 1, 2, 2, 2])
A = np.array([1, 1, -2, -0.5, -0.5, -0.5])
R = np.array([2, 0.5, 1.1, 0.25, 2, 1])
W = np.array([2, 0.5, 10, 1, 1, 1])
B = np.log([0.3, 0.4, 0.05, 0.6, 0.2, 0.9])
LOG_PI = B + np.log(R)
BY_TOKEN = np.full(6, 1 / 6)
BY_COMPLETION = np.array([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])
INFORMATIVE = np.array([1 / 3, 1 / 3, 1 / 3, 0, 0, 0])

Numbers = np.ndarray[Any, Any]


def compare(name: str, values: Numbers, slopes: Numbers, **knobs: Any) -> None:
    step = Step(
        policy_logprobs=torch.from_numpy(LOG_PI),
        behavior_logprobs=torch.from_numpy(B),
        advantages=torch.from_numpy(A),
        sequence_of=torch.from_numpy(OF),
        group_of=torch.tensor([0, 0, 1]),
        rewards=torch.tensor([1.0, 0.0, 0.3]),
        proximal_logprobs=torch.from_numpy(B + np.log(W)),
    )
    token_loss = build(name, knobs)(step)
    np.testing.assert_allclose(token_loss.value, values, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(token_loss.slope, slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "knobs", "weights", "mean"),
    [
        ("reinforce", {}, [1, 1, 1, 1, 1, 1], BY_TOKEN),
        ("aipo", {}, [2, 0.5, 1.1, 0.25, 2, 1], BY_TOKEN),
        ("aipo", {"cap": 1.5}, [1.5, 0.5, 1.1, 0.25, 1.5, 1], BY_TOKEN),
        ("cispo", {}, [2, 0.5, 1.1, 0.25, 2, 1], BY_TOKEN),
        ("cispo", {"eps_low": 0.3, "eps_high": 0.6}, [1.6, 0.7, 1.1, 0.7, 1.6, 1], BY_TOKEN),
        ("topr", {}, [1, 1, 1, 0.5, 0.5, 0.5], BY_COMPLETION),
        ("minpro", {}, [2, 1, 1.1, 0.25, 0.5, 0.25], BY_TOKEN),
        ("minpro", {"cap": 1.5}, [1.5, 1, 1.1, 0.25, 0.5, 0.25], BY_TOKEN),
    ],
)
def test_weighted_scores(name: str, knobs: dict[str, float], weights: list[float], mean: Numbers) -> None:
    slopes = -mean * np.array(weights) * A
    compare(name, slopes * LOG_PI, slopes, **knobs)


def test_grpo() -> None:
    """Clipped: the 2 that was good (gain 1.2) and the 1/4 that was bad (gain -0.8/2)."""
    gains = np.array([1.2, 0.5, -2.2, -0.4, -1, -0.5])
    slopes = np.array([0, -0.5, 2.2, 0, 1, 0.5])
    compare("grpo", -BY_COMPLETION * gains, BY_COMPLETION * slopes)


def test_dapo() -> None:
    """The third completion is alone in its group; the other three tokens are averaged, the first clipped at 1.28."""
    gains = np.array([1.28, 0.5, -2.2, 0, 0, 0])
    slopes = np.array([0, -0.5, 2.2, 0, 0, 0])
    compare("dapo", -INFORMATIVE * gains, INFORMATIVE * slopes)


@pytest.mark.parametrize(("over_cap", "w"), [("truncate", 5), ("drop", 0)])
def test_decoupled_ppo(over_cap: str, w: float) -> None:
    """Ratios to the snapshot: 1, 1 | 0.11 | 1/4, 2, 1. Clipped: 0.11 and 1/4, both bad (gain 0.8 A)."""
    gains = np.array([2, 0.5, -1.6 * w, -0.4, -1, -0.5])
    slopes = np.array([-2, -0.5, 0, 0, 1, 0.5])
    compare("decoupled_ppo", -BY_TOKEN * gains, BY_TOKEN * slopes, over_cap=over_cap)


def test_gspo() -> None:
    """Geometric means 1, 1.1 and 2^(-1/3). Bad at 1.1 is not clipped; bad at 0.79 is, at 0.9997."""
    gains = np.array([1, 1, -2.2, -0.49985, -0.49985, -0.49985])
    slopes = np.array([-1, -1, 2.2, 0, 0, 0])
    compare("gspo", -BY_COMPLETION * gains, BY_COMPLETION * slopes)


def test_sapo() -> None:
    """For the first token sigmoid(1) = 0.731058..., 4 p (1 - p) = 0.786447..., times its ratio 2: 1.572895..."""
    tau = np.array([1, 1, 1.05, 1.05, 1.05, 1.05])
    p = 1 / (1 + np.exp(-tau * (R - 1)))
    slopes = -4 * p * (1 - p) * R * A
    assert slopes[0] == pytest.approx(-1.5728954659318548)
    compare("sapo", -BY_COMPLETION * 4 / tau * p * A, BY_COMPLETION * slopes)

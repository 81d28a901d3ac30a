"""Group advantages against hand-made numbers, and the groups that carry no signal."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.objective.advantages import Normalization, group_advantages, has_signal, is_broken

NORMALIZATIONS: tuple[Normalization, ...] = ("group_std", "group_mean", "leave_one_out")


def advantages(rewards: list[float], groups: list[int], normalization: Normalization) -> list[float]:
    out: list[float] = group_advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), normalization
    ).tolist()
    return out


def test_a_rare_success_among_eight() -> None:
    """Mean 1/8; std with n - 1: sqrt((7/8)^2 + 7 (1/8)^2)/7) = sqrt(1/8). (7/8)/sqrt(1/8) = 2.4749."""
    values = advantages([1.0] + [0.0] * 7, [0] * 8, "group_std")
    assert values[0] == pytest.approx(7 / 8 * math.sqrt(8), rel=1e-6)
    assert values[1:] == pytest.approx([-1 / 8 * math.sqrt(8)] * 7, rel=1e-6)


def test_the_other_two_by_hand() -> None:
    assert advantages([1, 0, 0, 3], [0, 0, 0, 0], "group_mean") == pytest.approx([0, -1, -1, 2])
    assert advantages([1, 0, 0, 3], [0, 0, 0, 0], "leave_one_out") == pytest.approx([0, -4 / 3, -4 / 3, 8 / 3])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_groups_do_not_see_each_other_in_any_order(normalization: Normalization) -> None:
    together = advantages([1, 5, 0, 5, 1, 8], [0, 1, 0, 1, 0, 1], normalization)
    assert together[0::2] == pytest.approx(advantages([1, 0, 1], [0, 0, 0], normalization))
    assert together[1::2] == pytest.approx(advantages([5, 5, 8], [0, 0, 0], normalization))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(reward=st.floats(-1e6, 1e6), size=st.integers(1, 9))
def test_equal_rewards_and_groups_of_one_are_exactly_zero(
    normalization: Normalization, reward: float, size: int
) -> None:
    assert advantages([reward] * size, [0] * size, normalization) == [0.0] * size


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(rewards=st.lists(st.integers(-4, 4), min_size=2, max_size=12))
def test_advantages_of_a_group_sum_to_zero(normalization: Normalization, rewards: list[int]) -> None:
    assert sum(advantages([float(r) for r in rewards], [0] * len(rewards), normalization)) == pytest.approx(0, abs=1e-9)


def test_signal_is_seen_per_group() -> None:
    assert has_signal(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])).tolist() == [False, True]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("broken", [[math.nan, 0], [math.inf, math.inf], [-math.inf, 1], [math.nan, math.nan]])
def test_a_reward_that_is_not_finite_spoils_its_group_and_no_other(
    normalization: Normalization, broken: list[float]
) -> None:
    values = advantages([1, *broken, 0, 5], [0, 1, 1, 0, 2], normalization)
    assert [math.isnan(v) for v in values] == [False, True, True, False, False]
    assert values[0] > 0


def test_a_group_that_cannot_be_judged_counts_as_one_with_signal() -> None:
    """Who leaves out groups without signal must not leave it out quietly; one without any completion has none."""
    rewards, groups = torch.tensor([math.nan, 1, math.inf, math.inf, 2, 2]), torch.tensor([0, 0, 1, 1, 3, 3])
    assert has_signal(rewards, groups).tolist() == [True, True, False, False]
    assert is_broken(rewards, groups).tolist() == [True, True, False, False]


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="'z_score' is none of"):
        advantages([1.0], [0], "z_score")  # type: ignore[arg-type]

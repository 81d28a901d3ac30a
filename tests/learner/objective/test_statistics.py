"""The statistics that an operator sees, against numbers made by hand."""

import math

import pytest
import torch

from learner.objective.statistics import ratio_statistics


def test_fresh_data_is_fully_trusted() -> None:
    s = ratio_statistics(torch.zeros(6), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert (s.token_ess.item(), s.sequence_ess.item(), s.kl.item()) == (1, 1, 0)
    assert (s.ratio_min.item(), s.ratio_max.item(), s.capped_share.item()) == (1, 1, 1)


def test_ratios_two_and_one_half_by_hand() -> None:
    log2 = math.log(2)
    s = ratio_statistics(torch.tensor([log2, -log2], dtype=torch.float64), torch.tensor([0, 1]), 2)
    assert s.token_ess.item() == pytest.approx(25 / 34)
    assert (s.ratio_min.item(), s.ratio_max.item()) == pytest.approx((0.5, 2))
    assert s.log_ratio_abs_max.item() == pytest.approx(log2)
    assert s.capped_share.item() == 0.5
    assert s.kl.item() == pytest.approx((2 * log2 - 1 + 0.5 - log2 / 2) / 2)


def test_sequence_ess_sees_what_token_ess_does_not() -> None:
    """300 tokens off by 0.005 nats are nearly equal tokens but a factor of 4.5 as one completion."""
    drift = torch.cat([torch.full((300,), 0.005), torch.full((300,), 0.0)]).double()
    s = ratio_statistics(drift, torch.tensor([0] * 300 + [1] * 300), 2)
    assert s.token_ess.item() > 0.99999
    w = math.exp(1.5)
    assert s.sequence_ess.item() == pytest.approx((w + 1) ** 2 / (2 * (w * w + 1)))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_non_finite_ratios_are_said(broken: float) -> None:
    s = ratio_statistics(torch.tensor([0.0, broken]), torch.tensor([0, 0]), 1)
    assert not torch.isfinite(torch.stack([s.token_ess, s.sequence_ess, s.kl])).any()

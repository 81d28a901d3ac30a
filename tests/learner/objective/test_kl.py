"""KL estimators: values, slopes, expectations by enumeration, and both tails."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.objective.kl import K3_LINEAR_BELOW, KlEstimator, kl_to, kl_value_and_slope


def at(d: float, estimator: KlEstimator) -> tuple[float, float]:
    value, slope = kl_value_and_slope(torch.tensor([d], dtype=torch.float64), estimator)
    return value.item(), slope.item()


@given(st.floats(-9, 9))
def test_value_and_slope_are_those_of_the_formulas(d: float) -> None:
    r = math.exp(d)
    assert at(d, "unbiased") == pytest.approx((r * d - r + 1, r * d), rel=1e-9, abs=1e-12)
    assert at(d, "k3") == pytest.approx((d + 1 / r - 1, 1 - 1 / r), rel=1e-9, abs=1e-12)


@given(st.floats(-60, 60), st.sampled_from(["unbiased", "k3"]))
def test_the_slope_is_the_derivative_of_the_value(d: float, estimator: KlEstimator) -> None:
    h = 1e-5
    numeric = (at(d + h, estimator)[0] - at(d - h, estimator)[0]) / (2 * h)
    _, slope = at(d, estimator)
    if abs(d - K3_LINEAR_BELOW) > h:
        # d r/dd = r: the unbiased value r d - r + 1 has derivative r d, k3's d + 1/r - 1 has 1 - 1/r
        assert numeric == pytest.approx(slope, rel=1e-4, abs=1e-8)


@given(st.floats(-80, 80), st.sampled_from(["unbiased", "k3"]))
def test_the_pull_is_always_towards_the_behavior_policy(d: float, estimator: KlEstimator) -> None:
    value, slope = at(d, estimator)
    assert value >= 0
    assert math.isfinite(value)
    assert slope * d >= 0  # descending moves log_ratio towards 0


@pytest.mark.parametrize("d", [-10.001, -20, -88, -1000, -1e6])
def test_k3_stays_finite_and_keeps_its_sign_where_its_exponent_would_overflow(d: float) -> None:
    value, slope = kl_value_and_slope(torch.tensor([d], dtype=torch.float32), "k3")
    assert torch.isfinite(value).all()
    assert slope.item() == pytest.approx(1 - math.exp(10), rel=1e-6)


@pytest.mark.parametrize("d", [1e-6, 1e-4, 1e-2])
def test_tiny_log_ratios_keep_their_precision_in_float32(d: float) -> None:
    for estimator in ("unbiased", "k3"):
        value, _ = kl_value_and_slope(torch.tensor([d], dtype=torch.float32), estimator)
        assert value.item() == pytest.approx(d * d / 2, rel=d + 1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("estimator", ["unbiased", "k3"])
@pytest.mark.parametrize("log_ratio", [-3.0, 0.0, 3.0])
def test_the_pull_to_another_policy_keeps_its_digits_near_it_in_float32(
    size: float, estimator: KlEstimator, log_ratio: float
) -> None:
    """Against the series d^2/2 - d^3/6 + ...: of the terms as they are written only rounding would be left."""
    d = torch.tensor([size, -size], dtype=torch.float32)
    value, slope = kl_to(torch.full_like(d, log_ratio), d, estimator)
    ratio = math.exp(log_ratio) if estimator == "unbiased" else 1.0
    for i, x in enumerate(d.tolist()):
        series = ratio * sum((-x) ** k / math.factorial(k) for k in range(2, 20))
        assert value[i].item() == pytest.approx(series, rel=1e-6)
    exact = ratio * (d.double() if estimator == "unbiased" else -torch.expm1(-d.double()))
    torch.testing.assert_close(slope.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("d", [-300.0, -100.0, -1.0, 1.0, 80.0])
@pytest.mark.parametrize("log_ratio", [-300.0, -100.0, -1.0, 1.0])
def test_the_unbiased_pull_is_finite_in_the_tails_and_what_float64_says(d: float, log_ratio: float) -> None:
    """A ratio of 0 does not meet an overflowed exp(-d); what itself is beyond float32 is infinite, never NaN."""
    exact_value = math.exp(log_ratio) * (d - 1) + math.exp(log_ratio - d)
    value, slope = kl_to(torch.tensor([log_ratio]), torch.tensor([d]), "unbiased")
    assert value.double().item() == pytest.approx(torch.tensor(exact_value).item(), rel=1e-6)
    assert slope.item() == pytest.approx(math.exp(log_ratio) * d, rel=1e-6, abs=1e-44)


@given(st.floats(-60, 60), st.sampled_from(["unbiased", "k3"]))
def test_to_the_behavior_policy_both_are_one(d: float, estimator: KlEstimator) -> None:
    x = torch.tensor([d], dtype=torch.float64)
    for one, other in zip(kl_to(x, x, estimator), kl_value_and_slope(x, estimator), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_expectations_by_enumeration() -> None:
    """Under b: E[unbiased] = KL(pi||b) and E[k3] = chi2(b||pi) - KL(b||pi), for categorical policies."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        log_pi, log_b = torch.log_softmax(torch.randn(2, 7, generator=generator, dtype=torch.float64), -1)
        pi, b = log_pi.exp(), log_b.exp()
        unbiased, _ = kl_value_and_slope(log_pi - log_b, "unbiased")
        k3, _ = kl_value_and_slope(log_pi - log_b, "k3")
        assert (b * unbiased).sum().item() == pytest.approx((pi * (log_pi - log_b)).sum().item(), rel=1e-10)
        chi2 = (b**2 / pi).sum() - 1
        assert (b * k3).sum().item() == pytest.approx((chi2 - (b * (log_b - log_pi)).sum()).item(), rel=1e-10)


def test_the_unbiased_gradient_is_the_gradient_of_kl() -> None:
    """E_b[slope * grad log pi] = grad KL(pi||b), by enumeration and autograd."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    log_b = torch.log_softmax(torch.randn(7, generator=generator, dtype=torch.float64), -1)
    log_pi = torch.log_softmax(logits, -1)
    (expected,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_b)).sum(), logits, retain_graph=True)
    value, slope = kl_value_and_slope(log_pi - log_b, "unbiased")
    (sampled,) = torch.autograd.grad((log_b.exp() * (value + slope * (log_pi - log_pi.detach()))).sum(), logits)
    torch.testing.assert_close(sampled, expected, rtol=1e-10, atol=1e-12)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="'k5' is none of 'unbiased', 'k3'"):
        kl_value_and_slope(torch.zeros(1), "k5")  # type: ignore[arg-type]

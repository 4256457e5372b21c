from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_1samp

from mis_lab.core.intervals import mean_interval, percentile_interval, wilson


@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.5, 0.9, 0.95])
)
def test_wilson_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    ours = wilson(successes / n, n, confidence)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert float(ours.low) == pytest.approx(theirs.low, abs=1e-12)
    assert float(ours.high) == pytest.approx(theirs.high, abs=1e-12)
    assert ours.estimate == successes / n


@given(st.floats(0, 1), st.integers(1, 500))
def test_wilson_limits_solve_the_score_equation(proportion: float, n: int) -> None:
    """(p̂ − p)² = z²·p(1 − p)/n at both limits, whole successes or not."""
    interval = wilson(proportion, n)
    z = norm.ppf(0.975)
    for limit in (float(interval.low), float(interval.high)):
        assert (proportion - limit) ** 2 == pytest.approx(z**2 * limit * (1 - limit) / n, abs=1e-14)
    assert 0 <= interval.low <= proportion + 1e-12
    assert proportion - 1e-12 <= interval.high <= 1


def test_wilson_covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.98):
        interval = wilson(rng.binomial(20, p, 20_000) / 20, 20)
        covered = ((interval.low <= p) & (p <= interval.high)).mean()
        assert 0.92 < covered < 0.98


def test_wilson_takes_arrays_and_the_known_values_hold() -> None:
    interval = wilson(np.array([1.0, 0.5]), 20)
    assert interval.low == pytest.approx([0.8389, 0.2993], abs=1e-4)
    assert interval.high == pytest.approx([1.0, 0.7007], abs=1e-4)
    assert float(wilson(1.0, 100).low) == pytest.approx(0.9630, abs=1e-4)


@pytest.mark.parametrize("n", [0, -1])
def test_no_trials_give_no_interval(n: int) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0.5, n)


def test_percentiles_are_those_of_the_resampled_estimates() -> None:
    resampled = np.arange(1001.0)[:, None] * np.array([1.0, -2.0])
    interval = percentile_interval(np.array([500.0, -1000.0]), resampled, confidence=0.9)
    assert interval.low == pytest.approx([50, -1900])
    assert interval.high == pytest.approx([950, -100])
    assert interval.estimate == pytest.approx([500, -1000])


def test_resamples_without_an_estimate_are_left_out() -> None:
    resampled = np.concatenate([np.arange(101.0), np.full(50, np.nan)])
    interval = percentile_interval(50.0, resampled, confidence=0.5)
    assert (float(interval.low), float(interval.high)) == (25, 75)


def test_the_bootstrap_covers_the_mean_of_a_normal() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        sample = rng.standard_normal(60)
        means = sample[rng.integers(0, 60, (400, 60))].mean(1)
        interval = percentile_interval(sample.mean(), means)
        covered += bool(interval.low <= 0 <= interval.high)
    assert 0.89 < covered / 300 < 0.99


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40).filter(lambda values: np.ptp(values) > 1e-6))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert tuple(mean_interval(np.array(values))) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_a_single_value_has_a_mean_and_no_limits() -> None:
    assert np.isnan(mean_interval(np.array([]))).all()
    interval = mean_interval(np.array([0.25]))
    assert interval.estimate == 0.25
    assert np.isnan([interval.low, interval.high]).all()

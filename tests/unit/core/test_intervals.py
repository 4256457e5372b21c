from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, bootstrap, norm, ttest_1samp
from scipy.stats import t as student

from mis_lab.core.intervals import (
    bounded_mean_interval,
    expanded_confidence,
    jackknife_interval,
    leave_out_sums,
    mean_interval,
    percentile_interval,
    student_interval,
    wilson,
)

ROWS = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=4).map(np.array)
)


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
    assert tuple(student_interval(np.array(values))) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_a_single_value_has_a_mean_and_no_limits() -> None:
    assert np.isnan(student_interval(np.array([]))).all()
    interval = student_interval(np.array([0.25]))
    assert interval.estimate == 0.25
    assert np.isnan([interval.low, interval.high]).all()


# Means of rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "confidence"), [(4, 0.95), (5, 0.99), (21, 0.9), (400, 0.95)])
def test_expanded_percentiles_of_a_normal_are_the_t_interval(n, confidence):
    """Resampled means of normal values have a standard deviation of s·√((n − 1)/n)/√n."""
    values = np.random.default_rng(0).standard_normal(n)
    found = expanded_confidence(n - 1, confidence=confidence)
    half = norm.ppf(0.5 + found / 2) * values.std(ddof=0) / np.sqrt(n)
    low, high = student.interval(confidence, n - 1, values.mean(), values.std(ddof=1) / np.sqrt(n))
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high), rel=1e-6)
    assert found > confidence


def test_the_interval_of_a_mean_is_scipys_bootstrap_at_the_expanded_confidence():
    rng = np.random.default_rng(1)
    values = rng.beta(5, 1, (3, 15))
    one_more = np.concatenate([values, np.full((3, 1), 0.5)], 1)
    for interval, sample in ((mean_interval, values), (bounded_mean_interval, one_more)):
        found = interval(values, np.random.default_rng(2), 20_000)
        assert found.estimate == pytest.approx(values.mean(1))
        expected = bootstrap(
            (sample,),
            np.mean,
            axis=1,
            n_resamples=20_000,
            method="percentile",
            confidence_level=expanded_confidence(sample.shape[1] - 1),
            rng=np.random.default_rng(3),
        ).confidence_interval
        width = expected.high - expected.low
        assert (np.abs(found.low - expected.low) < 0.05 * width).all()
        assert (np.abs(found.high - expected.high) < 0.05 * width).all()


@given(ROWS, st.integers(0, 1000))
def test_a_bounded_interval_keeps_the_bounds_and_has_the_mean_in_it(rows, seed):
    found = bounded_mean_interval(rows, np.random.default_rng(seed), 60)
    assert (found.estimate == rows.mean(1)).all()
    assert (found.low <= found.estimate).all()
    assert (found.estimate <= found.high).all()
    assert (found.low >= 0).all()
    assert (found.high <= 1).all()
    alone = bounded_mean_interval(rows[:1], np.random.default_rng(seed), 60)
    assert (alone.low[0], alone.high[0]) == pytest.approx((found.low[0], found.high[0]), rel=1e-12)


@given(ROWS, st.integers(0, 1000))
def test_what_is_as_far_below_one_half_has_the_mirrored_interval(rows, seed):
    found, mirrored = (bounded_mean_interval(one, np.random.default_rng(seed), 60) for one in (rows, 1 - rows))
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-12)
    assert mirrored.high == pytest.approx(1 - found.low, abs=1e-12)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_equal_values_have_an_interval_by_how_often_the_additional_one_is_drawn(n):
    found = bounded_mean_interval(np.ones((1, n)), np.random.default_rng(0), 40_000)
    tail = (1 - expanded_confidence(n)) / 2
    most = binom.ppf(1 - tail, n + 1, 1 / (n + 1))
    assert found.low[0] == pytest.approx(1 - 0.5 * most / (n + 1))
    assert (found.estimate[0], found.high[0]) == (1, 1)
    plain = mean_interval(np.ones((1, n)), np.random.default_rng(0), 500)
    assert plain.low[0] == plain.high[0] == pytest.approx(1)


def test_a_single_value_tells_nothing_about_its_spread():
    found = mean_interval(np.array([[0.3], [0.4]]), np.random.default_rng(0), 10)
    assert (found.estimate == [0.3, 0.4]).all()
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("n", [5, 20, 100])
@pytest.mark.parametrize("failing", [0.03, 0.1, 0.3])
def test_the_mean_of_values_few_of_which_are_low_is_covered(n, failing):
    """Percentiles of the values alone cover .43 to .94 here."""
    rng = np.random.default_rng(4)
    low = rng.random((2000, n)) < failing
    values = np.where(low, rng.beta(2, 8, low.shape), rng.beta(30, 1, low.shape))
    truth = failing * 0.2 + (1 - failing) * 30 / 31
    found = bounded_mean_interval(values, np.random.default_rng(5), 500)
    assert np.mean((found.low <= truth) & (truth <= found.high)) > 0.9
    if failing < 0.3:
        plain = mean_interval(values, np.random.default_rng(5), 500)
        assert np.mean((plain.low <= truth) & (truth <= plain.high)) < 0.945


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_sums_without_a_group_are_sums_of_the_other_images(groups: list[int], seed: int) -> None:
    groups_n = np.array(groups)
    values = np.random.default_rng(seed).normal(size=(2, len(groups)))
    found = leave_out_sums(values, groups_n)
    expected = [values.sum(1), *(values[:, groups_n != group].sum(1) for group in sorted(set(groups)))]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40).filter(lambda values: np.ptp(values) > 1e-6))
def test_the_jackknife_of_a_mean_of_single_images_is_students(values: list[float]) -> None:
    groups_n = np.arange(len(values))
    counts = leave_out_sums(np.ones(len(values)), groups_n)
    found = jackknife_interval(leave_out_sums(np.array(values), groups_n) / counts, groups_n)
    expected = student_interval(np.array(values))
    assert tuple(map(float, found)) == pytest.approx(tuple(map(float, expected)), rel=1e-6, abs=1e-6)


def test_the_jackknife_of_equal_groups_is_students_of_their_means() -> None:
    values, groups_n = np.random.default_rng(0).normal(size=24), np.repeat(np.arange(6), 4)
    counts = leave_out_sums(np.ones(24), groups_n)
    found = jackknife_interval(leave_out_sums(values, groups_n) / counts, groups_n)
    assert tuple(map(float, found)) == pytest.approx(tuple(student_interval(values.reshape(6, 4).mean(1))))


@pytest.mark.parametrize("groups", [[0, 0, 0], [0] * 9 + [1]])
def test_a_group_that_is_nearly_all_leaves_no_limits(groups: list[int]) -> None:
    groups_n = np.array(groups)
    found = jackknife_interval(leave_out_sums(np.arange(len(groups), dtype=float), groups_n), groups_n)
    assert np.isfinite(found.estimate)
    assert np.isnan([found.low, found.high]).all()


def test_an_estimate_that_is_none_without_a_group_has_no_limits() -> None:
    found = jackknife_interval(np.array([[1.0, 1.0], [np.inf, 0.5], [1.0, 1.5]]), np.arange(2))
    assert np.isnan([found.low[0], found.high[0]]).all()
    assert found.low[1] < 1 < found.high[1]


def test_groups_that_are_not_as_many_as_images_are_refused() -> None:
    with pytest.raises(ValueError, match="7 images have 2 groups"):
        leave_out_sums(np.ones((2, 7)), np.array([0, 1]))
    with pytest.raises(ValueError, match="3 estimates without a group, of 2 groups"):
        jackknife_interval(np.ones(4), np.array([0, 1, 1]))

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu, norm, ttest_ind

from mis_lab.mis.differences import cliffs_delta, holm, mann_whitney, unit_bootstrap

VALUES = st.lists(st.integers(0, 6).map(lambda number: number / 6), min_size=1, max_size=12).map(np.array)


def by_pairs(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sign(a[:, None] - b[None]).mean())


@given(VALUES, VALUES)
def test_cliffs_delta_counts_pairs(a, b):
    assert cliffs_delta(a, b) == pytest.approx(by_pairs(a, b), abs=1e-12)
    assert cliffs_delta(b, a) == pytest.approx(-cliffs_delta(a, b), abs=1e-12)
    # U of Mann and Whitney counts the same pairs.
    assert 2 * mannwhitneyu(a, b).statistic / (len(a) * len(b)) - 1 == pytest.approx(cliffs_delta(a, b), abs=1e-12)


def test_mann_whitney_is_scipys_and_knows_its_limits():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 40), rng.normal(0, 1, 60)
    assert mann_whitney(a, b) == mannwhitneyu(a, b, alternative="two-sided").pvalue
    assert np.isnan(mann_whitney(a, b[:0]))
    assert mann_whitney(np.ones(9), np.ones(4)) == 1.0


def test_mann_whitney_keeps_its_level_over_units_where_pooled_tasks_do_not():
    """Units differ, tasks of a unit share that: the unit is the replicate."""
    rng = np.random.default_rng(1)
    n_rounds, found_units, found_tasks = 400, 0, 0
    for _ in range(n_rounds):
        sets = []
        for n_units in (25, 60):
            chance = np.clip(rng.normal(0.7, 0.1, n_units), 0, 1)
            sets.append(rng.random((n_units, 20)) < chance[:, None])
        a, b = sets
        found_units += mann_whitney(a.mean(1), b.mean(1)) < 0.05
        found_tasks += mannwhitneyu(a.ravel(), b.ravel(), method="asymptotic").pvalue < 0.05
    assert (
        0.05 - 4 * (0.05 * 0.95 / n_rounds) ** 0.5 < found_units / n_rounds < 0.05 + 4 * (0.05 * 0.95 / n_rounds) ** 0.5
    )
    assert found_tasks / n_rounds > 0.1


def test_bootstrap_over_units_is_scipys():
    rng = np.random.default_rng(2)
    a, b = rng.beta(4, 2, 50), rng.beta(3, 3, 80)
    found = unit_bootstrap(a, b, 2000, seed=0)
    statistics = {
        "cliffs_delta": by_pairs,
        "median_difference": lambda x, y: np.median(x) - np.median(y),
        "mean_difference": lambda x, y: np.mean(x) - np.mean(y),
    }
    # Expanded as much as makes a t interval (Welch's) of a normal one.
    welch = ttest_ind(a, b, equal_var=False).confidence_interval()
    spread = np.sqrt(a.var() / len(a) + b.var() / len(b))
    expanded = 1 - 2 * norm.cdf(-(welch.high - welch.low) / 2 / spread)
    assert 0.95 < expanded < 0.96
    for name, statistic in statistics.items():
        interval = getattr(found, name)
        assert interval.estimate == pytest.approx(statistic(a, b))
        expected = bootstrap(
            (a, b),
            statistic,
            n_resamples=1000,
            method="percentile",
            confidence_level=0.95 if name == "median_difference" else expanded,
            vectorized=False,
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = expected.high - expected.low
        assert interval.low == pytest.approx(expected.low, abs=0.1 * width)
        assert interval.high == pytest.approx(expected.high, abs=0.1 * width)
        assert all(isinstance(value, float) for value in interval)
    assert found == unit_bootstrap(a, b, 2000, seed=0)
    assert found.mean_difference.low != unit_bootstrap(a, b, 2000, seed=1).mean_difference.low
    assert all(np.isnan(interval).all() for interval in unit_bootstrap(a, b[:0], 10, seed=0))


@pytest.mark.parametrize(("n_a", "n_b"), [(6, 6), (8, 60)])
def test_intervals_of_few_units_leave_out_zero_no_more_often_than_promised(n_a, n_b):
    """Plain percentiles do in 10 of 100 cases."""
    rng, n_rounds = np.random.default_rng(3), 400
    outside = dict.fromkeys(("mean_difference", "cliffs_delta"), 0)
    for number in range(n_rounds):
        found = unit_bootstrap(rng.normal(0, 1, n_a), rng.normal(0, 1, n_b), 200, seed=number)
        for name in outside:
            outside[name] += not getattr(found, name).low <= 0 <= getattr(found, name).high
    for name, count in outside.items():
        assert count / n_rounds < 0.05 + 3.5 * (0.05 * 0.95 / n_rounds) ** 0.5, name


def test_expansion_of_two_sets_is_welchs_and_equal_values_have_no_width():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 3, 5), rng.normal(0, 1, 9)
    found = unit_bootstrap(a, b, 4000, seed=0).mean_difference
    welch = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert found.high - found.low == pytest.approx(welch.high - welch.low, rel=0.25)
    same = unit_bootstrap(np.full(4, 0.5), np.full(3, 0.25), 50, seed=0)
    assert same.mean_difference == (0.25, 0.25, 0.25)
    assert same.cliffs_delta == (1, 1, 1)


def test_one_unit_tells_nothing_about_the_spread_of_its_set():
    found = unit_bootstrap(np.array([0.7]), np.array([0.2, 0.4, 0.9]), 50, seed=0)
    assert found.mean_difference.estimate == pytest.approx(0.2)
    assert found.cliffs_delta.estimate == pytest.approx(1 / 3)
    for interval in found:
        assert np.isnan([interval.low, interval.high]).all()


def test_holm_steps_down():
    # Worked through by hand: sorted .01 .02 .03 .04 times 4 3 2 1, never falling.
    assert holm([0.02, 0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm([0.6, 0.4]).tolist() == pytest.approx([0.8, 0.8])
    assert holm([0.03]).tolist() == [0.03]
    with_nan = holm([np.nan, 0.02, 0.01])
    assert np.isnan(with_nan[0])
    assert with_nan[1:].tolist() == pytest.approx([0.02, 0.02])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    rejected, order = set(), np.argsort(p_values, kind="stable")
    for step, place in enumerate(order):
        if p_values[place] * (len(p_values) - step) > level:
            break
        rejected.add(int(place))
    assert {place for place, p in enumerate(holm(p_values)) if p <= level} == rejected

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu

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
    for name, statistic in statistics.items():
        interval = getattr(found, name)
        assert interval.estimate == pytest.approx(statistic(a, b))
        expected = bootstrap(
            (a, b), statistic, n_resamples=1000, method="percentile", vectorized=False, rng=np.random.default_rng(0)
        ).confidence_interval
        width = expected.high - expected.low
        assert interval.low == pytest.approx(expected.low, abs=0.1 * width)
        assert interval.high == pytest.approx(expected.high, abs=0.1 * width)
        assert all(isinstance(value, float) for value in interval)
    assert found == unit_bootstrap(a, b, 2000, seed=0)
    assert found.mean_difference.low != unit_bootstrap(a, b, 2000, seed=1).mean_difference.low
    assert all(np.isnan(interval).all() for interval in unit_bootstrap(a, b[:0], 10, seed=0))


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

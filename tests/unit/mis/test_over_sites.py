"""Sites as replicates, against SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon

from mis_lab.mis.compare import compare_sites
from mis_lab.mis.over_sites import OverSites, over_sites
from tests.unit.mis.test_compare import unit_scores


def compared(shifts: list[float]):
    rng = np.random.default_rng(0)
    pairs = {
        f"layer {place}": (
            unit_scores(rng.normal(0.3 + shift, 0.2, (30, 20)), site=f"layer {place}"),
            unit_scores(rng.normal(0.3, 0.2, (25, 20)), kind="neuron", site=f"layer {place}"),
        )
        for place, shift in enumerate(shifts)
    }
    return compare_sites(pairs, "soft", n_bootstrap=20)


def test_numbers_are_those_of_scipy_on_the_sites_mean_differences() -> None:
    comparisons = compared([0.05, 0.1, -0.02, 0.2, 0.15, 0.07, 0.12])
    (found,) = over_sites(comparisons)
    values = [float(one.mean_difference.estimate) for one in comparisons]
    interval = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.differences == values
    assert found.p_value == pytest.approx(wilcoxon(values).pvalue)
    assert tuple(found.mean_difference) == pytest.approx((np.mean(values), interval.low, interval.high))
    assert OverSites.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize("n", [1, 3, 5, 6, 8])
def test_the_least_p_is_reached_when_all_sites_agree(n: int) -> None:
    (found,) = over_sites(compared([0.3 + 0.01 * place for place in range(n)]))
    assert found.p_value == pytest.approx(found.least_p)
    assert (found.least_p < 0.05) == (n >= 6)
    assert found.rank_biserial == 1.0


def test_a_site_without_scores_counts_for_nothing() -> None:
    pairs = {
        "a": (unit_scores(np.ones((4, 20))), unit_scores(np.zeros((4, 20)), kind="neuron")),
        "b": (unit_scores(np.ones((4, 20)), status=[1] * 4), unit_scores(np.zeros((4, 20)), kind="neuron")),
    }
    (found,) = over_sites(compare_sites(pairs, "soft", n_bootstrap=20))
    assert found.n == 1
    assert np.isnan(found.mean_difference.low)

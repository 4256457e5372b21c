from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import bootstrap, f_oneway, kendalltau, spearmanr

from mis_lab.core.errors import DataError
from mis_lab.mis.agreement import agreement_table, rank_agreement, reseed_noise, spearman_matrix

SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=15).map(np.array)

# Six subjects by four judges: the worked example of Shrout and Fleiss (1979), table 2 and its results.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)


@given(SCORES)
def test_correlations_are_scipys(pairs):
    a, b = pairs.T / 6
    assume(np.ptp(a) and np.ptp(b))
    found = rank_agreement(a, b, n_bootstrap=5)
    assert found.spearman.estimate == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert found.kendall.estimate == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    assert found.n_units == len(a)


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    a = rng.random(80)
    b = np.round(a + rng.normal(0, 0.3, 80), 1)
    found = rank_agreement(a, b, n_bootstrap=800)
    for interval, statistic in (
        (found.spearman, lambda x, y: spearmanr(x, y).statistic),
        (found.kendall, lambda x, y: kendalltau(x, y).statistic),
    ):
        expected = bootstrap(
            (a, b),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=400,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = expected.high - expected.low
        assert interval.low == pytest.approx(expected.low, abs=0.2 * width)
        assert interval.high == pytest.approx(expected.high, abs=0.2 * width)
    assert found == rank_agreement(a, b, n_bootstrap=800)


@given(SCORES, st.integers(0, 1000))
def test_resamples_by_pairs_and_by_sorting_are_the_same(pairs, seed):
    a, b = pairs.T / 6
    assume(np.ptp(a) and np.ptp(b))
    by_pairs = rank_agreement(a, b, n_bootstrap=12, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mis_lab.mis.agreement._MOST_PAIRS", 0)
        by_sorting = rank_agreement(a, b, n_bootstrap=12, seed=seed)
    for one, other in ((by_pairs.kendall, by_sorting.kendall), (by_pairs.spearman, by_sorting.spearman)):
        assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


def test_units_without_both_scores_are_left_out():
    a, b = np.array([0.1, np.nan, 0.3, 0.4, 0.9]), np.array([0.2, 0.5, 0.1, np.nan, 0.8])
    found = rank_agreement(a, b, n_bootstrap=50)
    assert found.n_units == 3
    assert found.spearman.estimate == pytest.approx(0.5)
    flat = rank_agreement(np.full(5, 0.5), b)
    assert flat.n_units == 4
    assert np.isnan(flat.spearman).all()
    assert np.isnan(rank_agreement(a[:1], b[:1]).kendall).all()
    two = rank_agreement(np.array([0.0, 1.0]), np.array([1.0, 0.0]), n_bootstrap=1, seed=1)
    assert two.kendall.estimate == pytest.approx(-1)
    with pytest.raises(ValueError, match="5 and 4 scores"):
        rank_agreement(a, b[:4])


def test_the_table_has_every_two_scores():
    rng = np.random.default_rng(1)
    scores = {name: rng.random(20) for name in ("dreamsim", "lpips", "ms")}
    table = agreement_table(scores, n_bootstrap=20)
    assert [(row.first, row.second) for row in table] == [("dreamsim", "lpips"), ("dreamsim", "ms"), ("lpips", "ms")]
    assert table[1] == rank_agreement(scores["dreamsim"], scores["ms"], "dreamsim", "ms", 20)


def test_the_worked_example_of_shrout_and_fleiss():
    found = reseed_noise(JUDGES)
    assert (found.n_units, found.n_seeds) == (6, 4)
    assert found.icc.estimate == pytest.approx(0.17, abs=0.005)
    assert (found.icc.low, found.icc.high) == pytest.approx((-0.133, 0.72), abs=0.005)
    assert found.icc_of_mean.estimate == pytest.approx(0.44, abs=0.005)
    assert (found.icc_of_mean.low, found.icc_of_mean.high) == pytest.approx((-0.884, 0.91), abs=0.005)
    ratio = f_oneway(*JUDGES).statistic
    assert found.icc.estimate == pytest.approx((ratio - 1) / (ratio + 3))
    assert found.within_sd**2 == pytest.approx(np.mean([row.var(ddof=1) for row in JUDGES]))
    assert found.mean_sd == pytest.approx(JUDGES.mean(0).std(ddof=1))


def test_noise_and_differences_of_units_are_found_again():
    rng, covered = np.random.default_rng(2), 0
    true = 0.1**2 / (0.1**2 + 0.05**2)
    for _ in range(200):
        scores = rng.normal(0.8, 0.1, (60, 1)) + rng.normal(0, 0.05, (60, 3))
        found = reseed_noise(scores)
        covered += found.icc.low <= true <= found.icc.high
    assert covered / 200 == pytest.approx(0.95, abs=0.06)
    many = reseed_noise(rng.normal(0.8, 0.1, (4000, 1)) + rng.normal(0, 0.05, (4000, 3)))
    assert many.between_sd == pytest.approx(0.1, rel=0.05)
    assert many.within_sd == pytest.approx(0.05, rel=0.05)
    assert many.repeatability == pytest.approx(1.96 * 2**0.5 * many.within_sd)
    assert many.in_noise(0.1) == pytest.approx(0.1 / (2**0.5 * many.within_sd))


def test_scores_without_noise_or_without_differences():
    same = reseed_noise(np.repeat([[0.2], [0.5], [0.9]], 3, 1))
    assert same.icc.estimate == 1.0
    assert (same.in_noise(0.1), same.in_noise(-0.1)) == (np.inf, -np.inf)
    assert np.isnan(same.in_noise(0.0))
    noise = reseed_noise(np.array([[0.4, 0.6], [0.6, 0.4], [0.5, 0.5]]))
    assert noise.between_sd == 0
    assert noise.icc.estimate == -1.0
    assert noise.icc_of_mean.estimate == -np.inf
    assert np.isnan(reseed_noise(np.full((3, 2), 0.5)).icc.estimate)
    rare = np.append(JUDGES, [[np.nan, 1, 2, 3]], 0)
    assert asdict(reseed_noise(rare)) == asdict(reseed_noise(JUDGES))
    for few in (JUDGES[:1], JUDGES[:, :1]):
        with pytest.raises(DataError, match="tell nothing about noise"):
            reseed_noise(few)


def test_the_matrix_holds_scipys_correlations_of_the_units_that_have_both() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    b[:5], constant = np.nan, np.ones(40)
    matrix = spearman_matrix({"a": a, "b": b, "constant": constant})
    expected = spearmanr(a[5:], b[5:]).statistic
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(expected)
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(1.0)
    assert np.isnan(matrix[2]).all()

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, pearsonr, wilcoxon
from scipy.stats import t as student

from mis_lab.activations.config import ImageActivation
from mis_lab.core.errors import DataError
from mis_lab.mis.pairs import (
    Matches,
    best_partners,
    compare_pairs,
    image_chunks,
    partner_scores,
    rank_biserial,
    signed_rank,
)


def passes(a, b, size=16):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return lambda: zip(a.split(size), b.split(size), strict=True)


@pytest.fixture
def both():
    """Units on large means (where naive sums cancel), a constant one on each side, one reversed copy."""
    rng = np.random.default_rng(0)
    b = rng.standard_normal((90, 5)) + 1e4
    a = np.stack([b[:, 2] + 0.3 * rng.standard_normal(90), -b[:, 4], rng.standard_normal(90), np.full(90, 0.1)], 1)
    b[:, 3] = 1 / 3
    return a, b


def oracle(a, b) -> np.ndarray:
    r = np.full((a.shape[1], b.shape[1]), np.nan)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            if np.ptp(a[:, i]) and np.ptp(b[:, j]):
                r[i, j] = pearsonr(a[:, i], b[:, j]).statistic
    return r


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("size", [1, 16, 90])
@pytest.mark.parametrize("most_numbers", [1, 11, 1000])
def test_partners_are_those_of_scipy(both, absolute, size, most_numbers):
    a, b = both
    r = oracle(a, b)
    found = best_partners(passes(a, b, size), absolute, most_numbers)
    assert found.partner[3] == -1
    assert found.correlation[3].isnan()
    for unit in range(3):
        best = int(np.nanargmax(np.abs(r[unit]) if absolute else r[unit]))
        assert int(found.partner[unit]) == best
        assert float(found.correlation[unit]) == pytest.approx(r[unit, best], abs=1e-9)
    assert found.partner[0] == 2
    assert (found.partner[1] == 4) == absolute


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 9), st.floats(0.1, 10), st.floats(-50, 50))
def test_correlation_knows_neither_scale_nor_offset_nor_chunks(seed, n, size, scale, offset):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, 2)), rng.standard_normal((n, 3))
    once, again = best_partners(passes(a, b, n)), best_partners(passes(scale * a + offset, b, size))
    torch.testing.assert_close(again.correlation, once.correlation, rtol=1e-7, atol=1e-9)
    assert (once.correlation.abs() <= 1).all()


def test_mistakes_are_told(both):
    a, b = both
    with pytest.raises(DataError, match="no activations to correlate"):
        best_partners(lambda: [])
    with pytest.raises(ValueError, match="16 and 90 rows"):
        best_partners(lambda: [(torch.tensor(a[:16]), torch.tensor(b))])
    a[4, 1] = np.inf
    with pytest.raises(DataError, match="NaN or infinite"):
        best_partners(passes(a, b))
    with pytest.raises(ValueError, match="3 and 2 scores"):
        compare_pairs(np.ones(3), np.ones(2))


class Store:
    n_positions, width = 3, 4

    def __init__(self) -> None:
        self.x = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0))

    def images(self, batch):
        yield range(0, 6), self.x[:6]
        yield range(6, 10), self.x[6:]


class Scaled:
    kind, n_units = "scaled", 4

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def activate(self, x_bpd):
        return self.factor * x_bpd


@pytest.mark.parametrize("how", [ImageActivation.mean, ImageActivation.max, None])
def test_chunks_of_a_store(how):
    store = Store()
    chunks = image_chunks(store, Scaled(2.0), Scaled(-1.0), how)
    first, second = (torch.cat(parts) for parts in zip(*chunks(), strict=True))
    if how is None:
        torch.testing.assert_close(first, 2 * store.x.flatten(0, 1))
    elif how is ImageActivation.mean:
        torch.testing.assert_close(first, 2 * store.x.mean(1))
        torch.testing.assert_close(second, -store.x.mean(1))
    else:
        torch.testing.assert_close(second, (-store.x).amax(1))
    found = best_partners(chunks)
    assert len(found.partner) == 4
    if how is not ImageActivation.max:
        assert best_partners(chunks, absolute=True).partner.tolist() == [0, 1, 2, 3]


def test_scores_of_partners():
    matches = Matches(torch.tensor([1, -1, 0]), torch.tensor([0.5, torch.nan, 0.2]))
    np.testing.assert_array_equal(partner_scores(matches, np.array([0.7, 0.9])), [0.9, np.nan, 0.7])


STEPS = st.lists(st.integers(-4, 4).map(lambda number: number / 20), min_size=1, max_size=12).map(np.array)


@given(STEPS)
def test_rank_biserial_by_signed_ranks_written_out(differences):
    some = [one for one in differences.tolist() if one]
    ranks = [
        sum(abs(two) < abs(one) for two in some) + (sum(abs(two) == abs(one) for two in some) + 1) / 2 for one in some
    ]
    signed = sum(rank if one > 0 else -rank for rank, one in zip(ranks, some, strict=True))
    expected = signed / sum(ranks) if some else 0.0
    assert rank_biserial(differences) == pytest.approx(expected, abs=1e-12)
    assert rank_biserial(-differences) == pytest.approx(-expected, abs=1e-12)
    if not some:
        assert signed_rank(differences) == 1.0


def test_the_comparison_is_scipys():
    rng = np.random.default_rng(1)
    a = rng.beta(5, 2, 60)
    b = a - rng.normal(0.03, 0.1, 60)
    a[7], b[9] = np.nan, np.nan
    found = compare_pairs(a, b, n_bootstrap=2000)
    differences = (a - b)[np.isfinite(a - b)]
    assert (found.n_pairs, found.n_replicates) == (58, 58)
    assert found.p_value == pytest.approx(wilcoxon(differences).pvalue, rel=1e-9)
    w = wilcoxon(differences, alternative="greater").statistic
    assert found.rank_biserial.estimate == pytest.approx(2 * w / (58 * 59 / 2) - 1, abs=1e-12)
    # Tails of Hesterberg's expanded percentile interval for 58 values.
    tail = norm.cdf(-np.sqrt(58 / 57) * student.ppf(0.975, 57))
    assert 0.015 < tail < 0.025
    for name, statistic in (("mean_difference", np.mean), ("median_difference", np.median)):
        interval = getattr(found, name)
        expected = bootstrap(
            (differences,),
            statistic,
            n_resamples=2000,
            method="percentile",
            confidence_level=1 - 2 * tail,
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = expected.high - expected.low
        assert interval.estimate == pytest.approx(statistic(differences), abs=1e-9)
        assert interval.low == pytest.approx(expected.low, abs=0.1 * width)
        assert interval.high == pytest.approx(expected.high, abs=0.1 * width)
    assert found == compare_pairs(a, b, n_bootstrap=2000)


def test_equal_steps_tie_whatever_their_rounding():
    a, b = np.array([0.35, 0.40, 0.75, 0.5]), np.array([0.30, 0.35, 0.80, 0.5])
    found = compare_pairs(a, b, n_bootstrap=20)
    assert found.rank_biserial.estimate == pytest.approx(1 / 3)  # ranks 2, 2 and 2; the zero is left out
    assert compare_pairs(a, a, n_bootstrap=20).p_value == 1.0
    nothing = compare_pairs(a, np.full(4, np.nan))
    assert np.isnan(nothing.p_value)
    assert nothing.n_replicates == 0
    one = compare_pairs(a[:1], b[:1])
    assert one.mean_difference.estimate == pytest.approx(0.05)
    assert np.isnan([one.mean_difference.low, one.mean_difference.high]).all()
    assert np.isnan(nothing.mean_difference).all()


def test_pairs_with_the_same_partner_are_one_replicate():
    rng = np.random.default_rng(2)
    partner, scores = np.repeat(np.arange(10), 30), rng.normal(0.7, 0.1, 10)
    a = 0.7 + rng.normal(0, 0.01, 300)
    found = compare_pairs(a, scores[partner], partner, n_bootstrap=50)
    assert (found.n_pairs, found.n_replicates) == (300, 10)
    means = np.array([(a - scores[partner])[partner == one].mean() for one in range(10)])
    assert found.p_value == pytest.approx(wilcoxon(means).pvalue)
    assert found.mean_difference.estimate == pytest.approx(means.mean())
    rejected = {True: 0, False: 0}
    for _ in range(200):
        noise = rng.normal(0, 0.1, 10)[partner] + rng.normal(0, 0.01, 300)
        for clustered in rejected:
            one = compare_pairs(noise, np.zeros(300), partner if clustered else None, n_bootstrap=1)
            rejected[clustered] += one.p_value < 0.05
    assert rejected[True] < 25  # 10 expected
    assert rejected[False] > 60

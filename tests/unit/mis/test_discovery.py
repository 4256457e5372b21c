from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from mis_lab.core.errors import ConfigError
from mis_lab.mis.discovery import (
    Correction,
    benjamini_hochberg,
    chance_p_values,
    chance_spread,
    control_p_values,
    discoveries,
    interpretable_units,
    null_share,
)
from tests.unit.mis.test_compare import unit_scores

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array)


def margins_of(rows) -> torch.Tensor:
    """Rows of 1 (right), −1 (wrong), 0 (tie); padded with NaN."""
    width = max(len(row) for row in rows)
    padded = [[*map(float, row), *[np.nan] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float64).view(len(rows), width)


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1]), max_size=8), min_size=1, max_size=5))
def test_p_values_are_scipys_exact_test_with_ties_as_wrong(rows):
    found = chance_p_values(margins_of(rows), 1e-6)
    for p, row in zip(found, rows, strict=True):
        if not row:
            assert np.isnan(p)
            continue
        right = sum(one > 0 for one in row)
        assert p == pytest.approx(binomtest(right, len(row), 0.5, alternative="greater").pvalue, rel=1e-9)


def test_a_tie_never_makes_a_p_value_smaller():
    """Also not against knowing the ties: over all outcomes, P(p <= x) stays below x."""
    n = 8
    for tie_chance in (0.0, 0.3, 0.9):
        win = (1 - tie_chance) / 2
        p_of = chance_p_values(margins_of([[1] * wins + [0] * (n - wins) for wins in range(n + 1)]), 0.0)
        probability = np.array([comb(n, wins) * win**wins * (1 - win) ** (n - wins) for wins in range(n + 1)])
        for level in p_of:
            assert probability[p_of <= level].sum() <= level + 1e-12
    small = margins_of([[1e-7] * 8, [1e-5] * 8])
    assert chance_p_values(small, 1e-6).tolist() == [1.0, 2.0**-8]


def test_a_wider_chance_distribution_makes_p_values_larger():
    margins = margins_of([[1] * wins + [-1] * (20 - wins) for wins in range(21)])
    plain, wider = chance_p_values(margins, 0.0), chance_p_values(margins, 0.0, spread=1.1)
    assert (wider[12:] > plain[12:]).all()
    # A distribution over the numbers of right answers, with the spread asked for.
    mass = wider - np.append(wider[1:], 0)
    assert mass.sum() == pytest.approx(1)
    mean = mass @ np.arange(21)
    assert mean == pytest.approx(10)
    assert mass @ (np.arange(21) - mean) ** 2 == pytest.approx(1.1**2 * 5)
    np.testing.assert_array_equal(chance_p_values(margins, 0.0, spread=0.9), plain)
    with pytest.raises(ConfigError, match="20 tasks cannot spread 5 times"):
        chance_p_values(margins, 0.0, spread=5.0)
    assert chance_p_values(margins_of([[1]]), 0.0, spread=3.0).tolist() == [0.5]


def test_p_values_from_controls():
    control = np.array([0.4, 0.5, np.nan, 0.5, 0.6])
    found = control_p_values(np.array([0.3, 0.5, 0.55, 0.7, np.nan]), control)
    np.testing.assert_allclose(found, [1.0, 4 / 5, 2 / 5, 1 / 5, np.nan])


@given(P_VALUES)
def test_benjamini_hochberg_is_scipys(p_values):
    np.testing.assert_allclose(benjamini_hochberg(p_values), false_discovery_control(p_values), atol=1e-12)
    with_nan = np.append(np.nan, p_values)
    found = benjamini_hochberg(with_nan)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], benjamini_hochberg(p_values))


@given(P_VALUES, st.floats(0.01, 0.5))
def test_rejected_are_those_of_the_step_up_procedure(p_values, level):
    ordered = np.sort(p_values)
    steps = [k for k in range(1, len(ordered) + 1) if ordered[k - 1] * len(ordered) / k <= level]
    expected = (p_values <= ordered[max(steps) - 1]) if steps else np.zeros(len(p_values), dtype=bool)
    found = discoveries(p_values, level)
    assert found.interpretable.tolist() == expected.tolist()
    assert found.n_interpretable == expected.sum()
    assert found.share == expected.mean()


def test_storey_estimates_how_many_are_null():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(6000), rng.random(4000) * 1e-4])
    assert null_share(p) == pytest.approx(0.6, abs=0.03)
    assert null_share(np.array([])) == 1.0
    assert null_share(np.full(100, 1e-9)) == pytest.approx(0.02)
    both = [discoveries(p, 0.05, correction) for correction in Correction]
    assert both[1].n_interpretable > both[0].n_interpretable
    assert both[1].null_share == null_share(p)
    np.testing.assert_allclose(both[1].q_values, benjamini_hochberg(p) * null_share(p))


@pytest.mark.parametrize("correction", Correction)
def test_false_discoveries_stay_below_the_level(correction):
    """Hard scores of 300 units at chance and 100 that are better, some with ties, many times over."""
    rng, level, n_rounds = np.random.default_rng(1), 0.1, 200
    shares, power = [], []
    for _ in range(n_rounds):
        chance = np.concatenate([np.full(300, 0.5), rng.uniform(0.8, 1.0, 100)])
        margins = np.where(rng.random((400, 20)) < chance[:, None], 1.0, -1.0)
        margins[rng.random((400, 20)) < 0.02] = 0.0
        found = discoveries(chance_p_values(torch.tensor(margins), 1e-6), level, correction).interpretable
        shares.append(found[:300].sum() / max(1, found.sum()))
        power.append(found[300:].mean())
    assert np.mean(shares) <= level + 3 * np.std(shares) / n_rounds**0.5
    assert np.mean(power) > 0.7


def test_units_without_a_p_value_are_not_tested():
    found = discoveries(np.array([np.nan, 1e-9, 0.9]))
    assert (found.n_tested, found.n_interpretable, found.share) == (2, 1, 0.5)
    assert found.interpretable.tolist() == [False, True, False]
    assert np.isnan(discoveries(np.array([np.nan])).share)
    assert found.correction == "benjamini_hochberg"


def test_what_is_no_level_and_no_p_value():
    with pytest.raises(ConfigError, match="level 1 of false discoveries"):
        discoveries(np.array([0.5]), 1.0)
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        discoveries(np.array([1.5]))


def test_interpretable_units_are_counted_with_the_spread_of_permuted_ones() -> None:
    rng = np.random.default_rng(0)
    clear, chance = np.ones((3, 20)), rng.choice([-1.0, 1.0], (5, 20))
    scores = unit_scores(np.concatenate([clear, chance, clear[:1]]), status=[0] * 8 + [3])
    (counted,) = interpretable_units(scores, "feature")
    assert (counted.n_units, counted.n_tested, counted.n_interpretable, counted.spread) == (9, 8, 3, 1.0)
    assert counted.share_of_tested == 3 / 8
    assert counted.share_of_all == 3 / 9
    tied = np.repeat(rng.choice([-1.0, 1.0], (200, 4)), 5, axis=1)  # five tasks at a time fall alike
    permuted = unit_scores(tied, kind="feature")
    (wider,) = interpretable_units(scores, "feature", permuted)
    assert wider.spread == pytest.approx(np.sqrt(5), rel=0.15)
    assert wider.n_interpretable <= counted.n_interpretable


def test_few_permuted_units_tell_no_spread() -> None:
    assert chance_spread(unit_scores(np.repeat([[1.0], [-1.0]], 20, axis=1)), "bottom") == 1.0

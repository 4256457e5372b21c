"""Numbers about circuits against brute force, and their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, rankdata

from mis_lab.circuit.graph import OBJECTIVE, Edges
from mis_lab.core.intervals import Interval
from mis_lab.report import circuit_meaning as meaning
from mis_lab.report.circuit_data import CircuitDetails, CompletenessCurve, RankedNodes


def ranked(n: int = 60, seed: int = 0) -> RankedNodes:
    """Nodes of three sites, the last of which has an error node alone; some without a score."""
    random = np.random.default_rng(seed)
    site = random.integers(0, 2, n)
    effect = np.sort(random.lognormal(0, 1, n))[::-1] * random.choice([-1, 1], n)
    mis = np.where(random.random(n) < 0.2, np.nan, random.random(n))
    is_error = np.zeros(n, dtype=bool)
    site[3], is_error[3], mis[3] = 2, True, np.nan
    return RankedNodes("feature", ["a", "b", "c"], site, effect, is_error, mis, 0.5)


def test_distance_reaches_down_to_0_where_the_interval_holds_1():
    found = meaning.distance_from_whole(
        Interval(np.array([0.2, 0.9, 1.4]), np.array([0.1, 0.8, 1.2]), np.array([0.4, 1.1, 1.7]))
    )
    assert found.estimate == pytest.approx([0.8, 0.1, 0.4])
    assert found.low == pytest.approx([0.6, 0.0, 0.2])
    assert found.high == pytest.approx([0.9, 0.2, 0.7])


def test_nodes_above_a_threshold_are_counted_with_those_on_it():
    effect = ranked().effect
    thresholds = np.array([0.0, abs(effect[10]), 1.0, 1e9])
    assert meaning.n_above(effect, thresholds).tolist() == [int((np.abs(effect) >= one).sum()) for one in thresholds]
    assert meaning.n_above(effect, thresholds)[1] == 11


def test_medians_are_of_a_sites_units_without_its_error():
    one = ranked()
    found = meaning.median_effects(one)
    assert set(found) == {"a", "b"}
    assert found["a"] == pytest.approx(np.median([abs(e) for e, s in zip(one.effect, one.site, strict=True) if s == 0]))


def test_a_circuits_mean_score_is_that_of_its_scored_nodes():
    one = ranked()
    found = meaning.scores_of_circuits(one, np.array([0, 1, 7, 60, 99]))
    assert found.n_nodes.tolist() == [1, 7, 60]
    for size, threshold, mean, n_scored in zip(*found, strict=True):
        kept = one.mis[:size][np.isfinite(one.mis[:size])]
        assert n_scored == len(kept)
        assert mean == pytest.approx(kept.mean() if len(kept) else np.nan, nan_ok=True)
        assert threshold == np.abs(one.effect[:size]).min()


def test_circuits_without_a_scored_node_have_no_mean():
    one = ranked()
    silent = RankedNodes("feature", one.sites, one.site, one.effect, one.is_error, np.full(60, np.nan), np.nan)
    assert np.isnan(meaning.scores_of_circuits(silent, np.array([5])).mean).all()
    assert np.isnan(meaning.effect_against_score(silent).rho)
    assert meaning.effect_against_score(silent).n == 0


def test_effect_and_score_are_correlated_by_rank():
    one = ranked()
    rho, n = meaning.effect_against_score(one)
    scored = np.isfinite(one.mis)
    ranks = rankdata(np.abs(one.effect[scored])), rankdata(one.mis[scored])
    assert n == scored.sum()
    assert rho == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.sign(rho) == np.sign(kendalltau(*ranks).statistic)


def test_coverage_of_a_site_weighs_its_nodes_by_what_they_pass_on():
    ints = {name: torch.tensor(values) for name, values in {
        "source_site": [0, 0, 0, 1], "source_feature": [3, 3, 5, 2], "target_site": [1, 1, 1, OBJECTIVE],
        "target_feature": [2, 4, 2, 0], "total_site": [0, 0, 0], "total_feature": [3, 5, 7], "total_target": [1, 1, 1],
    }.items()}  # fmt: skip
    weight = torch.tensor([1.0, 0.5, -0.5, 9.0], dtype=torch.float64)
    total = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    edges = Edges("feature", ("a", "b"), {}, 0, 0, **ints, weight=weight, standard_error=weight.abs(), total=total)
    assert meaning.coverage_by_site(edges) == {"a": pytest.approx((1.5 + 0.5) / 3)}


def test_completeness_is_told_at_the_nearest_size_in_ratio():
    n, left = np.array([0, 1, 10, 100]), np.array([1.0, 0.8, 0.3, 0.0])
    details = CircuitDetails(completeness=[CompletenessCurve("feature", n, left, left, left)])
    assert details.completeness_at("feature", 4) == (10, 0.3)
    assert details.completeness_at("feature", 2) == (1, 0.8)
    assert details.completeness_at("neuron", 4) is None

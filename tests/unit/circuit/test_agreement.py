"""Agreement with exact ablation: SciPy's correlations on the chosen nodes, and 1 where estimates are exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from mis_lab.circuit.agreement import agreement_with_exact
from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import rank
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.quadrature import RULES


def agreement(toy, kind: str, method: EffectMethod, **options):
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](3))
    effects = node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, method, path)[kind]
    found = agreement_with_exact(toy.problem, toy.node_sets[kind], effects, toy.images, toy.targets_n, **options)
    return found, effects


def test_numbers_are_scipys_on_the_nodes_told(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    found, effects = agreement(toy, kind, EffectMethod.atp, n_top=4, n_random=5)
    exact = {path: toy.exact(kind, path).mean(0) for path in effects}
    estimated_k = [float(effects[node.site].mean[node.feature]) for node in found.nodes]
    exact_k = [float(exact[node.site][node.feature]) for node in found.nodes]
    assert found.nodes[:4] == tuple(rank(kind, effects).top(4).nodes)
    assert len({*found.nodes}) == 9
    np.testing.assert_allclose(found.estimated, estimated_k, rtol=1e-12)
    np.testing.assert_allclose(found.exact, exact_k, rtol=1e-9, atol=1e-14)
    for some, numbers in ((slice(0, 4), found.top), (slice(4, 9), found.random), (slice(0, 9), found.both)):
        a, b = np.array(estimated_k[some]), np.array(exact_k[some])
        assert numbers.n_nodes == len(a)
        assert numbers.pearson == pytest.approx(pearsonr(a, b).statistic)
        assert numbers.spearman == pytest.approx(spearmanr(a, b).statistic)
        assert numbers.same_sign == pytest.approx(np.mean(a * b > 0))


@pytest.mark.parametrize("method", [EffectMethod.atp, EffectMethod.ig, EffectMethod.ig_inputs, EffectMethod.exact])
def test_agreement_is_perfect_in_a_linear_network(make_toy, kind, method) -> None:
    found, _ = agreement(make_toy("linear"), kind, method, n_top=3, n_random=100)
    for numbers in (found.top, found.random, found.both):
        assert numbers.pearson == pytest.approx(1)
        assert numbers.spearman == pytest.approx(1)
        assert numbers.same_sign == 1


def test_fewer_nodes_than_asked_for_are_all_compared_once(make_toy, kind) -> None:
    found, effects = agreement(make_toy("relu", sae="topk"), kind, EffectMethod.atp)
    assert found.nodes == tuple(rank(kind, effects).nodes)
    assert found.random.n_nodes == 0
    assert np.isnan([found.random.pearson, found.random.spearman, found.random.same_sign]).all()


def test_the_seed_chooses_the_random_nodes(make_toy) -> None:
    toy = make_toy("relu")
    draws = [agreement(toy, "feature", EffectMethod.atp, n_top=2, n_random=4, seed=seed)[0].nodes for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0][:2] == draws[2][:2]
    assert {*draws[0]} != {*draws[2]}


def test_effects_without_a_sign_are_compared_with_sizes(make_toy) -> None:
    found, _ = agreement(make_toy("linear"), "neuron", EffectMethod.atp_absolute)
    assert (found.exact >= 0).all()
    assert np.isnan(found.both.same_sign)
    assert found.both.pearson == pytest.approx(pearsonr(found.estimated, found.exact).statistic)

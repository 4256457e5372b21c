"""The complement of a circuit: its ends, its middle by hand, its interval by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from mis_lab.circuit.completeness import complements
from mis_lab.circuit.config import CircuitConfig, ErrorHandling
from mis_lab.circuit.faithfulness import evaluate
from mis_lab.core.errors import DataError, MisLabError

CONFIG = CircuitConfig(sizes=5, n_random=1, min_effect=1e-9)


def found_on(toy, kind: str, config: CircuitConfig = CONFIG, **more):
    nodes, circuit = toy.node_sets[kind], toy.circuit(kind)
    return complements(toy.problem, nodes, circuit, toy.images, toy.targets_n, config, **more)


@pytest.mark.parametrize("errors", ErrorHandling)
def test_nothing_taken_leaves_1_and_everything_taken_0_to_the_bit(make_toy, baseline, kind, errors) -> None:
    toy = make_toy(baseline=baseline, dtype=torch.float32)
    for values in found_on(toy, kind, replace(CONFIG, errors=errors)).completeness:
        assert (values[0], values[-1]) == (1, 0)


def test_in_between_it_is_the_network_without_the_circuit(make_toy, baseline, kind) -> None:
    toy = make_toy(baseline=baseline)
    circuit, curve = toy.circuit(kind), found_on(toy, kind)
    full, empty = toy.clean()[0].mean(), toy.objective(kind, toy.kept(kind, False)).mean()
    for size, values, share in zip(
        curve.sizes[:-1].tolist(), curve.values[:-1], curve.completeness.estimate[:-1], strict=True
    ):
        kept = {path: torch.ones_like(mask) for path, mask in toy.kept(kind).items()}
        for node in circuit.nodes[:size]:
            kept[node.site][node.feature] = False
        expected = toy.objective(kind, kept)
        np.testing.assert_allclose(values, expected, rtol=1e-10)
        assert share == pytest.approx(float((expected.mean() - empty) / (full - empty)), rel=1e-9, abs=1e-12)


def test_linear_network_what_a_circuit_has_its_complement_lacks(make_toy, kind) -> None:
    # Effects add up there: faithfulness and completeness of every circuit sum to 1.
    toy = make_toy("linear")
    toy.problem = replace(toy.problem, sites=toy.problem.sites[1:])
    toy.__post_init__()
    nodes, circuit = toy.node_sets[kind], toy.circuit(kind)
    curve = evaluate(toy.problem, nodes, circuit, toy.images, toy.targets_n, CONFIG, 3)
    total = curve.faithfulness.estimate + found_on(toy, kind).completeness.estimate
    np.testing.assert_allclose(total, np.ones(len(total)), rtol=1e-9)


def test_the_interval_is_over_groups_of_images(make_toy) -> None:
    toy = make_toy()
    groups = ["a", "b", "a", "c", "b", "c", "d"]
    curve = found_on(toy, "feature", groups=groups)
    without = []
    for group in "abcd":
        means = curve.values[:, np.array(groups) != group].mean(1)
        without.append((means - means[-1]) / (means[0] - means[-1]))
    error = np.sqrt(3 / 4 * np.square(without - np.mean(without, axis=0)).sum(0))
    half = student.ppf(0.975, 49 / (4 + 4 + 4 + 1) - 1) * error
    estimate, low, high = curve.completeness
    np.testing.assert_allclose(low, estimate - half, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(high, estimate + half, rtol=1e-9, atol=1e-12)


def test_sizes_may_be_shares(make_toy) -> None:
    toy = make_toy()
    n_live = len(toy.circuit("neuron"))
    assert found_on(toy, "neuron", fractions=(0.5,)).sizes.tolist() == [0, n_live // 2, n_live]


def test_no_live_node_and_hardly_any_effect_are_told(make_toy) -> None:
    toy = make_toy()
    nodes, none = toy.node_sets["neuron"], toy.circuit("neuron").top(0)
    with pytest.raises(DataError, match="no neuron ever leaves"):
        complements(toy.problem, nodes, none, toy.images, toy.targets_n, CONFIG)
    with pytest.raises(MisLabError, match="divide by almost 0"):
        found_on(toy, "neuron", replace(CONFIG, min_effect=1e9))

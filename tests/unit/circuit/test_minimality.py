"""What each node does for its circuit, against leaving it out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mis_lab.circuit.config import CircuitConfig, ErrorHandling
from mis_lab.circuit.minimality import minimality
from mis_lab.core.errors import DataError, MisLabError

CONFIG = CircuitConfig(min_effect=1e-9)


def found_on(toy, kind: str, circuit, config: CircuitConfig = CONFIG):
    return minimality(toy.problem, toy.node_sets[kind], circuit, toy.images, toy.targets_n, config)


@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_it_is_the_loss_without_the_node_as_a_share_of_all(make_toy, network, kind) -> None:
    toy = make_toy(network)
    circuit = toy.circuit(kind).top(5)
    found = found_on(toy, kind, circuit)
    moved = toy.clean()[0].mean() - toy.objective(kind, toy.kept(kind, False)).mean()
    for place, node in enumerate(circuit.nodes):
        kept = circuit.kept()
        kept[node.site][node.feature] = False
        lost = (toy.objective(kind, circuit.kept()) - toy.objective(kind, kept)).mean()
        assert found.per_node[place] == pytest.approx(float((lost / moved).abs()), rel=1e-8, abs=1e-12)
    assert found.median == np.median(found.per_node)
    assert found.needless(1e9) == 1
    assert found.needless(float(np.sort(found.per_node)[2])) == pytest.approx(2 / 5)


def test_linear_network_a_node_is_worth_its_effect_in_any_circuit(make_toy, kind) -> None:
    toy = make_toy("linear")
    toy.problem = replace(toy.problem, sites=toy.problem.sites[1:])
    toy.__post_init__()
    whole = toy.circuit(kind)
    for circuit in (whole.top(3), whole):
        expected = (circuit.effect / whole.effect.sum()).abs()
        np.testing.assert_allclose(found_on(toy, kind, circuit).per_node, expected, rtol=1e-8, atol=1e-12)


def test_a_dead_feature_is_needless(make_toy) -> None:
    toy = make_toy(sae="topk")
    circuit = toy.circuit("feature").top(3)
    dead = replace(circuit, site=torch.tensor([0]), feature=torch.tensor([0]))
    found = found_on(toy, "feature", dead)
    assert found.per_node.tolist() == [0]
    assert found.needless() == 1


def test_error_nodes_count_only_as_nodes(make_toy) -> None:
    toy = make_toy()
    circuit = toy.circuit("feature")
    n_errors = int((circuit.feature == -1).sum())
    assert n_errors == 2
    assert len(found_on(toy, "feature", circuit).per_node) == len(circuit)
    without = found_on(toy, "feature", circuit, replace(CONFIG, errors=ErrorHandling.keep))
    assert len(without.per_node) == len(without.circuit) == len(circuit) - 2


def test_no_node_and_hardly_any_effect_are_told(make_toy) -> None:
    toy = make_toy()
    with pytest.raises(DataError, match="no neuron whose need"):
        found_on(toy, "neuron", toy.circuit("neuron").top(0))
    with pytest.raises(MisLabError, match="divide by almost 0"):
        found_on(toy, "neuron", toy.circuit("neuron"), replace(CONFIG, min_effect=1e9))

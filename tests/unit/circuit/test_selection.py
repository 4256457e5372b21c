"""Thresholds, shares, merging and pruning, against loops over nodes and SciPy's graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import breadth_first_order

from mis_lab.circuit.circuit import Circuit, Node
from mis_lab.circuit.selection import above, connected, covering, merge, threshold_of

EFFECTS = st.lists(st.floats(-5, 5).map(lambda effect: round(effect, 1)), min_size=1, max_size=12)


def circuit_of(effects: list[float], features: list[int] | None = None, n_active: int = 1) -> Circuit:
    """A circuit at one site of 20 nodes, the largest |effect| first."""
    effect = torch.tensor(effects, dtype=torch.float64)
    feature = torch.arange(len(effects)) if features is None else torch.tensor(features)
    count = torch.full((len(effects),), n_active)
    circuit = Circuit("feature", {"site": 20}, True, torch.zeros_like(feature), feature, effect, effect.abs(), count)
    return circuit.take(effect.abs().argsort(descending=True, stable=True))


@given(EFFECTS)
def test_the_threshold_of_n_gives_n_nodes_unless_effects_are_equal(effects: list[float]) -> None:
    circuit = circuit_of(effects)
    for n in range(len(circuit) + 1):
        threshold = threshold_of(circuit, n)
        found = above(circuit, threshold)
        assert found.nodes == [
            node for node, effect in zip(circuit.nodes, circuit.effect, strict=True) if abs(effect) >= threshold
        ]
        assert len(found) >= n
        tied = n > 0 and n < len(circuit) and abs(circuit.effect[n]) == abs(circuit.effect[n - 1])
        assert tied or found.nodes == circuit.top(n).nodes


def test_a_threshold_for_more_nodes_than_there_are_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no threshold gives 3 of 2"):
        threshold_of(circuit_of([1.0, 2.0]), 3)


def test_the_nodes_of_a_threshold_may_come_in_any_order() -> None:
    shuffled = circuit_of([0.5, -3.0, 2.0, 1.0]).take(torch.tensor([3, 0, 2, 1]))
    assert threshold_of(shuffled, 2) == 2
    assert above(shuffled, 2).nodes == [Node("site", 1), Node("site", 2)]


@given(EFFECTS, st.floats(0, 1))
def test_a_share_is_covered_by_as_few_nodes_as_can(effects: list[float], share: float) -> None:
    circuit = circuit_of(effects)
    found, total = covering(circuit, share), float(circuit.effect.abs().sum())
    assert found.nodes == circuit.nodes[: len(found)]
    assert float(found.effect.abs().sum()) >= share * total - 1e-9
    if len(found) and total > 0:
        assert float(found.effect.abs()[:-1].sum()) < share * total + 1e-9


def test_no_share_and_the_whole_share() -> None:
    circuit = circuit_of([0.1] * 10)
    assert len(covering(circuit, 0)) == 0
    assert len(covering(circuit, 1)) == 10
    assert len(covering(circuit, 0.35)) == 4
    assert len(covering(circuit.top(0), 0.5)) == 0
    with pytest.raises(ValueError, match=r"a share of 1\.5"):
        covering(circuit, 1.5)


def test_merging_keeps_each_node_where_it_does_most() -> None:
    a, b = circuit_of([3.0, -1.0], [4, 5], n_active=7), circuit_of([2.0, -2.5, 0.5], [5, 6, 4], n_active=9)
    merged = merge([a, b])
    assert merged.nodes == [Node("site", 4), Node("site", 6), Node("site", 5)]
    assert merged.effect.tolist() == [3.0, -2.5, 2.0]
    assert merged.n_active.tolist() == [7, 9, 9]
    assert merge([a]).nodes == a.nodes
    assert merge([b, a]).nodes == merged.nodes
    with pytest.raises(ValueError, match="no circuits"):
        merge([])
    other = Circuit("neuron", a.n_nodes, False, a.site, a.feature, a.effect, a.standard_error, a.n_active)
    with pytest.raises(ValueError, match="different nodes"):
        merge([a, other])


def tensors(edges: list[tuple[int, int, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source, target, weight = zip(*edges, strict=True) if edges else ((), (), ())
    return (
        torch.tensor(source, dtype=torch.int64),
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float64),
    )


def test_nodes_without_a_way_to_the_objective_go() -> None:
    circuit = circuit_of([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # its places are its features; 6 is the objective
    edges = [(0, 1, 0.5), (1, 6, -0.2), (2, 3, 1.0), (3, 2, 1.0), (4, 6, 0.0), (5, 4, 1.0)]
    assert [node.feature for node in connected(circuit, *tensors(edges)).nodes] == [0, 1]
    assert len(connected(circuit, *tensors([]))) == 0
    with pytest.raises(ValueError, match="an end outside of the 6 nodes"):
        connected(circuit, *tensors([(6, 1, 1.0)]))
    with pytest.raises(ValueError, match="an end outside of the 6 nodes"):
        connected(circuit, *tensors([(0, 7, 1.0)]))
    with pytest.raises(ValueError, match="2 sources, 1 targets"):
        connected(circuit, torch.tensor([0, 1]), torch.tensor([6]), torch.ones(2))


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(
                st.tuples(st.integers(0, n - 1), st.integers(0, n), st.sampled_from([0.0, -1.0, 2.0])), max_size=16
            ),
        )
    )
)
def test_what_stays_is_what_scipy_reaches_from_the_objective_backwards(
    graph: tuple[int, list[tuple[int, int, float]]],
) -> None:
    n, edges = graph
    matrix = np.zeros((n + 1, n + 1))
    for source, target, weight in edges:
        matrix[target, source] = max(matrix[target, source], abs(weight))
    reached = set(breadth_first_order(matrix, n, return_predecessors=False).tolist()) - {n}
    circuit = circuit_of([float(10 - place) for place in range(n)])
    assert {node.feature for node in connected(circuit, *tensors(edges)).nodes} == reached

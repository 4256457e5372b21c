"""Orders by change, other circuits' curves, and paired intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from mis_lab.circuit import comparisons
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.comparisons import atom_lengths, by_change, cmd_difference, evaluate_others, node_changes
from mis_lab.circuit.config import CircuitConfig, ErrorHandling
from mis_lab.circuit.faithfulness import Curve, evaluate
from mis_lab.core.errors import DataError

CONFIG = CircuitConfig(sizes=4, n_random=1, min_effect=1e-9)
PARTNERS = [3, 5, 6, 0, 1, 2, 4]


@pytest.mark.parametrize("network", ["relu", "tokens"])
@pytest.mark.parametrize("patched", [False, True])
def test_change_is_the_length_of_what_ablation_takes_out(make_toy, network, patched, kind, monkeypatch) -> None:
    toy = make_toy(network)
    monkeypatch.setattr(comparisons, "ATOMS_AT_ONCE", 3)
    nodes = toy.patched(kind, PARTNERS) if patched else toy.node_sets[kind]
    found = node_changes(toy.problem, nodes, toy.images)
    for path, x_bpd in toy.clean()[1].items():
        dictionary, other_bpd = toy.dictionaries(kind)[path], x_bpd[PARTNERS]
        fixed = toy.node_sets[kind][path]
        codes = dictionary.encode(x_bpd)
        for feature in range(dictionary.n_features):
            after = codes.clone()
            after[..., feature] = (dictionary.encode(other_bpd) if patched else fixed.features.expand_as(codes))[
                ..., feature
            ]
            moved = (dictionary.combine(codes) - dictionary.combine(after)).norm(dim=-1).sum(1).mean()
            assert float(found[path][feature]) == pytest.approx(float(moved), rel=1e-9, abs=1e-12)
        if kind == "feature":
            error, other = (x - toy.saes[path](x).reconstruction for x in (x_bpd, other_bpd))
            moved = (error - (other if patched else fixed.error)).norm(dim=-1).sum(1).mean()
            assert float(found[path][ERROR]) == pytest.approx(float(moved), rel=1e-9)
    assert {path: len(change) for path, change in found.items()} == {
        path: len(kept) for path, kept in toy.kept(kind).items()
    }


def test_how_scale_is_shared_between_code_and_atom_does_not_matter(make_toy) -> None:
    toy = make_toy()
    before = node_changes(toy.problem, toy.node_sets["feature"], toy.images)

    class Scaled:
        """The same dictionary with all codes tripled."""

        def __init__(self, inner) -> None:
            self.inner = inner
            self.kind, self.n_features, self.has_error = inner.kind, inner.n_features, inner.has_error
            self.offset = inner.offset

        def encode(self, x_bpd):
            return 3 * self.inner.encode(x_bpd)

        def combine(self, f_bpf, which_k=None):
            return self.inner.combine(f_bpf, which_k) / 3

    scaled = {
        path: replace(nodes, dictionary=Scaled(nodes.dictionary), features=3 * nodes.features)
        for path, nodes in toy.node_sets["feature"].items()
    }
    for path, change in node_changes(toy.problem, scaled, toy.images).items():
        torch.testing.assert_close(change, before[path])


def test_atom_lengths_are_those_of_the_dictionary(make_toy) -> None:
    toy = make_toy()
    of_kind = toy.dictionaries("feature")
    for path, sae in toy.saes.items():
        torch.testing.assert_close(atom_lengths(of_kind[path]), sae.dictionary.norm(dim=1))
        assert torch.equal(atom_lengths(toy.dictionaries("neuron")[path]), torch.ones(sae.dictionary.shape[1]).double())


def test_by_change_has_the_same_nodes_in_another_order(make_toy, kind) -> None:
    toy = make_toy()
    circuit, changes = toy.circuit(kind), node_changes(toy.problem, toy.node_sets[kind], toy.images)
    ordered = by_change(circuit, changes)
    assert set(ordered.nodes) == set(circuit.nodes)
    sizes = [float(changes[node.site][node.feature]) for node in ordered.nodes]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("errors", ErrorHandling)
def test_other_circuits_have_the_values_that_a_run_of_their_own_gives(make_toy, kind, errors) -> None:
    toy = make_toy()
    config = replace(CONFIG, errors=errors)
    nodes, circuit = toy.node_sets[kind], toy.circuit(kind)
    curve = evaluate(toy.problem, nodes, circuit, toy.images, toy.targets_n, config, 0)
    reversed_ = circuit.take(torch.arange(len(circuit)).flip(0))
    others = {"same": circuit, "reversed": reversed_, "small": circuit.top(3)}
    found = evaluate_others(toy.problem, nodes, curve, others, toy.images, toy.targets_n, config)
    assert np.array_equal(found["same"].values, curve.values)
    assert np.array_equal(found["same"].live_values, curve.live_values)
    own = evaluate(toy.problem, nodes, reversed_, toy.images, toy.targets_n, config, 0)
    assert np.array_equal(found["reversed"].values, own.values)
    if errors is ErrorHandling.as_node:
        np.testing.assert_allclose(found["small"].live_values, toy.objective(kind, circuit.top(3).kept()), rtol=1e-10)
    with pytest.raises(ValueError, match="the curve has 7 images, not 2"):
        evaluate_others(toy.problem, nodes, curve, others, toy.images, toy.targets_n[:2], config)
    other = toy.circuit("neuron" if kind == "feature" else "feature")
    with pytest.raises(ValueError, match="circuit a holds"):
        evaluate_others(toy.problem, nodes, curve, {"a": other}, toy.images, toy.targets_n, config)


def test_without_images_there_is_no_change(make_toy) -> None:
    toy = make_toy()
    with pytest.raises(DataError, match="no images to see nodes change on"):
        node_changes(toy.problem, toy.node_sets["neuron"], [])


def curve_of(values: np.ndarray, sizes: list[int]) -> Curve:
    return Curve("feature", np.array(sizes), values, values[None], values[-1], np.arange(values.shape[1]) // 2)


def some_values(n_sizes: int, n_images: int, seed: int) -> np.ndarray:
    values = np.sort(np.random.default_rng(seed).normal(size=(n_sizes, n_images)), axis=0)
    return np.concatenate([values[:1] - 3, values, values[-1:] + 5])


@pytest.mark.parametrize("log", [False, True])
def test_the_interval_of_a_difference_leaves_the_same_images_out_of_both(log: bool) -> None:
    a = some_values(2, 9, 0)
    b = a.copy()
    b[1:-1] -= 2 + np.random.default_rng(1).normal(size=b[1:-1].shape) / 10
    curves = curve_of(a, [0, 1, 4, 8]), curve_of(b, [0, 1, 3, 8])

    def area(curve: Curve, some: np.ndarray) -> float:
        means = curve.values[:, some].mean(1)
        heights = np.abs(1 - (means - means[0]) / (means[-1] - means[0]))
        axis = curve.sizes / curve.sizes[-1]
        if log:
            heights, axis = heights[1:], np.log(axis[1:])
            return np.trapezoid(heights, axis) / (axis[-1] - axis[0])
        return np.trapezoid(heights, axis)

    found = cmd_difference(*curves, log=log)
    everything, group = np.arange(9), np.arange(9) // 2
    assert found.estimate == pytest.approx(area(curves[0], everything) - area(curves[1], everything), rel=1e-10)
    without = [area(curves[0], group != left_out) - area(curves[1], group != left_out) for left_out in range(5)]
    error = np.sqrt(0.8 * np.square(without - np.mean(without)).sum())
    half = student.ppf(0.975, 81 / (4 * 4 + 1) - 1) * error
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), rel=1e-9)
    assert found.estimate < 0
    assert found.high < 0  # a keeps more at every size, on every image


def test_a_curve_differs_from_itself_by_exactly_nothing_and_swapping_turns_the_sign() -> None:
    a, b = curve_of(some_values(2, 6, 0), [0, 1, 4, 8]), curve_of(some_values(2, 6, 1), [0, 1, 4, 8])
    assert tuple(map(float, cmd_difference(a, a))) == (0, 0, 0)
    there, back = cmd_difference(a, b), cmd_difference(b, a)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))
    with pytest.raises(ValueError, match="other images or groups: 6 and 5 images"):
        cmd_difference(a, curve_of(some_values(2, 5, 1), [0, 1, 4, 8]))
    with pytest.raises(ValueError, match="other images or groups"):
        cmd_difference(a, replace(b, groups_n=np.arange(6)))
    later = curve_of(some_values(2, 6, 1), [0, 2, 4, 8])
    assert cmd_difference(a, later).estimate != 0
    with pytest.raises(ValueError, match=r"axes from 0.125 and from 0.25 are not compared"):
        cmd_difference(a, later, log=True)

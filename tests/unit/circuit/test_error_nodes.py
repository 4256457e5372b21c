"""Error nodes kept, at the baseline, removed: against the network with a hook that does it by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.config import CircuitConfig, ErrorHandling
from mis_lab.circuit.error_nodes import kept_with_errors, ranked, with_error_states
from mis_lab.circuit.faithfulness import evaluate
from mis_lab.circuit.running import Ends, objective_of_circuits

CONFIG = CircuitConfig(sizes=4, n_random=1, min_effect=1e-9)
OTHERS = [ErrorHandling.keep, ErrorHandling.baseline, ErrorHandling.zero]


def by_hand(toy, circuit, errors: ErrorHandling) -> torch.Tensor:
    """Objective (n,) with the features of `circuit` kept and errors as asked, put together from codes."""

    def replacement(path: str):
        nodes, sae, kept = toy.node_sets["feature"][path], toy.saes[path], circuit.kept()[path][:-1]

        def replace_all(x_bpd: torch.Tensor) -> torch.Tensor:
            codes = sae.encode(x_bpd)
            error = {
                ErrorHandling.keep: x_bpd - sae.decode(codes),
                ErrorHandling.baseline: nodes.error,
                ErrorHandling.zero: 0.0,
            }[errors]
            return sae.decode(torch.where(kept, codes, nodes.features)) + error

        return replace_all

    functions = {path: replacement(path) for path in toy.saes}
    return toy.problem.values(toy.all_images, toy.targets_n, functions)


@pytest.mark.parametrize("errors", OTHERS)
@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_a_curve_has_errors_as_asked_at_every_size_but_the_last(make_toy, errors, network) -> None:
    toy = make_toy(network)
    circuit = ranked(toy.circuit("feature"), errors)
    assert ERROR not in circuit.feature
    config = replace(CONFIG, errors=errors)
    curve = evaluate(
        toy.problem, toy.node_sets["feature"], toy.circuit("feature"), toy.images, toy.targets_n, config, 0
    )
    assert curve.sizes[-1] == len(circuit)
    for size, values in zip(curve.sizes[:-1].tolist(), curve.values[:-1], strict=True):
        np.testing.assert_allclose(values, by_hand(toy, circuit.top(size), errors), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curve.live_values, by_hand(toy, circuit, errors), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curve.values[-1], toy.clean()[0], rtol=1e-10)
    assert (curve.faithfulness.estimate[0], curve.faithfulness.estimate[-1]) == (0, 1)


def test_as_nodes_nothing_is_touched(make_toy) -> None:
    toy = make_toy()
    nodes, circuit, as_node = toy.node_sets["feature"], toy.circuit("feature"), ErrorHandling.as_node
    kept = circuit.kept()
    assert ranked(circuit, as_node) is circuit
    assert kept_with_errors(kept, nodes, as_node) is kept
    assert with_error_states(nodes, as_node) is nodes


@pytest.mark.parametrize("errors", ErrorHandling)
def test_neurons_have_no_errors_to_handle(make_toy, errors) -> None:
    toy = make_toy()
    nodes, circuit = toy.node_sets["neuron"], toy.circuit("neuron")
    plain, handled = (
        evaluate(toy.problem, nodes, circuit, toy.images, toy.targets_n, config, 0)
        for config in (CONFIG, replace(CONFIG, errors=errors))
    )
    assert np.array_equal(plain.values, handled.values)


def test_errors_of_partners_are_removed_too(make_toy) -> None:
    toy = make_toy()
    nodes = toy.patched("feature", [3, 5, 6, 0, 1, 2, 4])
    ends = Ends.of(nodes, replace(CONFIG, errors=ErrorHandling.zero))
    found = objective_of_circuits(toy.problem, ends.nodes, [ends.empty], toy.images, toy.targets_n)[0]
    last = toy.problem.sites[-1].path
    partner_bpd = toy.clean()[1][last].clone()[[3, 5, 6, 0, 1, 2, 4]]
    decoded = toy.saes[last].decode(toy.saes[last].encode(partner_bpd))
    expected = toy.problem.values(toy.all_images, toy.targets_n, {last: lambda x_bpd: decoded})
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

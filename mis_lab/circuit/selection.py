"""Smaller circuits out of large ones: by threshold, by share of the effects, by connection; several made one."""

# K nodes of the circuit  E edges

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mis_lab.circuit.circuit import Circuit


def above(circuit: Circuit, threshold: float) -> Circuit:
    """The nodes with |effect| ≥ `threshold`, in their order."""
    return circuit.take((circuit.effect.abs() >= threshold).nonzero().squeeze(1))


def threshold_of(circuit: Circuit, n: int) -> float:
    """The largest threshold at which :func:`above` has at least `n` nodes: |effect| of the n-th largest.

    It has exactly `n` unless the next node's effect is as large; infinity gives 0 nodes.

    Raises:
        ValueError: when the circuit has fewer nodes.
    """
    if not 0 <= n <= len(circuit):
        raise ValueError(f"no threshold gives {n} of {len(circuit)} nodes")
    if n == 0:
        return float("inf")
    return float(circuit.effect.abs().sort(descending=True).values[n - 1])


def covering(circuit: Circuit, share: float) -> Circuit:
    """The fewest nodes whose |effects| make up `share` of the sum over all nodes, the largest first.

    Raises:
        ValueError: when `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    size, order = circuit.effect.abs().sort(descending=True, stable=True)
    if share == 0:
        return circuit.take(order[:0])
    reached = size.cumsum(0)
    # The sum itself is the measure of the whole, so that a share of 1 is reached whatever the rounding.
    n = int((reached < share * reached[-1]).sum()) + 1 if len(circuit) else 0
    return circuit.take(order[:n])


def merge(circuits: Sequence[Circuit]) -> Circuit:
    """The nodes of any of the circuits (of several classes, say), each once, the largest |effect| first.

    A node's row is that of the circuit where its |effect| is largest: effects of different classes are not added,
    they would cancel.

    Raises:
        ValueError: without circuits, or when they are not circuits of the same nodes.
    """
    if not circuits:
        raise ValueError("no circuits to merge")
    first = circuits[0]
    for other in circuits[1:]:
        if (other.kind, dict(other.n_nodes)) != (first.kind, dict(first.n_nodes)):
            raise ValueError("circuits of different nodes cannot be merged")
    names = ("site", "feature", "effect", "standard_error", "n_active")
    rows: dict[str, Any] = {name: torch.cat([getattr(circuit, name) for circuit in circuits]) for name in names}
    together = replace(first, **rows)
    together = together.take(together.effect.abs().argsort(descending=True, stable=True))
    seen, kept = set(), []
    for place, node in enumerate(together.nodes):
        if node not in seen:
            seen.add(node)
            kept.append(place)
    return together.take(torch.tensor(kept, dtype=torch.int64))


def connected(circuit: Circuit, source_e: Tensor, target_e: Tensor, weight_e: Tensor) -> Circuit:
    """The nodes from which a way of edges leads to the objective, in their order.

    Args:
        circuit: K nodes.
        source_e: (E,) int64, place in the circuit of the node where an edge begins.
        target_e: (E,) int64, place of the node where it ends; K for the objective.
        weight_e: (E,), an edge of weight 0 is none.

    Raises:
        ValueError: when the three differ in length, or an edge names a node that the circuit does not have.
    """
    n_nodes = len(circuit)
    if not len(source_e) == len(target_e) == len(weight_e):
        raise ValueError(f"{len(source_e)} sources, {len(target_e)} targets and {len(weight_e)} weights")
    if len(source_e) and not (
        0 <= int(source_e.min()) <= int(source_e.max()) < n_nodes
        and 0 <= int(target_e.min()) <= int(target_e.max()) <= n_nodes
    ):
        raise ValueError(f"an edge has an end outside of the {n_nodes} nodes and the objective")
    there = weight_e != 0
    source, target = source_e[there], target_e[there]
    reaches = torch.zeros(n_nodes + 1, dtype=torch.bool)
    reaches[n_nodes] = True
    for _ in range(n_nodes):  # a step back at a time; no way has more steps
        new = source[reaches[target] & ~reaches[source]]
        if not len(new):
            break
        reaches[new] = True
    return circuit.take(reaches[:n_nodes].nonzero().squeeze(1))

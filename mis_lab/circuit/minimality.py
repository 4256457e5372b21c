"""Whether a circuit needs each of its nodes.

minimality(v) = |m(C) − m(C∖v)| / |m(M) − m(∅)|, with m the mean over images: what the circuit loses without v, as a
share of all that can be lost (after Wang et al. 2023, who let further nodes go with v; here v goes alone).
"""

# V nodes of the circuit  n images

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.error_nodes import ranked
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes
from mis_lab.circuit.running import Ends, check_moved, objective_of_circuits
from mis_lab.core.errors import DataError

NEEDLESS = 0.01


@dataclass(frozen=True, eq=False)
class Minimality:
    """What each node of a circuit does for it.

    Attributes:
        circuit: V nodes.
        whole: (n,) float64, the objective on each image with the circuit's nodes alone.
        without: (V, n) float64, the same without one node.
        moved: m(M) − m(∅).
    """

    circuit: Circuit
    whole: np.ndarray
    without: np.ndarray
    moved: float

    @property
    def per_node(self) -> np.ndarray:
        """(V,) minimality of each node."""
        return np.abs((self.whole - self.without).mean(1)) / abs(self.moved)

    @property
    def median(self) -> float:
        """Of the nodes' minimality."""
        return float(np.median(self.per_node))

    def needless(self, below: float = NEEDLESS) -> float:
        """Share of nodes whose minimality is less than `below`."""
        return float((self.per_node < below).mean())


def minimality(
    problem: Problem, nodes: Nodes, circuit: Circuit, images: Images, targets_n: Tensor, config: CircuitConfig
) -> Minimality:
    """What each node of `circuit` does for it: V + 3 forward passes a batch.

    Args:
        nodes: what the circuit's nodes are and become.
        circuit: the nodes kept, a :meth:`~mis_lab.circuit.circuit.Circuit.top` of few.
        images: batches (B, C, H, W), gone through once.
        targets_n: what the objective reads of each image.
        config: its `errors` and `min_effect`.

    Raises:
        DataError: without images or for a circuit without nodes.
        MisLabError: when ablating all nodes hardly moves the objective.
    """
    circuit = ranked(circuit, config.errors)
    if not len(circuit):
        raise DataError(f"the circuit has no {circuit.kind} whose need could be measured")
    ends = Ends.of(nodes, config)
    places = torch.arange(len(circuit))
    runs = [circuit, *(circuit.take(places[places != place]) for place in range(len(circuit)))]
    masks = [*ends.masks, *(ends.handled(run.kept()) for run in runs)]
    empty_n, full_n, whole_n, *without = objective_of_circuits(problem, ends.nodes, masks, images, targets_n)
    return Minimality(circuit, whole_n, np.stack(without), check_moved(circuit.kind, empty_n, full_n, config))

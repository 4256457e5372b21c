"""What is left of the objective without a circuit, against its size: low is good.

completeness(C) = faithfulness of the complement M∖C = (m(M∖C) − m(∅)) / (m(M) − m(∅)) (Marks et al. 2024): a
circuit that holds all there is leaves nothing behind.
"""

# n images  S sizes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.faithfulness import group_numbers, ranked_with_sizes, share_of_way
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes
from mis_lab.circuit.running import Ends, check_moved, objective_of_circuits
from mis_lab.circuit.splice import all_but
from mis_lab.core.intervals import Interval, jackknife_interval, leave_out_sums


@dataclass(frozen=True, eq=False)
class ComplementCurve:
    """Completeness of the circuits of one kind against their size.

    The largest circuit is the network itself, as in :class:`~mis_lab.circuit.faithfulness.Curve`: its complement
    is empty and its completeness 0 by construction, as that of size 0 is 1.

    Attributes:
        kind: ``feature`` or ``neuron``.
        sizes: (S,) numbers of nodes taken away, 0 and all live nodes included, ascending.
        values: (S, n) float64, the objective on each image of what is left.
        groups_n: (n,) int64, the group of each image; intervals are over groups.
    """

    kind: str
    sizes: np.ndarray
    values: np.ndarray
    groups_n: np.ndarray

    @property
    def completeness(self) -> Interval:
        """(S,) with its interval over groups of images."""
        return jackknife_interval(self._ratio(leave_out_sums(self.values, self.groups_n)), self.groups_n)

    @staticmethod
    def _ratio(means: np.ndarray) -> np.ndarray:
        """Completeness from means or sums of objectives (..., S)."""
        return share_of_way(means, means[..., -1:], means[..., :1])


def complements(
    problem: Problem,
    nodes: Nodes,
    circuit: Circuit,
    images: Images,
    targets_n: Tensor,
    config: CircuitConfig,
    fractions: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
) -> ComplementCurve:
    """The completeness of `circuit` (all live nodes, in order) at every size.

    Args:
        nodes: what the circuit's nodes are and become.
        images: batches (B, C, H, W) of the evaluation images, gone through once.
        targets_n: what the objective reads of each image.
        config: its `sizes`, `errors` and `min_effect`. Error nodes that are no nodes stay with the complement as
            `errors` says.
        fractions: shares of the live nodes to take away instead of ``config.sizes`` sizes; none and all come along.
        groups: the group of each image, for intervals; by default each is one of its own.

    Raises:
        DataError: without images or without live nodes.
        MisLabError: when the whole circuit hardly moves the objective.
    """
    circuit, sizes = ranked_with_sizes(circuit, config, fractions)
    ends = Ends.of(nodes, config)
    left = [ends.handled(all_but(circuit.top(int(size)).kept())) for size in sizes[1:-1]]
    empty_n, full_n, *inner = objective_of_circuits(problem, ends.nodes, [*ends.masks, *left], images, targets_n)
    check_moved(circuit.kind, empty_n, full_n, config)
    values = np.stack([full_n, *inner, empty_n])
    return ComplementCurve(circuit.kind, sizes, values, group_numbers(groups, len(full_n)))

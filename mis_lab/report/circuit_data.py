"""What the page shows of circuits beyond their nodes and faithfulness: edges, completeness, all effects, activity.

Plain numbers; :mod:`mis_lab.report.circuit_collect` fills them in from the stage's result.
"""

# K live nodes of a kind  S sizes  F features or neurons of a site

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.core.intervals import Interval


@dataclass(frozen=True)
class CircuitEdge:
    """An edge between two pictured nodes, given by their places; no `target` is the objective.

    `weight`: mean over the discovery images of what the source adds to the objective through the target.
    """

    source: int
    target: int | None
    weight: float
    weight_se: float


@dataclass(frozen=True)
class Need:
    """Whether the pictured circuit needs its nodes: median of their minimality, and share below `below`."""

    median: float
    needless: float
    below: float


@dataclass(frozen=True)
class CompletenessCurve:
    """What is left of the objective without the circuit, against its size.

    Attributes:
        n_nodes: (S,) ascending; 0 and all live nodes are by construction.
        completeness, low, high: (S,) with 95 % interval over groups of images.
    """

    kind: str
    n_nodes: np.ndarray
    completeness: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class RankedNodes:
    """All live nodes of a kind, the largest |effect| first.

    Attributes:
        sites: paths, in the order of the network.
        site: (K,) which of them.
        effect: (K,).
        is_error: (K,) bool, error nodes, which have no score.
        mis: (K,) headline score, NaN without one.
        level: mean headline score of all units of the kind at these sites; NaN without any.
    """

    kind: str
    sites: Sequence[str]
    site: np.ndarray
    effect: np.ndarray
    is_error: np.ndarray
    mis: np.ndarray
    level: float


@dataclass(frozen=True)
class SiteActivity:
    """How active the units of a site are on the circuit's images, and on all evaluation images.

    Attributes:
        density, all_density: (F,) share of positions where a unit is not zero.
        dead_share, all_dead_share: share of units that are zero everywhere.
        silent_here: of the units alive on all images, the share that is dead on the circuit's; NaN without any.
    """

    site: str
    kind: str
    n_images: int
    n_all_images: int
    density: np.ndarray
    all_density: np.ndarray
    dead_share: float
    all_dead_share: float
    silent_here: float


@dataclass(frozen=True)
class CmdDifference:
    """CMD of a kind's circuits minus that of `other` on the same images: below 0 where they are closer to the network.

    `other`: ``neuron``, ``by_change``, ``best_random``, ``class NAME``; or ``class A against class B``, where A's
    circuit stands for the kind's.
    """

    kind: str
    other: str
    difference: Interval


@dataclass(frozen=True)
class CircuitDetails:
    """Everything of this module; what was not computed is empty.

    Attributes:
        need: of the pictured circuit.
        agreement: (kind, effects beside exact ones).
    """

    edges: Sequence[CircuitEdge] = ()
    completeness: Sequence[CompletenessCurve] = ()
    ranked: Sequence[RankedNodes] = ()
    activity: Sequence[SiteActivity] = ()
    need: Need | None = None
    agreement: Sequence[tuple[str, ExactAgreement]] = ()
    cmd_differences: Sequence[CmdDifference] = ()

    def completeness_at(self, kind: str, n_nodes: int) -> tuple[int, float] | None:
        """The evaluated size nearest to `n_nodes` (in ratio) among those above 0, and its completeness."""
        for curve in self.completeness:
            if curve.kind == kind:
                sizes = np.maximum(np.asarray(curve.n_nodes, dtype=np.float64), 1e-9)
                at = int(np.abs(np.log(sizes / max(n_nodes, 1))).argmin())
                return int(curve.n_nodes[at]), float(curve.completeness[at])
        return None

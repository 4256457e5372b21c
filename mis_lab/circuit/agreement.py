"""How well estimated effects predict what ablating single nodes does, on the largest nodes and on random ones.

Exact effects of all nodes cost a pass each; those of some nodes are affordable in every run. The largest alone would
judge a method where it is sure of itself, so that as many of the others are drawn beside them.
"""

# K nodes compared  V chosen nodes of a site

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from mis_lab.circuit.circuit import Circuit, Node, rank
from mis_lab.circuit.effects import SiteEffects
from mis_lab.circuit.methods.exact import exact_effects
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes
from mis_lab.core.seeding import generator


class Correlation(NamedTuple):
    """Two rows of effects compared.

    Attributes:
        n_nodes: compared.
        pearson, spearman: NaN for fewer than two nodes, or where one row does not vary.
        same_sign: share of nodes with the same sign, 0 being one of its own; NaN without nodes or signs.
    """

    n_nodes: int
    pearson: float
    spearman: float
    same_sign: float


@dataclass(frozen=True, eq=False)
class ExactAgreement:
    """Estimated beside exact effects, means over the images.

    Attributes:
        nodes: those compared, the largest estimates first, then the random ones.
        n_top: how many are among the largest.
        estimated, exact: (K,) float64; sizes of the exact ones where estimates have no sign.
        signed: whether estimates have signs.
    """

    nodes: tuple[Node, ...]
    n_top: int
    estimated: np.ndarray
    exact: np.ndarray
    signed: bool

    @property
    def top(self) -> Correlation:
        """On the largest."""
        return self._correlation(slice(None, self.n_top))

    @property
    def random(self) -> Correlation:
        """On the others that were drawn."""
        return self._correlation(slice(self.n_top, None))

    @property
    def both(self) -> Correlation:
        return self._correlation(slice(None))

    def _correlation(self, some: slice) -> Correlation:
        return correlate(self.estimated[some], self.exact[some], self.signed)


def correlate(a: np.ndarray, b: np.ndarray, signed: bool = True) -> Correlation:
    """How alike two rows of effects of the same nodes are."""
    same = np.sign(a) == np.sign(b)
    return Correlation(
        len(a),
        _pearson(a, b),
        _pearson(rankdata(a), rankdata(b)),
        float(same.mean()) if signed and len(same) else float("nan"),
    )


def effects_alike(a: Circuit, b: Circuit, signed: bool = True) -> Correlation:
    """How alike two circuits' effects are on the nodes that both hold; their sizes where not both are `signed`.

    Raises:
        ValueError: when one holds features and the other neurons.
    """
    if a.kind != b.kind:
        raise ValueError(f"effects of {a.kind}s are not compared with those of {b.kind}s")
    of_b = dict(zip(b.nodes, b.effect.tolist(), strict=True))
    both = [(effect, of_b[node]) for node, effect in zip(a.nodes, a.effect.tolist(), strict=True) if node in of_b]
    pairs = np.array(both, dtype=np.float64).reshape(-1, 2)
    mine, its = (pairs if signed else np.abs(pairs)).T
    return correlate(mine, its, signed)


def agreement_with_exact(
    problem: Problem,
    nodes: Nodes,
    effects: Mapping[str, SiteEffects],
    images: Images,
    targets_n: Tensor,
    n_top: int = 200,
    n_random: int = 200,
    seed: int = 0,
) -> ExactAgreement:
    """Compare `effects` with exact ones, on the nodes of largest |mean effect| of all sites and on random other ones.

    Only live nodes are compared: a node that never leaves its baseline has no effect whatever the method.

    Args:
        nodes: the nodes that `effects` are of.
        effects: site path → effects of some method on these images.
        images: batches (B, C, H, W), discovery images.
        targets_n: the class of each image that the objective reads.
        seed: of the random nodes.

    Raises:
        DataError: without images.
    """
    ranked = rank("node", effects)
    n_top = min(n_top, len(ranked))
    others = torch.randperm(len(ranked) - n_top, generator=generator(seed, "circuit", "agreement")) + n_top
    compared = ranked.take(torch.cat([torch.arange(n_top), others[:n_random]]))
    paths = list(effects)
    rows = {path: (compared.site == number).nonzero().squeeze(1) for number, path in enumerate(paths)}
    which = {path: compared.feature[row] for path, row in rows.items() if len(row)}
    exact = np.zeros(len(compared))
    for path, effects_nv in exact_effects(problem, nodes, images, targets_n, which).items():
        exact[rows[path].numpy()] = effects_nv.mean(0, dtype=torch.float64).numpy()
    signed = all(of_site.signed for of_site in effects.values())
    return ExactAgreement(
        tuple(compared.nodes), n_top, compared.effect.numpy(), exact if signed else np.abs(exact), signed
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or not (np.ptp(a) and np.ptp(b)):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])

"""Numbers about circuits that need no network: their sizes at a threshold, their distance from the whole, their scores.

Whether the units of a circuit are easier to understand than others is what joins circuits with scores.
"""

# K live nodes of a kind  S sizes  T thresholds  E edges

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from mis_lab.circuit.graph import OBJECTIVE, Edges
from mis_lab.core.intervals import Interval
from mis_lab.report.circuit_data import RankedNodes


class ScoresOfCircuits(NamedTuple):
    """Scores of the circuits of some sizes.

    Attributes:
        n_nodes: (S,) sizes, error nodes included.
        threshold: (S,) |effect| of the smallest node kept.
        mean: (S,) mean score of the nodes kept that have one; NaN without any.
        n_scored: (S,) how many have one.
    """

    n_nodes: np.ndarray
    threshold: np.ndarray
    mean: np.ndarray
    n_scored: np.ndarray


class RankCorrelation(NamedTuple):
    """Spearman's ρ over `n` nodes; NaN for fewer than two, or where one row does not vary."""

    rho: float
    n: int


def distance_from_whole(faithfulness: Interval) -> Interval:
    """|F − 1| with the interval that follows from that of F: down to 0 where that of F holds 1."""
    estimate, low, high = (np.asarray(part, dtype=np.float64) for part in faithfulness)
    ends = np.abs(low - 1), np.abs(high - 1)
    holds = (low <= 1) & (high >= 1)
    return Interval(np.abs(estimate - 1), np.where(holds, 0.0, np.minimum(*ends)), np.maximum(*ends))


def n_above(effect: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(T,) nodes whose |effect| (K,) is at least each of `thresholds` (T,)."""
    sizes = np.sort(np.abs(effect))
    return len(sizes) - np.searchsorted(sizes, thresholds, side="left")


def median_effects(ranked: RankedNodes) -> dict[str, float]:
    """Site → median |effect| of its live nodes, error nodes left out; sites without any are missing."""
    found = {}
    for number, site in enumerate(ranked.sites):
        here = np.abs(ranked.effect[(ranked.site == number) & ~ranked.is_error])
        if here.size:
            found[site] = float(np.median(here))
    return found


def scores_of_circuits(ranked: RankedNodes, sizes: np.ndarray) -> ScoresOfCircuits:
    """Mean scores of the circuits of the first `sizes` (S,) nodes; sizes of 0 or more than there are are left out."""
    sizes = np.asarray(sizes, dtype=np.int64)
    sizes = sizes[(sizes > 0) & (sizes <= len(ranked.effect))]
    scored = np.isfinite(ranked.mis)
    n_scored = np.cumsum(scored)[sizes - 1]
    total = np.cumsum(np.where(scored, ranked.mis, 0.0), dtype=np.float64)[sizes - 1]
    mean = np.divide(total, n_scored, out=np.full(len(sizes), np.nan), where=n_scored > 0)
    return ScoresOfCircuits(sizes, np.abs(ranked.effect)[sizes - 1], mean, n_scored)


def effect_against_score(ranked: RankedNodes) -> RankCorrelation:
    """How |effect| and score of the nodes that have both go together."""
    scored = np.isfinite(ranked.mis)
    effect, mis = np.abs(ranked.effect[scored]), ranked.mis[scored]
    if len(mis) < 2 or not (np.ptp(effect) and np.ptp(mis)):
        return RankCorrelation(float("nan"), len(mis))
    return RankCorrelation(float(spearmanr(effect, mis).statistic), len(mis))


def coverage_by_site(edges: Edges) -> dict[str, float]:
    """Site → what its edges into chosen nodes of later sites tell of what its chosen nodes pass on.

    The mean of each node's :attr:`~mis_lab.circuit.graph.Edges.coverage`, weighted by |total|:
    Σ sign(total)·told / Σ |total|. A site that passes nothing on is missing.
    """
    total, coverage = edges.total.numpy(), edges.coverage.numpy()
    found = {}
    for number, site in enumerate(edges.sites):
        here = (edges.total_site.numpy() == number) & (edges.total_target.numpy() != OBJECTIVE) & (total != 0)
        if here.any():
            weights = np.abs(total[here])
            found[site] = float((weights * coverage[here]).sum() / weights.sum())
    return found

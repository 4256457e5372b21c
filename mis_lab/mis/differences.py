"""How two sets of numbers differ: test, effect size, bootstrap intervals, correction for several tests.

Mann and Whitney (1947) for the test, Cliff (1993) for the effect size, percentile bootstrap (expanded
for few units, Hesterberg 2015), Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from mis_lab.core.intervals import Interval, expanded_confidence, percentile_interval
from mis_lab.core.seeding import numpy_generator

# A set has A or B units  R resamples

_MOST_NUMBERS = 1 << 20  # drawn at once


def mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of the Mann-Whitney test; NaN when a set is empty, 1 when all values are the same."""
    if not len(a) or not len(b):
        return np.nan
    if np.ptp(np.concatenate([a, b])) == 0:
        return 1.0
    return float(mannwhitneyu(a, b, alternative="two-sided").pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; NaN entries stay NaN and count for nothing."""
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full_like(p, np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def cliffs_delta(a: np.ndarray, b: np.ndarray) -> float:
    """P(a > b) − P(a < b) over all pairs (Cliff 1993), by ranks in O(n log n)."""
    return float(_Pooled(a, b).cliffs_delta(np.arange(len(a))[None], np.arange(len(b))[None])[0])


class _Pooled:
    """Both sets' values ranked once, so that a resample costs O(n)."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        distinct, place = np.unique(np.concatenate([a, b]), return_inverse=True)
        self._n_distinct, self._place_a, self._place_b = len(distinct), place[: len(a)], place[len(a) :]

    def cliffs_delta(self, at_ra: np.ndarray, at_rb: np.ndarray) -> np.ndarray:
        """(R,) Cliff's delta of resamples, given by the places of the drawn values."""
        n_a, n_b = at_ra.shape[1], at_rb.shape[1]
        in_a, in_b = self._counts(self._place_a[at_ra]), self._counts(self._place_b[at_rb])
        upto_b = np.cumsum(in_b, axis=1)
        below_minus_above = (upto_b - in_b) - (n_b - upto_b)
        return np.asarray((in_a * below_minus_above).sum(1) / (n_a * n_b))

    def _counts(self, places_rn: np.ndarray) -> np.ndarray:
        """How often each distinct value was drawn, a row for each resample."""
        n_resamples = len(places_rn)
        flat = places_rn + np.arange(n_resamples)[:, None] * self._n_distinct
        counts = np.bincount(flat.ravel(), minlength=n_resamples * self._n_distinct)
        return counts.reshape(n_resamples, self._n_distinct)


class UnitBootstrap(NamedTuple):
    """Estimates with 95 % intervals from resampled units."""

    cliffs_delta: Interval
    median_difference: Interval
    mean_difference: Interval


def unit_bootstrap(a: np.ndarray, b: np.ndarray, n_bootstrap: int, seed: int) -> UnitBootstrap:
    """Cliff's delta, differences of medians and means, units of each set resampled.

    NaN for an empty set, NaN limits for a set of one unit, whose spread nothing tells. Percentiles are expanded but for
    medians, whose resamples spread more than they do.
    """
    if not len(a) or not len(b):
        return UnitBootstrap(*(Interval(np.nan, np.nan, np.nan) for _ in UnitBootstrap._fields))
    estimates = (cliffs_delta(a, b), float(np.median(a) - np.median(b)), float(a.mean() - b.mean()))
    if min(len(a), len(b)) < 2:
        return UnitBootstrap(*(Interval(one, np.nan, np.nan) for one in estimates))
    random, pooled, resampled = numpy_generator(seed, "bootstrap", "units"), _Pooled(a, b), []
    step = max(1, _MOST_NUMBERS // (len(a) + len(b)))
    for start in range(0, n_bootstrap, step):
        n_drawn = min(step, n_bootstrap - start)
        at_ra, at_rb = (random.integers(0, len(one), (n_drawn, len(one))) for one in (a, b))
        drawn_a, drawn_b = a[at_ra], b[at_rb]
        medians = np.median(drawn_a, axis=1) - np.median(drawn_b, axis=1)
        resampled.append([pooled.cliffs_delta(at_ra, at_rb), medians, drawn_a.mean(1) - drawn_b.mean(1)])
    expanded = _expanded(a, b)
    return UnitBootstrap(*map(resampled_interval, estimates, np.concatenate(resampled, 1), (expanded, 0.95, expanded)))


def _expanded(a: np.ndarray, b: np.ndarray) -> float:
    """Confidence of expanded percentiles for two sets, degrees of freedom by Welch (1947)."""
    n_a, n_b = len(a), len(b)
    of_a, of_b = a.var(ddof=1) / n_a, b.var(ddof=1) / n_b
    if of_a + of_b == 0:
        return expanded_confidence(n_a + n_b - 2)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (n_a - 1) + of_b**2 / (n_b - 1))
    of_resamples = of_a * (n_a - 1) / n_a + of_b * (n_b - 1) / n_b
    return expanded_confidence(freedom, np.sqrt((of_a + of_b) / of_resamples))


def resampled_interval(estimate: float, resampled: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile interval as plain numbers."""
    return Interval(*(float(value) for value in percentile_interval(estimate, resampled, confidence)))

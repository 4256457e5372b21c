"""How two sets of numbers differ: test, effect size, bootstrap intervals, correction for several tests.

Mann and Whitney (1947) for the test, Cliff (1993) for the effect size, percentile bootstrap, Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from mis_lab.core.intervals import Interval, percentile_interval
from mis_lab.core.seeding import numpy_generator


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
    return float(_Pooled(a, b).cliffs_delta(np.ones(len(a)), np.ones(len(b))))


class _Pooled:
    """Both sets' values ranked once, so that a resample costs O(n)."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        distinct, place = np.unique(np.concatenate([a, b]), return_inverse=True)
        self._n_distinct, self._place_a, self._place_b = len(distinct), place[: len(a)], place[len(a) :]

    def cliffs_delta(self, weights_a: np.ndarray, weights_b: np.ndarray) -> float:
        """Cliff's delta when each value stands there `weight` times."""
        at_a = np.bincount(self._place_a, weights_a, self._n_distinct)
        at_b = np.bincount(self._place_b, weights_b, self._n_distinct)
        upto_b, n_a, n_b = np.cumsum(at_b), weights_a.sum(), weights_b.sum()
        below_minus_above = (upto_b - at_b) - (n_b - upto_b)
        return at_a @ below_minus_above / (n_a * n_b)


class UnitBootstrap(NamedTuple):
    """Estimates with 95 % percentile intervals from resampled units."""

    cliffs_delta: Interval
    median_difference: Interval
    mean_difference: Interval


def unit_bootstrap(a: np.ndarray, b: np.ndarray, n_bootstrap: int, seed: int) -> UnitBootstrap:
    """Cliff's delta, differences of medians and means, units of each set resampled; NaN for an empty set."""
    if not len(a) or not len(b):
        return UnitBootstrap(*(Interval(np.nan, np.nan, np.nan) for _ in UnitBootstrap._fields))
    random, pooled = numpy_generator(seed, "bootstrap", "units"), _Pooled(a, b)
    resampled = np.empty((n_bootstrap, 3))
    for row in resampled:
        at_a, at_b = random.integers(0, len(a), len(a)), random.integers(0, len(b), len(b))
        weights_a, weights_b = np.bincount(at_a, minlength=len(a)), np.bincount(at_b, minlength=len(b))
        drawn_a, drawn_b = a[at_a], b[at_b]
        row[:] = (
            pooled.cliffs_delta(weights_a, weights_b),
            np.median(drawn_a) - np.median(drawn_b),
            drawn_a.mean() - drawn_b.mean(),
        )
    estimates = (cliffs_delta(a, b), np.median(a) - np.median(b), a.mean() - b.mean())
    return UnitBootstrap(*(resampled_interval(*pair) for pair in zip(estimates, resampled.T, strict=True)))


def resampled_interval(estimate: float, resampled: np.ndarray) -> Interval:
    """95 % percentile interval as plain numbers."""
    return Interval(*(float(value) for value in percentile_interval(estimate, resampled)))

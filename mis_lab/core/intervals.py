"""Confidence intervals: Wilson for proportions, percentile bootstrap for everything else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t


class Interval(NamedTuple):
    """An estimate with its confidence limits; scalars or arrays of one shape."""

    estimate: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float


def wilson(proportion: np.ndarray | float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion out of `n` trials (Wilson 1927).

    `proportion` may come from half-counted ties, so that successes need not be whole.
    """
    if n <= 0:
        raise ValueError("a proportion needs at least one trial")
    z = norm.ppf(0.5 + confidence / 2)
    p = np.asarray(proportion, dtype=np.float64)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(proportion, np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1))


def percentile_interval(estimate: np.ndarray | float, resampled: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval from resampled estimates (R, ...) along the first axis."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.asarray(resampled, dtype=np.float64), [tail, 1 - tail], axis=0)
    return Interval(estimate, low, high)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of (n,) independent values with Student's t interval; NaN for none, NaN limits for a single one."""
    n = len(values)
    if not n:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)

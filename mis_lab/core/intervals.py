"""Confidence intervals: Wilson for proportions, jackknife over groups of images, percentile bootstrap for the rest.

Plain percentiles are too narrow for few values, and know nothing of values that were not seen. The first is mended by
the expanded percentiles of Hesterberg (2015), the second, for means of bounded values, by one more value.
"""

# U rows, each of N values  R resamples  G groups of n images

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student


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


def student_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of (n,) independent values with Student's t interval; NaN for none, NaN limits for a single one."""
    n = len(values)
    if not n:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(student.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def leave_out_sums(values: np.ndarray, groups_n: np.ndarray) -> np.ndarray:
    """(1 + G, ...): sums over the n images of `values` (..., n), of all of them, then without each group.

    Args:
        groups_n: (n,) int64, the group of each image, any numbers.

    Raises:
        ValueError: when there are not as many as values.
    """
    if len(groups_n) != np.shape(values)[-1]:
        raise ValueError(f"{np.shape(values)[-1]} images have {len(groups_n)} groups")
    codes_n = np.unique(groups_n, return_inverse=True)[1]
    order = np.argsort(codes_n, kind="stable")
    starts = np.searchsorted(codes_n[order], np.arange(codes_n.max() + 1))
    of_groups = np.add.reduceat(np.asarray(values, dtype=np.float64)[..., order], starts, axis=-1)
    total = of_groups.sum(-1)
    return np.concatenate([total[None], total - np.moveaxis(of_groups, -1, 0)])


def jackknife_interval(found: np.ndarray, groups_n: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's interval around an estimate, with the standard error of what leaving out a group changes.

    Images of a group (a photograph's patches) tell less than as many of different ones: resampling images covers the
    truth in half of all cases where photographs differ. The standard error is that of the delete-a-group jackknife,
    √((G − 1)/G · Σ(θ_g − θ̄)²) (Kott 2001); degrees of freedom are those of the groups in effect, 1/Σw² − 1 with w the
    share of the images in a group (Kish 1965).

    Args:
        found: (1 + G, ...) the estimate from all images, then without each group, in the order of
            :func:`leave_out_sums`.
        groups_n: (n,) int64, the group of each image.

    Returns:
        Limits are NaN where there are fewer than one and a half groups in effect, or where the estimate without a
        group is none.

    Raises:
        ValueError: when `found` is not of these groups.
    """
    estimate, without = found[0], found[1:]
    n_groups, counts = len(without), np.unique(groups_n, return_counts=True)[1]
    if n_groups != len(counts):
        raise ValueError(f"{n_groups} estimates without a group, of {len(counts)} groups")
    freedom = float(counts.sum() ** 2 / (counts**2).sum()) - 1
    if n_groups < 2 or freedom < 0.5:
        return Interval(estimate, estimate * np.nan, estimate * np.nan)
    with np.errstate(invalid="ignore"):  # infinite without a group
        squares = np.square(without - without.mean(0)).sum(0)
    half = student.ppf(0.5 + confidence / 2, freedom) * np.sqrt(squares * (n_groups - 1) / n_groups)
    return Interval(estimate, estimate - half, estimate + half)


def expanded_confidence(freedom: float, widening: float | None = None, confidence: float = 0.95) -> float:
    """The confidence of percentiles that cover `confidence` (expanded percentile interval, Hesterberg 2015).

    A resample spreads like a sample whose variance is divided by n instead of n − 1, and percentiles do for the normal
    distribution what Student's t does for few values. For normal values the result is as wide as the t interval.

    Args:
        freedom: degrees of freedom, n − 1 for one sample.
        widening: standard error over that of resamples; √(n/(n − 1)) of one sample by default.
    """
    widening = np.sqrt(1 + 1 / freedom) if widening is None else widening
    return float(1 - 2 * norm.cdf(-widening * student.ppf(0.5 + confidence / 2, freedom)))


def mean_interval(values_un: np.ndarray, random: np.random.Generator, n_bootstrap: int) -> Interval:
    """95 % expanded percentile interval of the mean of each row, (U,); NaN limits where N < 2.

    Rows share the resamples, so that a row's limits depend on no other row.
    """
    values_un = np.asarray(values_un, dtype=np.float64)
    means, n_values = values_un.mean(1), values_un.shape[1]
    if n_values < 2:
        return Interval(means, np.full_like(means, np.nan), np.full_like(means, np.nan))
    return _around(means, values_un, random, n_bootstrap)


def bounded_mean_interval(values_un: np.ndarray, random: np.random.Generator, n_bootstrap: int) -> Interval:
    """95 % interval of the mean of each row, (U,), for values in [0, 1]; it lies in [0, 1].

    :func:`mean_interval` of the values and one more of ½, as Wilson's interval amounts to four more trials, half of
    them successes. Near a bound the values seen are all alike, and what would lower their mean is rare: one value in
    twenty is missing from a third of all samples of twenty, whose resamples then miss it, too. The additional value
    stands for it. The estimate remains the mean of the values. From five values on the interval covers the mean of
    skewed and two-valued distributions in more than 90 of 100 cases; fewer values are too few for any resampling.
    """
    values_un = np.asarray(values_un, dtype=np.float64)
    one_more = np.concatenate([values_un, np.full((len(values_un), 1), 0.5)], axis=1)
    return _around(values_un.mean(1), one_more, random, n_bootstrap)


def _around(means: np.ndarray, values_un: np.ndarray, random: np.random.Generator, n_bootstrap: int) -> Interval:
    """Expanded percentiles of means of resampled values, and `means` between them."""
    n_values = values_un.shape[1]
    draws = random.integers(0, n_values, (n_bootstrap, n_values))
    places = draws + np.arange(n_bootstrap)[:, None] * n_values
    counts_rn = np.bincount(places.ravel(), minlength=n_bootstrap * n_values).reshape(n_bootstrap, n_values)
    # Rows of resamples: quantiles of columns are slow.
    resampled_ur = _summable(values_un) @ counts_rn.T.astype(np.float64) / n_values
    tail = (1 - expanded_confidence(n_values - 1)) / 2
    low, high = np.quantile(resampled_ur, [tail, 1 - tail], axis=1)
    return Interval(means, np.minimum(low, means), np.maximum(high, means))


def _summable(values_un: np.ndarray) -> np.ndarray:
    """Values rounded to about 13 digits of their row's largest, so that sums of N of them are exact in any order.

    A matrix product adds up in another order for another number of rows; with these it makes no difference.
    """
    n_bits = 52 - math.ceil(math.log2(values_un.shape[1] + 1))
    _, exponents = np.frexp(np.abs(values_un).max(1, keepdims=True))
    return np.ldexp(np.rint(np.ldexp(values_un, n_bits - exponents)), exponents - n_bits)

"""Do metrics and settings rank units alike, and how much of a score is noise of the draw?

Spearman's and Kendall's rank correlation (τ_b, ties allowed) with intervals over units; intraclass correlation of
scores drawn again with other seeds (Shrout and Fleiss 1979, one-way), so that an effect can stand beside the noise.
"""

# U units  R seeds, or resamples

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import f as f_distribution
from scipy.stats import kendalltau, rankdata

from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.mis.differences import resampled_interval

_MOST_PAIRS = 1 << 20  # of units, up to which resamples count pairs instead of sorting
_CHUNK_NUMBERS = 1 << 20
_NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class RankAgreement:
    """How alike two scores rank the same units.

    Attributes:
        first, second: names of the scores.
        n_units: units with both.
        spearman, kendall: with 95 % intervals from resampled units; NaN when a score does not vary.
    """

    first: str
    second: str
    n_units: int
    spearman: Interval
    kendall: Interval


def rank_agreement(
    a: np.ndarray, b: np.ndarray, first: str = "a", second: str = "b", n_bootstrap: int = 500, seed: int = 0
) -> RankAgreement:
    """Rank correlation of two scores of the same units; units without both are left out.

    Resamples in which a score does not vary are passed over.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} scores")
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    n = len(a)
    if n < 2 or not np.ptp(a) or not np.ptp(b):
        return RankAgreement(first, second, n, _NOTHING, _NOTHING)
    random, step = numpy_generator(seed, "bootstrap", "agreement"), max(1, _CHUNK_NUMBERS // n)
    drawn = [random.integers(0, n, (min(step, n_bootstrap - start), n)) for start in range(0, n_bootstrap, step)]
    resampled = np.concatenate([_correlations(a, b, one) for one in drawn])
    resampled = resampled[np.isfinite(resampled).all(1)]
    estimated = _correlations(a, b, np.arange(n)[None])[0].tolist()
    if not len(resampled):
        spearman, kendall = (Interval(one, np.nan, np.nan) for one in estimated)
    else:
        spearman, kendall = map(resampled_interval, estimated, resampled.T)
    return RankAgreement(first, second, n, spearman, kendall)


def agreement_table(scores: Mapping[str, np.ndarray], n_bootstrap: int = 500, seed: int = 0) -> list[RankAgreement]:
    """Rank agreement of every two scores; each resample draws the same units for all pairs with the same units."""
    return [rank_agreement(scores[a], scores[b], a, b, n_bootstrap, seed) for a, b in combinations(scores, 2)]


def spearman_matrix(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, n) float64 Spearman's rank correlations of every two scores of the same units, over the units that have both;
    NaN where a score does not vary or fewer than three units have both."""
    values = [np.asarray(one, dtype=np.float64) for one in scores.values()]
    matrix = np.full((len(values), len(values)), np.nan)
    for row, a in enumerate(values):
        for column, b in enumerate(values[: row + 1]):
            both = np.isfinite(a) & np.isfinite(b)
            if both.sum() > 2 and np.ptp(a[both]) and np.ptp(b[both]):
                matrix[row, column] = matrix[column, row] = np.corrcoef(rankdata(a[both]), rankdata(b[both]))[0, 1]
    return matrix


def _correlations(a: np.ndarray, b: np.ndarray, drawn_ru: np.ndarray) -> np.ndarray:
    """(R, 2) Spearman's and Kendall's correlation of resamples; NaN where a score does not vary."""
    flat = (np.ptp(a[drawn_ru], axis=1) == 0) | (np.ptp(b[drawn_ru], axis=1) == 0)
    found, varying_ru = np.full((len(drawn_ru), 2), np.nan), drawn_ru[~flat]
    ranks = [rankdata(one[varying_ru], axis=1) - (len(a) + 1) / 2 for one in (a, b)]
    squares = [(one**2).sum(1) for one in ranks]
    found[~flat, 0] = (ranks[0] * ranks[1]).sum(1) / np.sqrt(squares[0] * squares[1])
    found[~flat, 1] = _kendall(a, b, varying_ru)
    return found


def _kendall(a: np.ndarray, b: np.ndarray, drawn_ru: np.ndarray) -> np.ndarray:
    """(R,) τ_b of resamples: by signs of all pairs, which for few units is a hundred times as fast, or by sorting."""
    n = len(a)
    if n * n > _MOST_PAIRS:
        return np.array([kendalltau(a[drawn], b[drawn]).statistic for drawn in drawn_ru])
    places_ru = drawn_ru + np.arange(len(drawn_ru))[:, None] * n
    counts_ru = np.bincount(places_ru.ravel(), minlength=drawn_ru.size).reshape(-1, n).astype(np.float64)
    signs = [np.sign(one[:, None] - one) for one in (a, b)]
    both, in_a, in_b = (
        ((counts_ru @ pairs_uu) * counts_ru).sum(1) for pairs_uu in (signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2)
    )
    return np.asarray(both / np.sqrt(in_a * in_b))


@dataclass(frozen=True)
class ReseedNoise:
    """What drawing the tasks again changes, against what units differ by.

    Attributes:
        n_units, n_seeds: scored with every seed.
        within_sd: of a unit's score over seeds: the noise of one score.
        between_sd: of the units' true scores, noise taken off (0 when noise explains all).
        icc: share of the variance of one score that is between units; below zero when units differ by less than noise.
        icc_of_mean: the same of the mean over the seeds.
        mean_sd: of the units' mean score over seeds, as measured: a mean over units moves less than a unit, but more
            than within_sd / √U when seeds move all units together.
    """

    n_units: int
    n_seeds: int
    within_sd: float
    between_sd: float
    icc: Interval
    icc_of_mean: Interval
    mean_sd: float

    @property
    def repeatability(self) -> float:
        """Two scores of one unit with different seeds differ by less in 95 of 100 cases (Bland and Altman 1986)."""
        return float(1.96 * np.sqrt(2) * self.within_sd)

    def in_noise(self, difference: float) -> float:
        """A difference of two units' scores in units of what noise alone makes of it, √2 · within_sd."""
        noise = np.sqrt(2) * self.within_sd
        with np.errstate(divide="ignore", invalid="ignore"):  # without noise: infinite, or NaN for no difference
            return float(np.float64(difference) / noise)


def reseed_noise(scores_ur: np.ndarray) -> ReseedNoise:
    """Noise of scores that were drawn with R seeds.

    Args:
        scores_ur: (U, R); units without a score for every seed are left out.

    Raises:
        DataError: when fewer than two units or seeds are left.
    """
    scores = np.asarray(scores_ur, dtype=np.float64)
    scores = scores[np.isfinite(scores).all(1)]
    n_units, n_seeds = scores.shape
    if n_units < 2 or n_seeds < 2:
        raise DataError(
            f"{n_units} units with a score for each of {n_seeds} seeds tell nothing about noise",
            fix="Score at least two units with at least two seeds.",
        )
    means = scores.mean(1)
    within = float(((scores - means[:, None]) ** 2).sum() / (n_units * (n_seeds - 1)))
    within *= bool(np.ptp(scores, axis=1).any())  # equal scores: what is left is rounding of their mean
    between = float(n_seeds * means.var(ddof=1))
    single, mean = _icc(within, between, n_units, n_seeds)
    return ReseedNoise(
        n_units=n_units,
        n_seeds=n_seeds,
        within_sd=within**0.5,
        between_sd=max(0.0, (between - within) / n_seeds) ** 0.5,
        icc=single,
        icc_of_mean=mean,
        mean_sd=float(scores.mean(0).std(ddof=1)),
    )


def _icc(within: float, between: float, n_units: int, n_seeds: int) -> tuple[Interval, Interval]:
    """ICC(1,1) and ICC(1,k) of Shrout and Fleiss, with 95 % intervals from the F distribution."""
    if within == 0:
        value = 1.0 if between else np.nan
        return Interval(value, value, value), Interval(value, value, value)
    ratio, freedom = between / within, (n_units - 1, n_units * (n_seeds - 1))
    ratios = (
        ratio,
        ratio / f_distribution.ppf(0.975, *freedom),
        ratio * f_distribution.ppf(0.975, *reversed(freedom)),
    )
    single = Interval(*(float((one - 1) / (one + n_seeds - 1)) for one in ratios))
    if between == 0:
        return single, Interval(-np.inf, -np.inf, -np.inf)
    return single, Interval(*(float(1 - 1 / one) for one in ratios))

"""Matched pairs: each feature beside the neuron that correlates best with it, and a paired comparison of their scores.

Features and neurons of a site differ in what they respond to, and a difference of their scores may be one of subject.
Wilcoxon (1945) for the test, Kerby (2014) for the matched-pairs rank-biserial correlation.
"""

# B images or vectors of a chunk  A units to be matched  V units to choose from

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata, wilcoxon
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import aggregate
from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval, expanded_confidence
from mis_lab.core.seeding import numpy_generator
from mis_lab.mis.differences import resampled_interval

if TYPE_CHECKING:
    from mis_lab.activations.shards import StoredActivations
    from mis_lab.activations.units import UnitSource

# Starts a pass: activations (B, A) and (B, V) of the same images or vectors.
PairedChunks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
_MOST_NUMBERS = 1 << 26  # of a block of the A × V matrix
_CHUNK_NUMBERS = 1 << 23
_DECIMALS = 12  # differences of equal steps must tie: 0.35 − 0.30 and 0.40 − 0.35


class Matches(NamedTuple):
    """The best partner of each of A units; −1 and NaN for a unit that is constant, or when all partners are.

    Attributes:
        partner: (A,) int64, the first of equally good ones.
        correlation: (A,) float64, Pearson's r, signed.
    """

    partner: Tensor
    correlation: Tensor


def image_chunks(
    stored: StoredActivations,
    a: UnitSource,
    b: UnitSource,
    image_activation: ImageActivation | None = ImageActivation.mean,
    device: torch.device | str = "cpu",
) -> PairedChunks:
    """Passes over a store that give image activations of both sources, or those of vectors for None."""
    return partial(_chunks, stored, a, b, image_activation, device)


def _chunks(
    stored: StoredActivations,
    a: UnitSource,
    b: UnitSource,
    image_activation: ImageActivation | None,
    device: torch.device | str,
) -> Iterator[tuple[Tensor, Tensor]]:
    per_image = stored.n_positions * max(a.n_units, b.n_units, stored.width)
    for _, x_bpd in stored.images(max(1, _CHUNK_NUMBERS // per_image)):
        with torch.no_grad():
            both = [source.activate(x_bpd.to(device)) for source in (a, b)]
        if image_activation is None:
            first, second = (part.flatten(0, 1) for part in both)
        else:
            first, second = (aggregate(part, image_activation) for part in both)
        yield first, second


def best_partners(chunks: PairedChunks, absolute: bool = False, most_numbers: int = _MOST_NUMBERS) -> Matches:
    """The unit b that correlates best with each unit a, in float64.

    Args:
        chunks: starts a pass; one pass for each block of units a, so that never more than `most_numbers` of the A × V
            co-moments are in memory.
        absolute: by |r|. A partner with r < 0 has its strongest images where the unit has its weakest.

    Raises:
        DataError: when there are no activations, or some are not finite.
    """
    partner, correlation = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
    start, n_units = 0, 1
    while start < n_units:
        found = _CoMoments()
        for a_ba, b_bv in chunks():
            n_units = a_ba.shape[1]
            step = max(1, most_numbers // b_bv.shape[1])
            found.update(a_ba[:, start : start + step], b_bv)
        if not found.count:
            raise DataError("no activations to correlate", fix="Give a function that starts a pass over them.")
        r_av = found.correlations()
        best = (r_av.abs() if absolute else r_av).nan_to_num(-torch.inf)
        place = best.argmax(1)
        r_a = r_av.gather(1, place[:, None])[:, 0]
        partner.append(place.masked_fill(r_a.isnan(), -1))
        correlation.append(r_a)
        start += step
    return Matches(torch.cat(partner), torch.cat(correlation))


def partner_scores(matches: Matches, scores_v: np.ndarray) -> np.ndarray:
    """(A,) the score of each unit's partner, NaN for a unit without one."""
    partner = matches.partner.numpy()
    return np.where(partner >= 0, np.asarray(scores_v, dtype=np.float64)[partner], np.nan)


class _CoMoments:
    """Means and summed products of deviations, merged chunk by chunk (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean_a = self._mean_b = self._square_a = self._square_b = self._cross = torch.empty(0)

    def update(self, a_ba: Tensor, b_bv: Tensor) -> None:
        """Add activations of the same B images or vectors."""
        n = len(a_ba)
        if not n:
            return
        if len(b_bv) != n:
            raise ValueError(f"{n} and {len(b_bv)} rows of activations")
        a, b = (part.detach().to("cpu", torch.float64) for part in (a_ba, b_bv))
        mean_a, mean_b = a.mean(0), b.mean(0)
        if not (mean_a.isfinite().all() and mean_b.isfinite().all()):
            raise DataError("some activations are NaN or infinite", fix="Look at the SAE's training.")
        a, b = a - mean_a, b - mean_b
        if not self.count:
            self._mean_a, self._mean_b = torch.zeros_like(mean_a), torch.zeros_like(mean_b)
            self._square_a, self._square_b = torch.zeros_like(mean_a), torch.zeros_like(mean_b)
            self._cross = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
        count = self.count + n
        apart_a, apart_b = mean_a - self._mean_a, mean_b - self._mean_b
        weight = self.count * n / count
        self._cross.addmm_(a.T, b)
        self._cross.addr_(apart_a, apart_b, alpha=weight)
        self._square_a += a.square().sum(0) + weight * apart_a.square()
        self._square_b += b.square().sum(0) + weight * apart_b.square()
        self._mean_a += apart_a * (n / count)
        self._mean_b += apart_b * (n / count)
        self.count = count

    def correlations(self) -> Tensor:
        """(A, V) Pearson's r in [−1, 1], NaN with a unit whose spread is nothing but rounding."""
        roots = []
        for mean, square in ((self._mean_a, self._square_a), (self._mean_b, self._square_b)):
            flat = square <= self.count * (1e-12 * mean).square()
            roots.append(square.sqrt().masked_fill(flat, torch.nan))
        return (self._cross / roots[0][:, None] / roots[1]).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class PairedComparison:
    """Scores a against scores b of matched units; differences are a − b.

    Attributes:
        n_pairs: pairs with both scores.
        n_replicates: independent ones: pairs of the same cluster (the same neuron) count as one, by their mean.
        p_value: two-sided Wilcoxon signed-rank test over replicates; NaN for none, 1 when all differences are zero.
        rank_biserial: (W₊ − W₋) / (W₊ + W₋), in [−1, 1]; 0 when all are zero. Interval over replicates.
        mean_difference, median_difference: over replicates, with intervals; NaN limits for a single one.
    """

    n_pairs: int
    n_replicates: int
    p_value: float
    rank_biserial: Interval
    mean_difference: Interval
    median_difference: Interval


def compare_pairs(
    a: np.ndarray, b: np.ndarray, clusters: np.ndarray | None = None, n_bootstrap: int = 1000, seed: int = 0
) -> PairedComparison:
    """Compare the scores of matched units.

    Args:
        a, b: (A,) scores; b of each unit's partner. Pairs without both are left out.
        clusters: (A,) what several pairs have in common (:attr:`Matches.partner`); each pair for itself by default.
    """
    if not len(a) == len(b) == len(a if clusters is None else clusters):
        raise ValueError(f"{len(a)} and {len(b)} scores")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    there = np.isfinite(differences)
    n_pairs, differences = int(there.sum()), differences[there]
    if clusters is not None:
        _, of = np.unique(np.asarray(clusters)[there], return_inverse=True)
        differences = np.bincount(of, differences) / np.maximum(np.bincount(of), 1)
    differences = np.round(differences, _DECIMALS)
    if not len(differences):
        nothing = Interval(np.nan, np.nan, np.nan)
        return PairedComparison(n_pairs, 0, np.nan, nothing, nothing, nothing)
    random, n = numpy_generator(seed, "bootstrap", "pairs"), len(differences)
    step = max(1, _CHUNK_NUMBERS // n)
    sizes = [min(step, n_bootstrap - start) for start in range(0, n_bootstrap, step)]
    resampled = np.concatenate([_statistics(differences[random.integers(0, n, (size, n))]) for size in sizes], 1)
    estimates = _statistics(differences).tolist()
    intervals = [_interval(one, row, n) for one, row in zip(estimates, resampled, strict=True)]
    return PairedComparison(n_pairs, n, signed_rank(differences), *intervals)


def _interval(estimate: float, resampled: np.ndarray, n: int) -> Interval:
    """95 % expanded percentile interval: plain percentiles leave out zero in 7 of 100 cases at 20 equal replicates."""
    if n < 2:
        return Interval(estimate, np.nan, np.nan)
    return resampled_interval(estimate, resampled, expanded_confidence(n - 1))


def _statistics(differences: np.ndarray) -> np.ndarray:
    """(3, ...) of the last axis: rank-biserial correlation, mean, median."""
    return np.stack([rank_biserial(differences), differences.mean(-1), np.median(differences, axis=-1)])


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, zeros left out; NaN for nothing, 1 when all are zero."""
    if not len(differences):
        return np.nan
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences[differences != 0]).pvalue)


def rank_biserial(differences: np.ndarray) -> np.ndarray:
    """Matched-pairs rank-biserial correlation over the last axis; zeros left out, 0 when there is nothing else."""
    n_zeros = (differences == 0).sum(-1, keepdims=True)
    ranks = rankdata(np.abs(differences), axis=-1) - n_zeros  # zeros have the lowest ranks
    n = differences.shape[-1] - n_zeros[..., 0]
    return np.asarray((np.sign(differences) * ranks).sum(-1) / np.maximum(n * (n + 1) / 2, 1))

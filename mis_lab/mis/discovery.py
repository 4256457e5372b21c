"""How many units are interpretable: p-values of hard scores under chance, and control of false discoveries.

At 20 tasks 2 % of units that respond at random reach 0.75, and 2,000 of 100,000 would be counted. Benjamini and
Hochberg (1995) bound the expected share of false ones among those counted; Storey (2002) also estimates how many units
are null.
"""

# U units  N tasks a unit  C control units

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.stats import betabinom, binom
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.mis.unit_scores import UnitScores

STOREY_LAMBDA = 0.5
FEWEST_CONTROLS = 20  # below, their spread is mostly noise itself


class Correction(Enum):
    """Which rate of false discoveries is bounded, and how."""

    benjamini_hochberg = 0
    storey = 1


@dataclass(frozen=True)
class Discoveries:
    """Units whose hard score is not chance.

    Attributes:
        n_interpretable: how many, at the level asked for.
        n_tested: units with a p-value.
        share: of those; NaN when none is tested.
        level: bound on the expected share of false ones among `n_interpretable`.
        null_share: estimated share of units at chance (1 for Benjamini-Hochberg).
        interpretable: (U,) bool.
        q_values: (U,) the least level at which a unit counts; NaN without a p-value.
        correction: name of the :class:`Correction`.
    """

    n_interpretable: int
    n_tested: int
    share: float
    level: float
    null_share: float
    interpretable: np.ndarray
    q_values: np.ndarray
    correction: str


def chance_p_values(margins_un: Tensor, tie: float, spread: float = 1.0) -> np.ndarray:
    """P(at least so many tasks right by guessing) of each unit, (U,) float64; NaN without tasks.

    Exact binomial; a tie counts as a wrong answer here (one half in the score), so that ties never make a p-value
    smaller. Tasks of a unit share its pool, which can widen chance scores by some per cent: see `spread`.

    Args:
        margins_un: Δ of tasks, NaN where there is none.
        tie: margins up to this size are ties.
        spread: standard deviation of chance scores in units of the binomial one (``sd(control) / sqrt(1/(4N))`` from
            permuted units); above 1 a beta-binomial distribution replaces the binomial.

    Raises:
        ConfigError: for a spread that N tasks cannot have.
    """
    n_tasks = margins_un.isfinite().sum(1).numpy()
    n_right = (margins_un.nan_to_num(-1.0) > tie).sum(1).numpy()
    p_values = np.full(len(n_tasks), np.nan)
    for n in np.unique(n_tasks[n_tasks > 0]).tolist():
        some = n_tasks == n
        p_values[some] = _at_least(n_right[some], n, spread)
    return p_values


def _at_least(n_right: np.ndarray, n_tasks: int, spread: float) -> np.ndarray:
    if spread <= 1.0 or n_tasks == 1:
        return np.asarray(binom.sf(n_right - 1, n_tasks, 0.5))
    correlation = (spread**2 - 1) / (n_tasks - 1)  # of two tasks of a unit
    if not correlation < 1:
        raise ConfigError(f"chance scores of {n_tasks} tasks cannot spread {spread:g} times as far as independent ones")
    shape = (1 / correlation - 1) / 2
    return np.asarray(betabinom.sf(n_right - 1, n_tasks, shape, shape))


def control_p_values(scores_u: np.ndarray, control_c: np.ndarray) -> np.ndarray:
    """Share of control units that score as high, (1 + #{control >= score}) / (1 + C); NaN without a score.

    For controls made by the same protocol from permuted activations; no distribution is assumed. The least p-value is
    1 / (1 + C): with few controls and many units nothing can be found.
    """
    scores_u, control = np.asarray(scores_u, dtype=np.float64), np.asarray(control_c, dtype=np.float64)
    control = np.sort(control[np.isfinite(control)])
    n_as_high = len(control) - np.searchsorted(control, scores_u - 1e-12, side="left")
    return np.where(np.isfinite(scores_u), (1 + n_as_high) / (1 + len(control)), np.nan)


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values of the step-up procedure; NaN stays NaN and counts for nothing."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def null_share(p_values: np.ndarray) -> float:
    """Storey's estimate of the share of tests at chance, at λ = ½, one test added so that it is never zero.

    Too high for discrete p-values, which is the safe side.
    """
    p = np.asarray(p_values, dtype=np.float64)
    p = p[np.isfinite(p)]
    if not len(p):
        return 1.0
    return float(min(1.0, ((p > STOREY_LAMBDA).sum() + 1) / (len(p) * (1 - STOREY_LAMBDA))))


def discoveries(
    p_values: np.ndarray, level: float = 0.05, correction: Correction = Correction.benjamini_hochberg
) -> Discoveries:
    """The units that count as interpretable when at most `level` of them may be false, on average.

    Args:
        p_values: (U,) of :func:`chance_p_values` or :func:`control_p_values`.

    Raises:
        ConfigError: for a level outside (0, 1) or p-values outside [0, 1].
    """
    if not 0 < level < 1:
        raise ConfigError(f"level {level:g} of false discoveries", fix="Use a number between 0 and 1, as 0.05.")
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ConfigError("some p-values are not between 0 and 1")
    share = null_share(p) if correction is Correction.storey else 1.0
    q_values = benjamini_hochberg(p) * share
    found = q_values <= level  # False for NaN
    n_tested = int(np.isfinite(p).sum())
    return Discoveries(
        n_interpretable=int(found.sum()),
        n_tested=n_tested,
        share=float(found.sum() / n_tested) if n_tested else np.nan,
        level=level,
        null_share=share,
        interpretable=found,
        q_values=q_values,
        correction=correction.name,
    )


@dataclass(frozen=True)
class InterpretableUnits:
    """How many units of one kind at a site have a hard score above chance.

    Attributes:
        n_units, n_tested, n_interpretable: all, those with a score, those that are counted.
        level: bound on the expected share of false ones among the last.
        spread: of chance scores, in units of that of guesses, see :func:`chance_p_values`.
    """

    site: str
    kind: str
    negatives: str
    n_units: int
    n_tested: int
    n_interpretable: int
    level: float
    spread: float

    @property
    def share_of_tested(self) -> float:
        return self.n_interpretable / self.n_tested if self.n_tested else float("nan")

    @property
    def share_of_all(self) -> float:
        """Units without a score counted as not interpretable."""
        return self.n_interpretable / self.n_units if self.n_units else float("nan")


def interpretable_units(
    scores: UnitScores, kind: str, permuted: UnitScores | None = None, level: float = 0.05
) -> list[InterpretableUnits]:
    """Counts with every kind of negatives.

    Args:
        kind: what these units are called.
        permuted: units with permuted activations, which tell how far chance scores spread here.
    """
    found = []
    for negatives, result in scores.by_negatives.items():
        spread = chance_spread(permuted, negatives) if permuted else 1.0
        told = discoveries(chance_p_values(result.margins, scores.settings.tie, spread), level)
        found.append(
            InterpretableUnits(
                site=scores.site,
                kind=kind,
                negatives=negatives,
                n_units=len(result.status),
                n_tested=told.n_tested,
                n_interpretable=told.n_interpretable,
                level=level,
                spread=spread,
            )
        )
    return found


def chance_spread(permuted: UnitScores, negatives: str) -> float:
    """Standard deviation of hard scores of permuted units in units of that of guesses, 1 at least; 1 for few units."""
    result, n_tasks = permuted.of(negatives), permuted.settings.n_tasks
    full = (result.tasks.n_tasks == n_tasks).numpy()
    hard = np.asarray(result.scores.hard.estimate)[full]
    if len(hard) < FEWEST_CONTROLS:
        return 1.0
    return max(1.0, float(hard.std(ddof=1) / np.sqrt(0.25 / n_tasks)))

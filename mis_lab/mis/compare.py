"""Comparison of two sets of units at a site: do features score higher than neurons, and how sure is that?

The unit is the replicate: tasks of one unit are not independent, and pooling them finds differences that are
not there up to six times as often as promised. The statistics of two sets of numbers are in
:mod:`mis_lab.mis.differences`; here are what only scores have: units without a number, images in groups,
several sites.
"""

# U units of a set  N tasks a unit  G groups of images  R resamples

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import t as student

from mis_lab.core.errors import ConfigError
from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.dataset.splits import group_codes
from mis_lab.mis.differences import holm, mann_whitney, unit_bootstrap
from mis_lab.mis.score import outcomes
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.mis.units import UnitStatus

# What a unit scores when it says nothing about images.
CHANCE = {"soft": 0.5, "hard": 0.5, "delta_over_tau": 0.0}
LEVEL = 0.05
_MOST_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Summary:
    """One set of units.

    Attributes:
        label: "features", "neurons".
        n_units, n_scored: how many there are, and how many have a score.
        shares: status name → share of the units.
        mean, median: of the scored units; NaN when there is none.
        mean_with_rare: mean when units that are too rare count as chance.
        mean_with_unscored: mean when all units without a score count as chance.
    """

    label: str
    n_units: int
    n_scored: int
    shares: dict[str, float]
    mean: float
    median: float
    mean_with_rare: float
    mean_with_unscored: float


@dataclass(frozen=True)
class Comparison:
    """Units `a` against units `b` at one site, with one kind of negatives. Differences are a − b.

    Attributes:
        measure: ``soft``, ``hard`` or ``delta_over_tau``.
        p_value, p_holm: two-sided Mann-Whitney over scored units; the second corrected over the sites
            compared.
        cliffs_delta: P(a > b) − P(a < b) for a unit of each set; interval over units.
        median_difference, mean_difference: intervals over units.
        mean_difference_groups: the same difference of means, interval over `n_groups` groups of images; NaN
            limits when there is one group only. See :func:`group_bootstrap`.
        difference_with_rare, difference_with_unscored: of means, units without a score counted as chance.
        verdict: one sentence.
    """

    site: str
    negatives: str
    measure: str
    a: Summary
    b: Summary
    p_value: float
    p_holm: float
    cliffs_delta: Interval
    median_difference: Interval
    mean_difference: Interval
    mean_difference_groups: Interval
    n_groups: int
    difference_with_rare: float
    difference_with_unscored: float
    verdict: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON types; intervals as estimate, low and high."""
        return {name: value._asdict() if isinstance(value, Interval) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Comparison:
        """Read back what :meth:`as_json` gave; other entries are passed over."""
        parts = {field.name: told[field.name] for field in fields(cls)}
        intervals = {name: Interval(**part) for name, part in parts.items() if isinstance(part, dict) and "low" in part}
        return cls(**parts | intervals | {"a": Summary(**parts["a"]), "b": Summary(**parts["b"])})


def compare_sites(
    pairs: Mapping[str, tuple[UnitScores, UnitScores]],
    measure: str = "soft",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare two sets of units at every site, with every kind of negatives that both have.

    Args:
        pairs: site → (a, b).

    Raises:
        ConfigError: when settings differ, or a pair has no kind of negatives in common.
    """
    found = []
    for site, (a, b) in pairs.items():
        shared = [negatives for negatives in a.by_negatives if negatives in b.by_negatives]
        if not shared:
            raise ConfigError(
                f"{a.label} and {b.label} at {site} have no kind of negatives in common",
                looked=f"{', '.join(a.by_negatives)} and {', '.join(b.by_negatives)}",
                fix="Score both with the same mis.negatives.",
            )
        found += [replace(compare(a, b, negatives, measure, n_bootstrap, seed), site=site) for negatives in shared]
    corrected = {}
    for negatives in {comparison.negatives for comparison in found}:
        of_kind = [comparison for comparison in found if comparison.negatives == negatives]
        for comparison, p_holm in zip(of_kind, holm([one.p_value for one in of_kind]), strict=True):
            corrected[comparison.site, negatives] = replace(comparison, p_holm=float(p_holm))
    final = [corrected[comparison.site, comparison.negatives] for comparison in found]
    return [replace(comparison, verdict=verdict(comparison)) for comparison in final]


def compare(
    a: UnitScores,
    b: UnitScores,
    negatives: str,
    measure: str = "soft",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two sets of units at one site.

    Raises:
        ConfigError: when their settings differ, these negatives were not scored, or the measure is unknown.
    """
    if measure not in CHANCE:
        raise ConfigError(f"unknown measure {measure}", looked=", ".join(CHANCE))
    a.settings.require_equal(b.settings)
    first, second = summarise(a, negatives, measure), summarise(b, negatives, measure)
    values_a, values_b = (_scored(scores, negatives, measure) for scores in (a, b))
    units = unit_bootstrap(values_a, values_b, n_bootstrap, seed)
    over_groups, n_groups = group_bootstrap(a, b, negatives, measure, n_bootstrap, seed)
    p_value = mann_whitney(values_a, values_b)
    comparison = Comparison(
        site=a.site,
        negatives=negatives,
        measure=measure,
        a=first,
        b=second,
        p_value=p_value,
        p_holm=p_value,
        cliffs_delta=units.cliffs_delta,
        median_difference=units.median_difference,
        mean_difference=units.mean_difference,
        mean_difference_groups=over_groups,
        n_groups=n_groups,
        difference_with_rare=first.mean_with_rare - second.mean_with_rare,
        difference_with_unscored=first.mean_with_unscored - second.mean_with_unscored,
    )
    return replace(comparison, verdict=verdict(comparison))


def summarise(scores: UnitScores, negatives: str, measure: str = "soft") -> Summary:
    """Mean, median and shares of one set of units."""
    result, scored = scores.of(negatives), _scored(scores, negatives, measure)
    n_units, n_rare = len(result.status), int((result.status == UnitStatus.too_rare.value).sum())

    def mean_with(n_chance: int) -> float:
        n = len(scored) + n_chance
        return float((scored.sum() + CHANCE[measure] * n_chance) / n) if n else np.nan

    return Summary(
        label=scores.label,
        n_units=n_units,
        n_scored=len(scored),
        shares={status.name: result.share(status) for status in UnitStatus},
        mean=mean_with(0),
        median=float(np.median(scored)) if len(scored) else np.nan,
        mean_with_rare=mean_with(n_rare),
        mean_with_unscored=mean_with(n_units - len(scored)),
    )


def _scored(scores: UnitScores, negatives: str, measure: str) -> np.ndarray:
    values = np.asarray(getattr(scores.of(negatives).scores, measure).estimate)
    return values[np.isfinite(values)]


def group_bootstrap(
    a: UnitScores, b: UnitScores, negatives: str, measure: str, n_bootstrap: int, seed: int
) -> tuple[Interval, int]:
    """Difference of mean scores with an interval over groups of images (scenes), and the number of groups.

    A resample draws the G groups with replacement, the same draw for both sets. A task belongs to the group
    of its positive query (q₊) and counts as often as that group was drawn: a unit's score is the weighted
    mean of its tasks' outcomes, sigmoid(Δ/τ) for ``soft``. A unit none of whose tasks was drawn is left out
    of that resample. Units, explanations and negative queries are held fixed, so the interval tells how far
    a few scenes carry the difference and nothing about other units.

    The interval is Student's around the estimate, with the standard error of the resamples: percentiles of 18 scenes
    leave out a difference of zero in 10 of 100 cases. Groups count by their share w of the tasks, G_eff = 1 / Σw²
    (Kish 1965); one group that has nearly all tasks leaves next to nothing to say.
    """
    estimate = summarise(a, negatives, measure).mean - summarise(b, negatives, measure).mean
    codes = group_codes(a.image_groups).numpy()
    n_groups = int(codes.max()) + 1
    if n_groups < 2 or np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan), n_groups
    tables = [_outcomes_by_group(scores, negatives, measure, codes, n_groups) for scores in (a, b)]
    random = numpy_generator(seed, "bootstrap", "groups")
    step = max(1, _MOST_NUMBERS // max(n_groups, *(sums.shape[0] for sums, _ in tables)))
    differences = []
    for start in range(0, n_bootstrap, step):
        n_drawn = min(step, n_bootstrap - start)
        drawn_gr = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_drawn).T.astype(np.float64)
        means = []
        for sums_ug, counts_ug in tables:
            sums_ur, counts_ur = sums_ug @ drawn_gr, counts_ug @ drawn_gr
            there = counts_ur > 0
            unit_scores = np.divide(sums_ur, counts_ur, out=np.zeros_like(sums_ur), where=there)
            n_units = there.sum(0)
            means.append(np.where(n_units > 0, unit_scores.sum(0) / np.maximum(n_units, 1), np.nan))
        differences.append(means[0] - means[1])
    resampled = np.concatenate(differences)
    return _student(
        estimate, resampled[np.isfinite(resampled)], [counts_ug.sum(0) for _, counts_ug in tables]
    ), n_groups


def _student(estimate: float, resampled: np.ndarray, tasks_g: list[np.ndarray]) -> Interval:
    """95 % interval with the standard error of `resampled`; `tasks_g` of either set says how unequal groups are.

    Resamples of groups with effects of variance σ² around the weighted mean have a variance of
    σ²(Σw² − 2Σw³ + (Σw²)²), where that of the mean is σ²Σw². The set with fewer groups in effect decides.
    """
    shares_g = (np.asarray(tasks).ravel() / tasks.sum() for tasks in tasks_g)
    squares, cubes = max((float((w**2).sum()), float((w**3).sum())) for w in shares_g)
    of_resamples = squares - 2 * cubes + squares**2
    if of_resamples < 1e-9 or len(resampled) < 2:
        return Interval(estimate, np.nan, np.nan)
    error = resampled.std(ddof=1) * np.sqrt(squares / of_resamples)
    half = float(student.ppf(0.975, 1 / squares - 1) * error)
    return Interval(estimate, estimate - half, estimate + half)


def _outcomes_by_group(
    scores: UnitScores, negatives: str, measure: str, codes: np.ndarray, n_groups: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Sum and number of the outcomes of each scored unit's tasks in each group, (U, G) each."""
    result, settings = scores.of(negatives), scores.settings
    outcomes_un = outcomes(result.margins, settings.temperature, settings.tie)[measure].numpy()
    there = np.isfinite(outcomes_un)
    rows = np.nonzero(there)[0]
    columns = codes[result.tasks.query_positive.numpy()[there]]
    shape = (len(outcomes_un), n_groups)
    sums = sparse.coo_matrix((outcomes_un[there], (rows, columns)), shape).tocsr()
    counts = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape).tocsr()
    return sums, counts


def verdict(comparison: Comparison) -> str:
    """The comparison in one sentence: a direction only where test and interval of the means agree on it."""
    a, b = comparison.a.label, comparison.b.label
    for summary in (comparison.a, comparison.b):
        if not summary.n_scored:
            return f"nothing to compare: none of {summary.n_units} {summary.label} has a score"
    difference, ranks = comparison.mean_difference, comparison.cliffs_delta.estimate
    digits = 2 if abs(float(difference.estimate)) >= 0.01 else 3
    interval = f"95 % interval {_span(difference, digits)}"
    differs = comparison.p_holm < LEVEL
    if differs and (difference.low > 0 or difference.high < 0) and difference.estimate * ranks > 0:
        direction = "higher" if difference.estimate > 0 else "lower"
        by = f"{abs(difference.estimate):.{digits}f}"
        return f"{a} {direction} by {by} ({interval}){_over_groups(comparison, digits)}"
    p = f"p = {comparison.p_holm:.2g}"
    if differs:
        direction = "higher" if ranks > 0 else "lower"
        return (
            f"{a} rank {direction} than {b} (Cliff's delta {ranks:.2f}, {p}), but their means are not clearly"
            f" different ({difference.estimate:.{digits}f}, {interval})"
        )
    return f"no difference shown between {a} and {b} ({difference.estimate:.{digits}f}, {interval}, {p})"


def _over_groups(comparison: Comparison, digits: int) -> str:
    interval = comparison.mean_difference_groups
    if not np.isfinite(interval.low):
        return ""  # one group only
    low, high = float(interval.low), float(interval.high)
    holds = low > 0 if interval.estimate > 0 else high < 0
    says = "which holds over" if holds else "which is not certain over"
    return f", {says} the {comparison.n_groups} groups of images ({_span(interval, digits)})"


def _span(interval: Interval, digits: int) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"

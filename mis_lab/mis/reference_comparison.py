"""A run's scores beside those of a published table, layer by layer.

The images differ, and so do most settings: what is compared is how high and how spread scores are, and what differs is
said beside it. Soft scores of different metrics are on different scales and are not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from mis_lab.core.intervals import Interval
from mis_lab.mis.differences import mann_whitney, unit_bootstrap
from mis_lab.mis.reference_table import ReferenceTable, rows_of
from mis_lab.mis.unit_scores import Settings, UnitScores

METRIC, TEMPERATURE = "dreamsim", 0.16
# Of the authors' table: GoogLeNet, ImageNet's training images, the 200 most and the 200 least activating ones.
PUBLISHED = {"protocol": "extreme", "n_explanations": 9, "n_tasks": 20, "pool_size": 200, "image_activation": "mean"}


@dataclass(frozen=True)
class ReferenceComparison:
    """A run's units beside those of the table, by one measure.

    Attributes:
        site, layer: of the run and of the table.
        measure: ``soft`` or ``hard``.
        n_run, n_reference: units with a score.
        run_mean, run_median, reference_mean, reference_median: NaN for no units.
        mean_difference: run − reference, interval over units.
        p_value: two-sided Mann-Whitney.
        spearman: rank correlation unit by unit; NaN unless the layer is one (without branches) with the run's units.
    """

    site: str
    layer: str
    measure: str
    n_run: int
    n_reference: int
    run_mean: float
    run_median: float
    reference_mean: float
    reference_median: float
    mean_difference: Interval
    p_value: float
    spearman: float


def compare_with_reference(
    table: ReferenceTable,
    layer: str,
    scores: UnitScores,
    negatives: str,
    metric: str = METRIC,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[ReferenceComparison]:
    """Hard scores, and soft ones when run and table have the same metric and temperature.

    Args:
        layer: layer or block of the table, see :func:`~mis_lab.mis.reference_table.rows_of`.
        negatives: of the run; the published tables have ``bottom``.
        metric: of the table.

    Raises:
        ConfigError: when the table has no such layer, or the run was not scored with these negatives.
    """
    there, result = rows_of(table, layer), scores.of(negatives).scores
    found = []
    for measure in ("soft", "hard") if _same_metric(scores.settings, metric) else ("hard",):
        of_run = np.asarray(getattr(result, measure).estimate, dtype=np.float64)
        of_table = getattr(table, measure)[there]
        run, reference = of_run[np.isfinite(of_run)], of_table[np.isfinite(of_table)]
        found.append(
            ReferenceComparison(
                site=scores.site,
                layer=layer,
                measure=measure,
                n_run=len(run),
                n_reference=len(reference),
                run_mean=_of(np.mean, run),
                run_median=_of(np.median, run),
                reference_mean=_of(np.mean, reference),
                reference_median=_of(np.median, reference),
                mean_difference=unit_bootstrap(run, reference, n_bootstrap, seed).mean_difference,
                p_value=mann_whitney(run, reference),
                spearman=_unit_by_unit(table, there, measure, scores, of_run),
            )
        )
    return found


def differing(settings: Settings, negatives: str, metric: str = METRIC) -> list[str]:
    """What a run does otherwise than the published scores, in words; images and network always differ."""
    expected = {**PUBLISHED, "metric": metric}
    found = [
        f"{name} is {mine}, not {told}" for name, told in expected.items() if (mine := getattr(settings, name)) != told
    ]
    if negatives != "bottom":
        found.append(f"negatives are {negatives}, not bottom")
    if settings.metric == metric and not _same_metric(settings, metric):
        found.append(f"temperature is {settings.temperature:.4g}, not {TEMPERATURE}")
    return found


def _same_metric(settings: Settings, metric: str) -> bool:
    return settings.metric == metric and (metric != METRIC or abs(settings.temperature - TEMPERATURE) < 1e-9)


def _unit_by_unit(
    table: ReferenceTable, there: np.ndarray, measure: str, scores: UnitScores, of_run: np.ndarray
) -> float:
    if len(set(table.layers[there])) != 1 or sorted(table.units[there]) != sorted(scores.units.tolist()):
        return np.nan
    by_unit: dict[int, float] = dict(zip(table.units[there].tolist(), getattr(table, measure)[there], strict=True))
    reference = np.array([by_unit[unit] for unit in scores.units.tolist()])
    both = np.isfinite(of_run) & np.isfinite(reference)
    if both.sum() < 2 or not np.ptp(of_run[both]) or not np.ptp(reference[both]):
        return np.nan
    return float(spearmanr(of_run[both], reference[both]).statistic)


def _of(statistic: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    return float(statistic(values)) if len(values) else np.nan

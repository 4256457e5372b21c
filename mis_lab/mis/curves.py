"""Scores against how hard the tasks are: along the percentile of the query, and along the size of the pool.

One number at the extremes hides two things: at the top most units are right in every task, and what excites a unit
less strongly may be something else. Percentiles are those of protocol ``hard`` (Zimmermann et al. 2023); quantiles are
pools of protocol ``quantile`` with the least extreme query of a draw (the reference code).
"""

# U units  P points of a curve

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval, student_interval
from mis_lab.mis.config import MisConfig, NegativeQuery, Negatives, Protocol, Query
from mis_lab.mis.tasks import pool_needs
from mis_lab.mis.unit_scores import UnitScores

HARDNESS, QUANTILE = "hardness", "quantile"
EXTREME = 100.0  # the place of protocol `extreme` on the axis of hardness
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurvePoint:
    """Mean scores of the units that have one, under one setting.

    Attributes:
        setting: ``hardness`` or ``quantile``.
        x: percentile of the query (100: the most extreme images), or share of the images in the pool.
        n_units, n_scored: how many there are, and how many have a score.
        soft, hard: means over scored units, 95 % intervals over units; NaN for none.
    """

    setting: str
    x: float
    negatives: str
    n_units: int
    n_scored: int
    soft: Interval
    hard: Interval

    def as_json(self) -> dict[str, Any]:
        """JSON types; :meth:`from_json` reads them back."""
        return asdict(self) | {"soft": list(self.soft), "hard": list(self.hard)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> CurvePoint:
        return cls(**told | {name: Interval(*told[name]) for name in ("soft", "hard")})


def settings(config: MisConfig) -> Iterator[tuple[str, float, MisConfig]]:
    """(setting, x, configuration) of every point that `config` asks for, from the hardest end on.

    Only protocol, query and pool differ between the points of a curve; where percentiles are asked for, the most
    extreme query is the last of them. Negatives within a class and one image a group are left out: away from the
    extremes there are too few such tasks.
    """
    negatives: list[Negatives] = [kind for kind in config.negatives if kind is not Negatives.within_class] or [
        Negatives.random
    ]
    base = replace(config, pool_size=0, one_per_group=False, negatives=negatives, query_negative=NegativeQuery.same)
    for percentile in sorted(config.hardness):
        hard = replace(base, protocol=Protocol.hard, query=Query.percentile, query_percentile=percentile)
        yield HARDNESS, percentile, hard
    if config.hardness:
        yield HARDNESS, EXTREME, replace(base, protocol=Protocol.extreme, query=Query.most_extreme)
    for share in sorted(config.quantiles):
        yield QUANTILE, share, replace(base, protocol=Protocol.quantile, query=Query.least_extreme, quantile=share)


def score_curves(config: MisConfig, n_images: int, rescore: Callable[[MisConfig], UnitScores]) -> list[CurvePoint]:
    """Score the same units under every setting of the curves.

    Points for which there are too few images are left out, with a line in the log.

    Args:
        n_images: images that units are ranked on.
        rescore: configuration → scores, of the same units on the same images.
    """
    points = []
    for setting, x, at_point in settings(config):
        try:
            pool_needs(at_point, n_images)
        except DataError as error:
            logger.info("no scores at %s %g: %s", setting, x, error)
            continue
        points += summarise_point(setting, x, rescore(at_point))
    return points


def summarise_point(setting: str, x: float, scores: UnitScores) -> list[CurvePoint]:
    """A point for each kind of negatives."""
    points = []
    for negatives, result in scores.by_negatives.items():
        values = {name: np.asarray(getattr(result.scores, name).estimate) for name in ("soft", "hard")}
        scored = np.isfinite(values["hard"])
        soft, hard = (student_interval(values[name][scored]) for name in ("soft", "hard"))
        points.append(CurvePoint(setting, x, negatives, len(scored), int(scored.sum()), soft, hard))
    return points

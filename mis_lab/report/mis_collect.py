"""What a run found beside its scores, for the page: read results as they were written, and pair up what is plotted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mis_lab.core.intervals import Interval
from mis_lab.mis.agreement import ReseedNoise
from mis_lab.mis.curves import CurvePoint
from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import OverSites
from mis_lab.mis.pairs import Matches, PairedComparison, partner_scores
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.report.mis_data import AgreementMatrix, BesideScores, CourseCurve, PairedScores, ScoreCurve
from mis_lab.report.wording import page_kind

MEASURES = ("soft", "hard")


@dataclass(frozen=True)
class MisResults:
    """Everything that stands beside scores; what was not asked for is empty.

    Attributes:
        further, curves: (site, kind of artifact) → what was found.
        course: site → a point a copy of its SAE.
        noise: (site, kind, negatives, measure) → noise of scores drawn anew.
        partners: site → the neuron that correlates best with each feature.
        pairs: (site, negatives, measure) → features against their partners.
    """

    further: Mapping[tuple[str, str], FurtherScores] = field(default_factory=dict)
    curves: Mapping[tuple[str, str], Sequence[CurvePoint]] = field(default_factory=dict)
    course: Mapping[str, Sequence[CurvePoint]] = field(default_factory=dict)
    noise: Mapping[tuple[str, str, str, str], ReseedNoise] = field(default_factory=dict)
    partners: Mapping[str, Matches] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str, str], PairedComparison] = field(default_factory=dict)
    over_sites: Sequence[OverSites] = ()
    interpretable: Sequence[InterpretableUnits] = ()
    agreement: Sequence[AgreementMatrix] = ()


def beside_scores(results: MisResults, scores: Mapping[tuple[str, str], UnitScores]) -> BesideScores:
    """What the page shows of `results`.

    Args:
        scores: (site, kind of artifact) → scores of the run.
    """
    return BesideScores(
        further={(site, page_kind(kind)): found for (site, kind), found in results.further.items()},
        curves=[curve for (site, kind), points in results.curves.items() for curve in _curves(site, kind, points)],
        course=[one for site, points in results.course.items() for one in _course(site, points, scores)],
        noise=results.noise,
        paired=list(_paired(results.partners, scores)),
        pairs=results.pairs,
        over_sites=results.over_sites,
        interpretable=[replace(one, kind=page_kind(one.kind)) for one in results.interpretable],
        agreement=results.agreement,
    )


def _curves(site: str, kind: str, points: Sequence[CurvePoint]) -> Iterator[ScoreCurve]:
    for setting, negatives in dict.fromkeys((point.setting, point.negatives) for point in points):
        chosen = [point for point in points if (point.setting, point.negatives) == (setting, negatives)]
        yield ScoreCurve(
            site=site,
            kind=kind,
            negatives=negatives,
            setting=setting,
            x=np.array([point.x for point in chosen]),
            n_units=np.array([point.n_scored for point in chosen]),
            hard=_stacked([point.hard for point in chosen]),
            soft=_stacked([point.soft for point in chosen]),
        )


def _course(
    site: str, points: Sequence[CurvePoint], scores: Mapping[tuple[str, str], UnitScores]
) -> Iterator[CourseCurve]:
    for negatives in dict.fromkeys(point.negatives for point in points):
        chosen = [point for point in points if point.negatives == negatives]
        neurons = np.asarray(scores[site, "neuron"].of(negatives).scores.soft.estimate)
        yield CourseCurve(
            site=site,
            negatives=negatives,
            steps=np.array([point.x for point in chosen]),
            mean=_stacked([point.soft for point in chosen]),
            neuron_mean=float(np.nanmean(neurons)) if np.isfinite(neurons).any() else float("nan"),
            n_scored=np.array([point.n_scored for point in chosen]),
        )


def _paired(partners: Mapping[str, Matches], scores: Mapping[tuple[str, str], UnitScores]) -> Iterator[PairedScores]:
    for site, matches in partners.items():
        features, neurons = scores[site, "feature"], scores[site, "neuron"]
        for negatives in features.by_negatives:
            for measure in MEASURES:
                a, b = (np.asarray(getattr(one.of(negatives).scores, measure).estimate) for one in (features, neurons))
                correlation = matches.correlation.numpy()
                yield PairedScores(site, negatives, measure, a, partner_scores(matches, b), correlation)


def _stacked(intervals: Sequence[Interval]) -> Interval:
    return Interval(*(np.array(column, dtype=np.float64) for column in zip(*intervals, strict=True)))

"""What charts of scores show beyond one number a unit: pairs, settings, the course of training, other measures.

Plain numbers; whoever scored fills them in. Kinds and negatives are named as in :mod:`mis_lab.report.data`.
"""

# A features with a partner  S settings or steps  M measures

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mis_lab.core.intervals import Interval
from mis_lab.mis.agreement import ReseedNoise
from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import OverSites
from mis_lab.mis.pairs import PairedComparison


@dataclass(frozen=True)
class PairedScores:
    """Each feature's score beside that of the neuron that correlates best with it (:mod:`mis_lab.mis.pairs`).

    Attributes:
        measure: ``soft`` or ``hard``.
        feature_score, neuron_score: (A,) NaN without a score.
        correlation: (A,) Pearson's r of the two units' activations.
    """

    site: str
    negatives: str
    measure: str
    feature_score: np.ndarray
    neuron_score: np.ndarray
    correlation: np.ndarray


@dataclass(frozen=True)
class ScoreCurve:
    """Mean scores of the units of one kind against a setting of their tasks.

    Attributes:
        setting: ``hardness`` (x is the percentile of the query, 100 for the most extreme images) or ``quantile`` (x is
            the share of the images in the pool).
        x: (S,).
        n_units: (S,) units with a score.
        hard, soft: (S,) means over these units with 95 % intervals.
    """

    site: str
    kind: str
    negatives: str
    setting: str
    x: np.ndarray
    n_units: np.ndarray
    hard: Interval
    soft: Interval

    def of(self, measure: str) -> Interval:
        """The means by name of the measure."""
        return {"hard": self.hard, "soft": self.soft}[measure]


@dataclass(frozen=True)
class CourseCurve:
    """Mean score of a site's features in the course of their SAE's training.

    Attributes:
        steps: (S,) at which the SAE was looked at.
        mean: (S,) over the features with a score, with 95 % interval.
        neuron_mean: of the site's neurons.
        n_scored: (S,) features with a score.
        measure: ``soft`` or ``hard``.
    """

    site: str
    negatives: str
    steps: np.ndarray
    mean: Interval
    neuron_mean: float
    n_scored: np.ndarray
    measure: str = "soft"


@dataclass(frozen=True)
class AgreementMatrix:
    """How alike several measures rank the units of one kind at a site.

    Attributes:
        names: M measures.
        spearman: (M, M) rank correlations; NaN where one does not vary.
    """

    site: str
    kind: str
    names: Sequence[str]
    spearman: np.ndarray


@dataclass(frozen=True)
class BesideScores:
    """Everything that a page shows beside scores; what a run did not ask for is empty.

    Attributes:
        further: (site, kind) → other scores of the same units.
        noise: (site, kind, negatives, measure) → what drawing the scores anew changes.
        pairs: (site, negatives, measure) → features against the neurons that correlate best with them; `paired`: the
            scores of both, unit by unit.
        over_sites: features against neurons with the site as the replicate.
    """

    further: Mapping[tuple[str, str], FurtherScores] = field(default_factory=dict)
    curves: Sequence[ScoreCurve] = ()
    course: Sequence[CourseCurve] = ()
    noise: Mapping[tuple[str, str, str, str], ReseedNoise] = field(default_factory=dict)
    paired: Sequence[PairedScores] = ()
    pairs: Mapping[tuple[str, str, str], PairedComparison] = field(default_factory=dict)
    over_sites: Sequence[OverSites] = ()
    interpretable: Sequence[InterpretableUnits] = ()
    agreement: Sequence[AgreementMatrix] = ()

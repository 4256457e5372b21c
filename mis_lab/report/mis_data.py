"""What charts of scores show beyond one number a unit: pairs, settings, the course of training, other measures.

Plain numbers; whoever scored fills them in. Kinds and negatives are named as in :mod:`mis_lab.report.data`.
"""

# A features with a partner  S settings or steps  M measures

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mis_lab.core.intervals import Interval

HARDNESS, QUANTILE = "hardness", "quantile"


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

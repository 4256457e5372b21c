"""What the page tells of an SAE beyond its quality: its training, what its features stand for, how they share space."""

# F features  D dimensions  K features of the picture  S values of a curve

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mis_lab.core.files import read_json
from mis_lab.sae.dead import Fates

STEP = "step"  # name of the x values among those of a set of curves
Curves = Mapping[str, np.ndarray]


def read_curves(path: Path) -> Curves:
    """Named values by step, nothing where there is no file."""
    found = read_json(path) if path.exists() else {}
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


@dataclass(frozen=True)
class TrainingCourse:
    """How training went.

    Attributes:
        losses: name → (S,) values on training batches, :data:`STEP` among the names.
        evaluations: the same on held-out vectors (``fvu``, ``l0``, ``silent_share``), at steps of its own.
        fates: features dead and revived by step.
    """

    losses: Curves = field(default_factory=dict)
    evaluations: Curves = field(default_factory=dict)
    fates: Fates = field(default_factory=lambda: Fates({}, {}))


@dataclass(frozen=True)
class ClassSelectivity:
    """Of how many classes units of a kind tell.

    Attributes:
        kind: ``feature`` or ``neuron``.
        n_classes: that occur.
        histogram: (classes + 1,) units by number of classes that they are active on; the first are dead.
        entropy_u, gini_u: as in :class:`mis_lab.sae.selectivity.Selectivity`, NaN for dead units.
    """

    kind: str
    n_classes: int
    histogram: np.ndarray
    entropy_u: np.ndarray
    gini_u: np.ndarray

    @property
    def median_classes(self) -> float:
        """Median number of active classes of the living units; NaN when there is none."""
        living = np.repeat(np.arange(1, len(self.histogram)), self.histogram[1:].astype(np.int64))
        return float(np.median(living)) if living.size else float("nan")


@dataclass(frozen=True)
class Superposition:
    """How directions share a space.

    Attributes:
        what: ``dictionary`` of the SAE, or ``weights`` of the site's own layer.
        n_directions, n_dimensions: F and D.
        dimensionality_f: (F,) share of a dimension that each direction has to itself.
        singular_values: largest first.
        coherence: largest |cos| of any two directions.
        effective_rank: exp of the entropy of the singular values.
        cosines_kk: (K, K) cosines of the most used features, alike ones beside each other; None without a picture.
        shown: K numbers of these features.
    """

    what: str
    n_directions: int
    n_dimensions: int
    dimensionality_f: np.ndarray
    singular_values: np.ndarray
    coherence: float
    effective_rank: float
    cosines_kk: np.ndarray | None = None
    shown: Sequence[int] = ()

    @property
    def median_dimensionality(self) -> float:
        known = self.dimensionality_f[np.isfinite(self.dimensionality_f)]
        return float(np.median(known)) if known.size else float("nan")

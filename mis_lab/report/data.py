"""What a report shows, as plain numbers, words and pictures; whoever collects a run's artifacts fills it.

A part that was not run is None or empty and is left out of the page with a sentence that says so.
"""

# U units of a kind  F features  S circuit sizes  H, W of a picture  h, w of an activation map

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mis_lab.core.intervals import Interval
from mis_lab.report.about import DatasetSummary, ModelSummary, Picture, RunSummary, SiteSummary
from mis_lab.report.circuit_data import CircuitDetails
from mis_lab.report.mis_data import BesideScores
from mis_lab.report.sae_data import ClassSelectivity, Superposition, TrainingCourse

MEASURES = ("soft", "hard", "delta_over_tau")
PICKS = ("best", "random", "worst")


@dataclass(frozen=True)
class SiteSae:
    """How good the SAE of a site is.

    Attributes:
        name: architecture, as in the configuration.
        n_vectors: vectors it was trained on, repeats counted.
        fvu, fvu_held_out: on the groups it was trained on, and on those held out (None without any).
        l0, dead_share: mean active features a vector; share that never fires.
        ce_clean, ce_spliced, kl, top1_agreement: of the network's output with the reconstruction in place.
        loss_recovered_zero, loss_recovered_mean: against zero and mean ablation of the site.
        evaluated_on: which images the spliced numbers are from, in words.
        density_f: (F,) share of the vectors on which each feature fires.
        course: of the training.
        selectivity: of features and of neurons for classes.
        superposition: ``dictionary`` of the SAE and, where the site is a layer with weights, its ``weights`` → how
            these directions share space.
    """

    site: str
    name: str
    n_features: int
    n_vectors: int
    fvu: float
    fvu_held_out: float | None
    l0: float
    dead_share: float
    ce_clean: float | None = None
    ce_spliced: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    loss_recovered_zero: float | None = None
    loss_recovered_mean: float | None = None
    evaluated_on: str = ""
    density_f: np.ndarray | None = None
    course: TrainingCourse = field(default_factory=TrainingCourse)
    selectivity: Sequence[ClassSelectivity] = ()
    superposition: Mapping[str, Superposition] = field(default_factory=dict)

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.fvu


@dataclass(frozen=True)
class MisSettings:
    """How units were scored, as in the configuration's group `mis`; enums by name.

    Attributes:
        metric: the image similarity; `metric_is_calibrated`: fitted to human judgements.
        temperature: τ; `temperature_is_measured`: the spread of margins of random tasks, not a published constant.
        n_images, n_groups: of the scored images.
        headline: measure and negatives that galleries and orders go by.
    """

    metric: str
    metric_is_calibrated: bool
    temperature: float
    temperature_is_measured: bool
    protocol: str
    query: str
    n_explanations: int
    n_tasks: int
    negatives: Sequence[str]
    image_activation: str
    one_per_group: bool
    n_images: int
    n_groups: int
    headline: tuple[str, str] = ("soft", "random")


@dataclass(frozen=True)
class KindScores:
    """Scores of all units of one kind at one site.

    Attributes:
        kind: ``feature``, ``neuron``, or a control: ``permuted``, ``random_direction``.
        numbers: (U,) the units' places at the site.
        status: U names of statuses (``ok``, ``dead``, ``constant``, ``too_rare``, ``too_few_groups``).
        n_active: (U,) images with an activation above zero.
        scores: negatives → measure → (U,), NaN without a score.
    """

    site: str
    kind: str
    numbers: np.ndarray
    status: Sequence[str]
    n_active: np.ndarray
    scores: Mapping[str, Mapping[str, np.ndarray]]

    def of(self, negatives: str, measure: str) -> np.ndarray:
        """The scores that there are: finite ones only."""
        values = np.asarray(self.scores.get(negatives, {}).get(measure, ()), dtype=np.float64)
        return values[np.isfinite(values)]


@dataclass(frozen=True)
class UnitImage:
    """An image as a unit sees it.

    Attributes:
        activation: the unit's image activation.
        group, image_id: where it is from.
        heat: (h, w) the unit's activation map, None without one.
    """

    image: Picture
    activation: float
    group: str
    image_id: str
    heat: np.ndarray | None = None


@dataclass(frozen=True)
class UnitScore:
    """Scores of one unit with 95 % intervals."""

    soft: Interval
    hard: Interval
    n_tasks: int


@dataclass(frozen=True)
class UnitCard:
    """A unit with its pictures.

    Attributes:
        pick: why it is shown: ``best``, ``random`` or ``worst``.
        scores: negatives → score; empty for a unit without a score.
        images: ``top`` and any of ``bottom``, ``random`` → images, most extreme first.
        sheet: two of its tasks as a judge sees them; of one typical unit of a kind.
    """

    site: str
    kind: str
    number: int
    pick: str
    status: str
    n_active: int
    n_images: int
    scores: Mapping[str, UnitScore]
    images: Mapping[str, Sequence[UnitImage]]
    sheet: Image.Image | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """Units of kind `a` against kind `b` at a site; differences are a − b.

    Attributes:
        median_difference: interval over units.
        mean_difference, mean_difference_groups: the same difference of means, over units and over groups of images;
            None when there is one group only.
        cliffs_delta: interval over units.
        p_value, p_holm: two-sided Mann-Whitney; the second corrected over sites.
        difference_with_unscored: of means when every unit without a score counts as chance; None where not computed.
    """

    site: str
    negatives: str
    measure: str
    a: str
    b: str
    n_a: int
    n_b: int
    median_a: float
    median_b: float
    median_difference: Interval
    mean_difference: Interval
    mean_difference_groups: Interval | None
    cliffs_delta: Interval
    p_value: float
    p_holm: float
    difference_with_unscored: float | None = None

    @property
    def winner(self) -> str | None:
        """The kind that scores higher, or None unless p (Holm) < 0.05 and the interval over units excludes 0."""
        if not self.p_holm < 0.05 or not _excludes_zero(self.mean_difference):
            return None
        return self.a if self.mean_difference.estimate > 0 else self.b

    @property
    def carries_over(self) -> bool:
        """Whether there is a winner and the interval over groups, too, lies on its side of 0."""
        over_groups = self.mean_difference_groups
        if self.winner is None or over_groups is None or not _excludes_zero(over_groups):
            return False
        return (over_groups.low > 0) == (self.winner == self.a)

    @property
    def turns_round(self) -> bool:
        """Whether the kind that is ahead falls behind once units without a score count as chance."""
        with_all = self.difference_with_unscored
        return self.winner is not None and with_all is not None and (with_all > 0) != (self.winner == self.a)


def _excludes_zero(interval: Interval) -> bool:
    return bool(interval.low > 0 or interval.high < 0)


@dataclass(frozen=True)
class CircuitSite:
    """A site in a circuit: its live nodes, and how far summed effects miss the true change (attribution gap).

    `coverage`: share of what its pictured nodes pass on that edges to pictured nodes tell; None without edges.
    """

    site: str
    n_live: int
    attribution_gap: float
    error_share: float
    coverage: float | None = None


@dataclass(frozen=True)
class CircuitNode:
    """A node of the pictured circuit.

    Attributes:
        kind: ``feature``, ``neuron`` or ``error``.
        number: the unit; None for an error node.
        effect, effect_se: mean contribution over the discovery images and its standard error.
        mis: the unit's headline score, None without one.
        images: what it looks for; empty for an error node.
        minimality: what the pictured circuit loses without it, None where not measured.
    """

    site: str
    kind: str
    number: int | None
    effect: float
    effect_se: float
    mis: Interval | None = None
    images: Sequence[UnitImage] = ()
    minimality: float | None = None


@dataclass(frozen=True)
class CircuitView:
    """The pictured circuit.

    Attributes:
        objective, target: the scalar and which class it is of, in words.
        method, baseline: as in the configuration.
        n_discovery, n_evaluation: images it was found and evaluated on; `*_groups`: from so many groups.
        sites: in the order of the network.
        nodes: the largest effects first, signs mixed.
    """

    objective: str
    target: str
    method: str
    baseline: str
    n_discovery: int
    n_evaluation: int
    n_discovery_groups: int
    n_evaluation_groups: int
    sites: Sequence[CircuitSite]
    nodes: Sequence[CircuitNode]

    @property
    def n_live(self) -> int:
        return sum(site.n_live for site in self.sites)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness against circuit size, on the evaluation images.

    Attributes:
        kind: ``feature`` or ``neuron``.
        selection: ``effect``: the largest effects first; ``random``; or the name of another order or circuit.
        n_nodes: (S,) ascending; the last is every live node.
        faithfulness, low, high: (S,) with 95 % interval over groups of images; for random ones, the lowest and
            the highest draw.
        cpr, cmd: areas under and away from the curve, None where not computed.
        live_only: faithfulness with all live nodes and no other.
    """

    kind: str
    selection: str
    n_nodes: np.ndarray
    faithfulness: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cpr: Interval | None = None
    cmd: Interval | None = None
    live_only: float | None = None

    def at(self, n_nodes: int) -> tuple[int, Interval]:
        """The evaluated size nearest to `n_nodes` (in ratio) among those above 0, and its faithfulness."""
        sizes = np.maximum(np.asarray(self.n_nodes, dtype=np.float64), 1e-9)
        at = int(np.abs(np.log(sizes / max(n_nodes, 1))).argmin())
        return int(self.n_nodes[at]), Interval(self.faithfulness[at], self.low[at], self.high[at])


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. `notes`: sentences about this run that belong in front of the reader."""

    run: RunSummary
    model: ModelSummary
    dataset: DatasetSummary
    sites: Sequence[SiteSummary]
    saes: Sequence[SiteSae] = ()
    mis: MisSettings | None = None
    scores: Sequence[KindScores] = ()
    units: Sequence[UnitCard] = ()
    comparisons: Sequence[ComparisonRow] = ()
    beside: BesideScores = field(default_factory=BesideScores)
    circuit: CircuitView | None = None
    circuit_details: CircuitDetails = field(default_factory=CircuitDetails)
    faithfulness: Sequence[FaithfulnessCurve] = ()
    notes: Sequence[str] = field(default=())

"""Options of the Machine Interpretability Score (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mis_lab.activations.config import ImageActivation
from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT


class Protocol(Enum):
    """How tasks are drawn from a unit's images.

    extreme: the N(K+1) most extreme images in K+1 bins of N; a task takes one of each bin, every image once
        (Borowski et al. 2021; Zimmermann et al. 2023).
    quantile: K+1 distinct images of the `quantile` most extreme a task; the query is the least extreme of
        them (the reference code).
    hard: explanations from the KN most extreme images in K bins, queries from the N images at a percentile of
        the ranking (Zimmermann et al. 2023).
    inner_quantile: as extreme, without the images beyond the `quantile` at either end (the reference's development
        branches). A feature that is active on few more images than that has no number: it is too_rare.
    """

    extreme = 0
    quantile = 1
    hard = 2
    inner_quantile = 3


class Query(Enum):
    """Which of a side's images are asked about: those of the first bin, of the last one, or at a percentile."""

    most_extreme = 0
    least_extreme = 1
    percentile = 2


class NegativeQuery(Enum):
    """Which of the least active images are asked about: as :class:`Query`, the same place of the ranking by default."""

    same = 0
    most_extreme = 1
    least_extreme = 2
    percentile = 3


class Negatives(Enum):
    """The weakly activating side: the least active images, random ones outside the top pool, or random ones outside
    it with the classes of the task's strongly activating images."""

    bottom = 0
    random = 1
    within_class = 2


# Kinds of units that tell what a score is worth: activations dealt to the wrong images (of features, or of neurons
# without an SAE), directions that nobody trained, and neurons as sparse as the features.
CONTROLS = ("permuted", "random_directions", "sparse_neurons")
# Options that change no unit's score: which other units are scored, and what is told beside.
BESIDE_SCORES = ("controls", "n_control_units", "n_top", "n_reseeds", "hardness", "quantiles", "part")


@dataclass
class MisConfig:
    """Tasks, scores and comparison.

    Attributes:
        protocol, query: see :class:`Protocol`, :class:`Query`.
        query_negative: of the least active images, where they are asked about at another place of their ranking.
        query_percentile: p of protocol hard: queries start where p % of the images are less extreme.
        n_explanations: K, images that explain a side.
        n_tasks: N, tasks a unit.
        min_tasks: a unit with fewer possible tasks is ``too_rare`` and gets no number.
        pool_size: images of a side that tasks are drawn from, so that N changes the precision alone; 0 for N(K+1) or
            the `quantile`. Beyond pool_size / (K+1) tasks images recur.
        quantile: share of the images in the pool (protocol quantile) or left out at either end (inner_quantile).
        negatives: scored side by side.
        one_per_group: no two images of one side of a task share a group.
        image_activation: see :class:`~mis_lab.activations.config.ImageActivation`.
        ties: margins this small, relative to the metric's scale, count one half.
        n_bootstrap: resamples for intervals.
        n_control_units: units a site for each control, and for what is scored again (curves, other draws).
        controls: kinds of units scored beside the run's own, see :data:`CONTROLS`.
        n_top: most activating images of a unit that further scores look at; fewer where the pool has fewer.
        n_reseeds: times that scores are drawn anew, with other seeds, to tell their noise; 0 or at least 2.
        hardness: percentiles of the query, from protocol hard, at which scores are told beside the most extreme one.
        quantiles: shares of the images from which the pool of the reference's protocol is taken, likewise.
        chunk: units scored at once.
        parts: scores of neurons and features are made in so many parts, which several jobs can share: the same to the
            bit in any number.
        part: the part that this run makes, from 0, and nothing else of the stage; -1 makes all and puts them together.
    """

    protocol: Protocol = Protocol.extreme
    query: Query = Query.most_extreme
    query_negative: NegativeQuery = NegativeQuery.same
    query_percentile: float = 90.0
    n_explanations: int = 9
    n_tasks: int = 20
    min_tasks: int = 5
    pool_size: int = 0
    quantile: float = 0.25
    negatives: list[Negatives] = field(default_factory=lambda: [Negatives.random, Negatives.bottom])
    one_per_group: bool = False
    image_activation: ImageActivation = ImageActivation.mean
    ties: float = 1e-6
    n_bootstrap: int = 1000
    n_control_units: int = 256
    controls: list[str] = field(default_factory=lambda: ["permuted", "random_directions", "sparse_neurons"])
    n_top: int = 50
    n_reseeds: int = 3
    hardness: list[float] = field(default_factory=lambda: [99.0, 95.0, 90.0, 85.0])
    quantiles: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.25])
    chunk: int = field(default=256, metadata=NO_EFFECT)
    parts: int = field(default=1, metadata=NO_EFFECT)
    part: int = -1

    def __post_init__(self) -> None:
        for name in ("n_explanations", "n_tasks", "min_tasks", "n_bootstrap", "n_control_units", "chunk", "parts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mis.{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 < self.quantile <= 0.5:
            raise ConfigError(
                f"mis.quantile={self.quantile}: above 0.5 the task is inverted",
                fix="Use 0 < quantile <= 0.5.",
            )
        if unknown := sorted(set(self.controls) - set(CONTROLS)):
            raise ConfigError(f"mis.controls: unknown {', '.join(unknown)}", fix=f"Use {', '.join(CONTROLS)}.")
        if not self.negatives or len(set(self.negatives)) < len(self.negatives):
            names = ", ".join(negatives.name for negatives in self.negatives)
            raise ConfigError(
                f"mis.negatives=[{names}] is empty or names one twice",
                fix="Use one or several of random, bottom, within_class.",
            )
        if self.min_tasks > self.n_tasks:
            raise ConfigError(
                f"mis.min_tasks={self.min_tasks} is above mis.n_tasks={self.n_tasks}: no unit could be scored",
                fix="Lower mis.min_tasks.",
            )
        self._check_pool()
        self._check_queries()
        self._check_beside()
        if not -1 <= self.part < self.parts:
            raise ConfigError(
                f"mis.part={self.part} of mis.parts={self.parts}", fix="Parts are counted from 0; -1 is all of them."
            )
        if not self.ties >= 0:
            raise ConfigError(f"mis.ties={self.ties} is negative", fix="Use 0 for exact ties only.")

    def queries(self) -> tuple[Query, Query]:
        """Of the positive and of the negative side."""
        same = self.query_negative is NegativeQuery.same
        return self.query, self.query if same else Query[self.query_negative.name]

    def _check_pool(self) -> None:
        per_side = self.n_explanations + 1
        if self.pool_size < 0:
            raise ConfigError(f"mis.pool_size={self.pool_size} is negative", fix="Use 0 for N(K+1) images.")
        if not self.pool_size:
            return
        least = per_side * (1 if self.protocol is Protocol.quantile else self.min_tasks)
        if self.pool_size < least:
            raise ConfigError(
                f"mis.pool_size={self.pool_size} does not do for tasks of K+1 = {per_side} images",
                fix=f"Use at least {least} images, or 0 for N(K+1).",
            )

    def _check_beside(self) -> None:
        if self.n_top < 2:
            raise ConfigError(f"mis.n_top={self.n_top}: two images at least can be alike")
        if self.n_reseeds < 0 or self.n_reseeds == 1:
            raise ConfigError(
                f"mis.n_reseeds={self.n_reseeds} tells nothing about noise", fix="Use 0 for none, or 2 and more."
            )
        if wrong := [p for p in self.hardness if not 50 < p < 100]:
            raise ConfigError(f"mis.hardness: {wrong[0]:g} is no percentile between 50 and 100")
        if wrong := [q for q in self.quantiles if not 0 < q <= 0.5]:
            raise ConfigError(f"mis.quantiles: {wrong[0]:g} is no share of the images up to 0.5")

    def _check_queries(self) -> None:
        if not 50 < self.query_percentile < 100:
            raise ConfigError(
                f"mis.query_percentile={self.query_percentile}: at 50 both sides would ask about the same images",
                fix="Use 50 < query_percentile < 100.",
            )
        if (Query.percentile in self.queries()) != (self.protocol is Protocol.hard):
            raise ConfigError(
                f"mis.protocol={self.protocol.name} with mis.query={self.query.name}: hard, and it alone, asks about a"
                " percentile",
                fix="Use mis=hard, or another mis.query.",
            )
        if self.protocol is Protocol.hard and self.one_per_group:
            raise ConfigError(
                "mis.one_per_group=true does not go with mis.protocol=hard: its queries may be of few groups",
                fix="Use another protocol, or mis.one_per_group=false.",
            )

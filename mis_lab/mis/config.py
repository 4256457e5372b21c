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
    """

    extreme = 0
    quantile = 1


class Query(Enum):
    """Which of a task's K+1 images is the query."""

    most_extreme = 0
    least_extreme = 1


class Negatives(Enum):
    """The weakly activating side: the least active images, or random ones outside the top pool."""

    bottom = 0
    random = 1


@dataclass
class MisConfig:
    """Tasks, scores and comparison.

    Attributes:
        protocol, query: see :class:`Protocol`, :class:`Query`.
        n_explanations: K, images that explain a side.
        n_tasks: N, tasks a unit.
        min_tasks: a unit with fewer possible tasks is ``too_rare`` and gets no number.
        quantile: for `protocol` quantile, share of the images in the pool (at most 0.5).
        negatives: scored side by side.
        one_per_group: no two images of one side of a task share a group.
        image_activation: see :class:`~mis_lab.activations.config.ImageActivation`.
        ties: margins this small, relative to the metric's scale, count one half.
        n_bootstrap: resamples for intervals.
        n_control_units: units a site for each control.
        controls: ``permuted`` (features with permuted activations), ``random_directions``.
        chunk: units scored at once.
    """

    protocol: Protocol = Protocol.extreme
    query: Query = Query.most_extreme
    n_explanations: int = 9
    n_tasks: int = 20
    min_tasks: int = 5
    quantile: float = 0.25
    negatives: list[Negatives] = field(default_factory=lambda: [Negatives.random, Negatives.bottom])
    one_per_group: bool = False
    image_activation: ImageActivation = ImageActivation.mean
    ties: float = 1e-6
    n_bootstrap: int = 1000
    n_control_units: int = 256
    controls: list[str] = field(default_factory=lambda: ["permuted", "random_directions"])
    chunk: int = field(default=256, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        for name in ("n_explanations", "n_tasks", "min_tasks", "n_bootstrap", "n_control_units", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mis.{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 < self.quantile <= 0.5:
            raise ConfigError(
                f"mis.quantile={self.quantile}: above 0.5 the task is inverted",
                fix="Use 0 < quantile <= 0.5.",
            )
        unknown = set(self.controls) - {"permuted", "random_directions"}
        if unknown:
            raise ConfigError(
                f"mis.controls: unknown {', '.join(sorted(unknown))}", fix="Use permuted, random_directions."
            )
        if not self.negatives or len(set(self.negatives)) < len(self.negatives):
            names = ", ".join(negatives.name for negatives in self.negatives)
            raise ConfigError(
                f"mis.negatives=[{names}] is empty or names one twice",
                fix="Use [random], [bottom] or [random, bottom].",
            )
        if self.min_tasks > self.n_tasks:
            raise ConfigError(
                f"mis.min_tasks={self.min_tasks} is above mis.n_tasks={self.n_tasks}: no unit could be scored",
                fix="Lower mis.min_tasks.",
            )
        if not self.ties >= 0:
            raise ConfigError(f"mis.ties={self.ties} is negative", fix="Use 0 for exact ties only.")

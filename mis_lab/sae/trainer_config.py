"""Options of SAE training (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT
from mis_lab.sae.config import require_finite


class Normalisation(Enum):
    """Scale of the vectors an SAE sees.

    none: as they are.
    unit_variance: divided so that E‖x − mean‖² = 1.
    mean_square: divided so that E‖x‖² = 1.
    """

    none = 0
    unit_variance = 1
    mean_square = 2


class SaeOptimizer(Enum):
    """adam (with `unit_norm`: constrained Adam), or sgd."""

    adam = 0
    sgd = 1


class TrainingPrecision(Enum):
    """float32: all of it. bfloat16: the encoder's product that chooses the features of a sparse step, no more."""

    float32 = 0
    bfloat16 = 1


class ResamplingKind(Enum):
    """Where the directions of revived features come from.

    none: dead features are not resampled (AuxK may revive them).
    loss: from badly reconstructed vectors, drawn with probability ∝ squared loss (Bricken et al. 2023).
    random: fresh Kaiming rows (the thesis).
    """

    none = 0
    loss = 1
    random = 2


@dataclass
class ResamplingConfig:
    """When and how dead features are started anew.

    With `every` = n, after n steps of burn-in a window of n + 1 steps opens, and what was silent throughout is
    resampled as it closes, after step 2n + 1; then the same again, after 4n + 1, 6n + 1, ... (the thesis' schedule).
    With `at`, it happens after those steps, to features silent for `window` steps.

    Attributes:
        kind: see :class:`ResamplingKind`.
        every: n above, in steps; 0 = only `at`.
        at: steps after which features are resampled.
        window: steps that a feature must have been silent for at the steps `at`.
        n_vectors: vectors whose losses are drawn from (kind loss).
        encoder_scale: norm of new encoder rows as a share of the living ones' mean norm (0.2 in Bricken et al., 1 in
            the thesis); 0 leaves fresh rows as they are drawn (the thesis' variant without rescaling).
        living_bias: new encoder biases are the mean |bias| of the living (the thesis); else 0.
    """

    kind: ResamplingKind = ResamplingKind.none
    every: int = 0
    at: list[int] = field(default_factory=list)
    window: int = 100
    n_vectors: int = 8192
    encoder_scale: float = 0.2
    living_bias: bool = False

    def __post_init__(self) -> None:
        require_finite(self, "trainer.resampling")
        counts = (self.window, self.n_vectors, *self.at)
        if min(counts) < 1 or self.every < 0 or self.encoder_scale < 0:
            raise ConfigError(f"trainer.resampling has a count or step out of range: {self}")
        if self.kind is not ResamplingKind.none and not (self.every or self.at):
            raise ConfigError("trainer.resampling is never due", fix="Set resampling.every or resampling.at.")


@dataclass
class TrainerConfig:
    """How an SAE is trained.

    Attributes:
        n_vectors: budget: vectors seen in all, epochs as needed; steps are as many as it has batches, also where the
            data has fewer vectors than a batch.
        batch_size: vectors a step.
        optimizer, beta1, beta2: Adam, or SGD with momentum `beta1`.
        lr: largest learning rate of an SAE of `lr_features` features.
        lr_features: an SAE of F features learns at lr·√(lr_features / F), so that one setting serves sites of any
            width (the rule of Gao et al. 2024, app. A.3); 0 takes `lr` as it is.
        warmup: share of the steps over which the rate rises from 0.
        decay: share of the steps, at the end, over which it falls to 0.
        sparsity_warmup: share of the steps over which the sparsity penalty (not k) rises from 0.
        sparsity_schedule: instead of that, points [share of the steps, factor of the penalty], linear in between.
        k_start: k starts at so many times its value ...
        k_anneal: ... and falls to it over this share of the steps (0 = not at all).
        clip: largest gradient norm (0 = no clip).
        normalisation: see :class:`Normalisation`; stored with the SAE.
        dead_after: a feature is dead after so many vectors without firing.
        resampling: see :class:`ResamplingConfig`.
        unit_norm: keep atoms at unit norm and remove the gradient along them.
        precision: see :class:`TrainingPrecision`.
        stacked: an SAE is trained with those of all earlier sites spliced into the network, and evaluated so.
        order_seed: of the order of the data, apart from the run's seed, so that SAEs of several seeds can share a pass.
        n_evaluations: evaluations on held-out vectors in the course of training, the first before it, the last after.
        n_snapshots: copies of the SAE kept in the course of training, the first from before it, the last of its end:
            what scores in the course of training are taken from (0 = none).
        checkpoint_steps: steps between checkpoints (0 = none).
        log_steps: steps between logged losses.
    """

    n_vectors: int = 800_000
    batch_size: int = 1024
    optimizer: SaeOptimizer = SaeOptimizer.adam
    lr: float = 1e-2
    lr_features: int = 256
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: float = 0.04
    decay: float = 0.2
    sparsity_warmup: float = 0.05
    sparsity_schedule: list[list[float]] = field(default_factory=list)
    k_start: float = 4.0
    k_anneal: float = 0.0
    clip: float = 1.0
    normalisation: Normalisation = Normalisation.unit_variance
    dead_after: int = 10_000
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    unit_norm: bool = True
    precision: TrainingPrecision = TrainingPrecision.float32
    stacked: bool = False
    order_seed: int = 0
    n_evaluations: int = 9
    n_snapshots: int = 0
    checkpoint_steps: int = field(default=500, metadata=NO_EFFECT)
    log_steps: int = field(default=25, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        require_finite(self, "trainer")
        if self.n_vectors < 1 or self.batch_size < 1 or self.lr <= 0 or self.dead_after < 1 or self.log_steps < 1:
            raise ConfigError(f"trainer needs positive n_vectors, batch_size, lr, dead_after and log_steps, got {self}")
        for name in ("clip", "checkpoint_steps", "lr_features", "n_evaluations", "n_snapshots"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name}={getattr(self, name)} is negative", fix="Use 0 for none.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"trainer.beta1={self.beta1} and trainer.beta2={self.beta2} must lie in [0, 1)")
        for name in ("n_evaluations", "n_snapshots"):
            if getattr(self, name) == 1:
                raise ConfigError(f"trainer.{name}=1 would see the start alone", fix="Use 0, or 2 and more.")
        shares = (self.warmup, self.decay, self.sparsity_warmup)
        if min(shares) < 0 or max(shares) > 1 or self.warmup + self.decay > 1:
            raise ConfigError(
                f"trainer.warmup={self.warmup}, trainer.decay={self.decay} and trainer.sparsity_warmup="
                f"{self.sparsity_warmup} must be shares that fit in one run"
            )
        if self.k_start < 1 or not 0 <= self.k_anneal <= 1:
            raise ConfigError(f"trainer.k_start={self.k_start} must be 1 or more, k_anneal={self.k_anneal} a share")
        points = self.sparsity_schedule
        if any(len(point) != 2 or point[0] < 0 or point[1] < 0 for point in points) or any(
            a[0] >= b[0] for a, b in pairwise(points)
        ):
            raise ConfigError(f"trainer.sparsity_schedule={points} must be points [share, factor] with rising shares")

    @property
    def n_steps(self) -> int:
        """Steps within the budget, at least one."""
        return max(1, self.n_vectors // self.batch_size)

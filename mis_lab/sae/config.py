"""Options of SAEs and their training (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT


@dataclass
class SaeConfig:
    """What every architecture has.

    Attributes:
        name: short name for tables.
        expansion: number of features as a multiple of the site's width.
        n_features: number of features; 0 takes `expansion` times the width.
    """

    _target_: str = "???"
    name: str = "???"
    expansion: float = 8.0
    n_features: int = 0

    def __post_init__(self) -> None:
        if self.n_features < 0:
            raise ConfigError(
                f"sae.n_features={self.n_features} is negative", fix="Use 0 for expansion times the width."
            )
        if self.n_features == 0 and self.expansion <= 0:
            raise ConfigError(f"sae.expansion={self.expansion} must be positive")

    def features_of(self, width: int) -> int:
        """Number of features at a site of `width`."""
        return self.n_features or max(1, round(self.expansion * width))


@dataclass
class NoSaeConfig(SaeConfig):
    """``sae=none``: the network alone; its neurons are scored, no SAE is trained."""

    _target_: str = "none"
    name: str = "none"


@dataclass
class ExternalSaeConfig(SaeConfig):
    """An SAE of your own: `_target_` is called with `kwargs` and `width`."""

    kwargs: dict[str, Any] = field(default_factory=dict)


class ReluForm(Enum):
    """Which ReLU SAE.

    bricken: squared error + λ Σ|f| per vector, unit-norm atoms, pre-bias (Bricken et al. 2023).
    thesis: mean squared error + λ mean|f|, both means over vectors and dimensions (Toussaint 2024).
    """

    bricken = 0
    thesis = 1


@dataclass
class ReluConfig(SaeConfig):
    """ReLU SAE with an L1 penalty of weight `l1`; see :class:`ReluForm`."""

    _target_: str = "mis_lab.sae.architectures.relu.ReluSae"
    name: str = "relu"
    form: ReluForm = ReluForm.bricken
    l1: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0:
            raise ConfigError(f"sae.l1={self.l1} is negative")


@dataclass
class TopKConfig(SaeConfig):
    """TopK SAE (Gao et al. 2024) with the auxiliary loss AuxK for dead features.

    Attributes:
        k: active features a vector.
        aux_k: dead features that reconstruct the error together (0 = no auxiliary loss).
        aux_weight: its weight, 1/32 in the paper.
        sparse: train through the sparse step (exact, no dense decode); false takes the dense product, for comparison.
    """

    _target_: str = "mis_lab.sae.architectures.topk.TopKSae"
    name: str = "topk"
    k: int = 16
    aux_k: int = 32
    aux_weight: float = 1 / 32
    sparse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"sae.k={self.k}: at least one feature must be active")
        if self.n_features and self.k > self.n_features:
            raise ConfigError(
                f"sae.k={self.k} is more than the {self.n_features} features", fix="Lower k or raise n_features."
            )
        if self.aux_k < 0 or self.aux_weight < 0:
            raise ConfigError(f"sae.aux_k={self.aux_k} and sae.aux_weight={self.aux_weight} must not be negative")


class Normalisation(Enum):
    """Scale of the vectors an SAE sees: as they are, or divided so that E‖x − mean‖² = 1."""

    none = 0
    unit_variance = 1


class SaeOptimizer(Enum):
    adam = 0
    sgd = 1


@dataclass
class TrainerConfig:
    """How an SAE is trained.

    Attributes:
        n_vectors: budget: vectors seen in all, epochs as needed.
        batch_size: vectors a step.
        optimizer, beta1, beta2: Adam, or SGD with momentum `beta1`.
        lr: largest learning rate of an SAE of `lr_features` features.
        lr_features: an SAE of F features learns at lr·√(lr_features / F), so that one setting serves sites of any
            width (the rule of Gao et al. 2024, app. A.3); 0 takes `lr` as it is.
        warmup: share of the steps over which the rate rises from 0.
        decay: share of the steps, at the end, over which it falls to 0.
        sparsity_warmup: share of the steps over which the sparsity penalty (not k) rises from 0.
        clip: largest gradient norm (0 = no clip).
        normalisation: see :class:`Normalisation`; stored with the SAE.
        dead_after: a feature is dead after so many vectors without firing.
        unit_norm: keep atoms at unit norm and remove the gradient along them.
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
    clip: float = 1.0
    normalisation: Normalisation = Normalisation.unit_variance
    dead_after: int = 10_000
    unit_norm: bool = True
    checkpoint_steps: int = field(default=500, metadata=NO_EFFECT)
    log_steps: int = field(default=25, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        if self.n_vectors < 1 or self.batch_size < 1 or self.lr <= 0 or self.dead_after < 1 or self.log_steps < 1:
            raise ConfigError(f"trainer needs positive n_vectors, batch_size, lr, dead_after and log_steps, got {self}")
        for name in ("clip", "checkpoint_steps", "lr_features"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name}={getattr(self, name)} is negative", fix="Use 0 for none.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"trainer.beta1={self.beta1} and trainer.beta2={self.beta2} must lie in [0, 1)")
        if min(self.warmup, self.decay, self.sparsity_warmup) < 0 or self.warmup + self.decay > 1:
            raise ConfigError(
                f"trainer.warmup={self.warmup} and trainer.decay={self.decay} must be shares that fit in one run"
            )

    @property
    def n_steps(self) -> int:
        """Steps within the budget, at least one."""
        return max(1, self.n_vectors // self.batch_size)

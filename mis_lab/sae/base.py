"""The contract of every sparse autoencoder: raw activations in, codes, raw activations out.

An architecture is an activation function (:meth:`Sae.activation`, or its own :meth:`Sae.encode`) and a loss
(:meth:`Sae.step_losses`); trainer, evaluation, scoring and circuits know this contract only. :class:`Autoencoder` is
the part of it that trainer and evaluation need; :class:`Sae`, its usual form, has a linear dictionary on top.

Inside, a vector is scaled so that E‖x − mean‖² = 1 over the training data (or as `trainer.normalisation` says); `scale`
is stored, so nobody outside ever scales. Codes are in those units: with unit-norm atoms a code is the length of its
contribution, as a share of the data's standard deviation √E‖x − mean‖², and so comparable between sites. `dictionary`
and `offset` are in raw units: ``x̂ = codes @ dictionary + offset`` holds to the bit, so a change of codes Δ moves the
site's output by Δ @ dictionary.
"""

# N vectors (any leading dimensions)  D site width  F features  K some features

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.statistics import Moments
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.trainer_config import Normalisation

SMALLEST_NORM = 1e-12


class SaeOutput(NamedTuple):
    """Reconstruction (..., D) in raw units and codes (..., F)."""

    reconstruction: Tensor
    codes: Tensor


class EncoderWeights(NamedTuple):
    """The encoder in raw units: pre-activations are ``x @ weight_fd.T + bias_f``."""

    weight_fd: Tensor
    bias_f: Tensor


class StepInfo(NamedTuple):
    """What the trainer tells a loss.

    Attributes:
        step: number of the step, from 0.
        sparsity: factor of sparsity penalties, rising from 0 to 1 over the warm-up.
        dead_f: (F,) bool, features silent for `dead_after` vectors.
        k_factor: factor of k, falling to 1 while k is annealed.
        precision: of the products that may be done in a lower one (those that only choose features).
    """

    step: int
    sparsity: float
    dead_f: Tensor
    k_factor: float = 1.0
    precision: torch.dtype = torch.float32


class Losses(NamedTuple):
    """What a step gives back.

    Attributes:
        total: the scalar to minimise, with its graph.
        named: its parts before their weights, and whatever else is worth a curve (``l0``); detached scalars, under the
            same names at every step.
        fired_f: (F,) bool, features active on any vector of the batch.
    """

    total: Tensor
    named: dict[str, Tensor]
    fired_f: Tensor


class Vectors(Protocol):
    """Where batches come from: :class:`mis_lab.activations.loader.VectorLoader` or anything alike."""

    n_vectors: int

    def batch(self, step: int) -> Tensor:
        """(B, D) raw vectors of step number `step`, the same whenever asked."""

    def sample(self, n: int) -> Tensor:
        """(n, D) raw vectors spread over the data."""


class Autoencoder(nn.Module, ABC):
    """What trainer and evaluation know of an autoencoder.

    Args:
        config: options; a mapping of plain values for a class without a configuration dataclass.
        width: D of the vectors that it reads.
        n_features: F, where `config` does not say it.

    Attributes:
        config_type: dataclass of its options.
        width_out: D of the vectors that it gives; `width` but for transcoders.
        arguments: what its constructor was given beside `config` and `width`, plain values (`io.py` keeps them).
        reads_maps: batches are whole images (B, P, D), not single vectors.
        is_fitted: made by :meth:`fit` in one go, without training steps.
        can_be_revived: whether :meth:`revive` works.
        of_features: names of the parameters with a row a feature.
        scale: factor from raw to inner units. variance: E‖x − mean‖² in inner units, so that
            squared error / variance is in units of FVU.
    """

    config_type: ClassVar[type[SaeConfig] | None] = None
    reads_maps: ClassVar[bool] = False
    is_fitted: ClassVar[bool] = False
    can_be_revived: ClassVar[bool] = False
    of_features: ClassVar[tuple[str, ...]] = ()

    scale: Tensor
    variance: Tensor

    def __init__(self, config: SaeConfig | Mapping[str, Any], width: int, n_features: int | None = None) -> None:
        super().__init__()
        if n_features is None:
            if not isinstance(config, SaeConfig):
                raise ConfigError(f"{type(self).__name__} was not told its number of features", fix="Pass n_features.")
            n_features = config.features_of(width)
        self.config, self.width, self.n_features = config, width, n_features
        self.width_out = width
        self.arguments: dict[str, Any] = {}
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., F) of raw activations (..., D)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Raw activations of codes (..., F)."""

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """Losses of one batch of raw vectors (N, D)."""
        raise ConfigError(f"{type(self).__name__} is not trained by steps")

    @abstractmethod
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """Start from data (raw vectors)."""

    def fit(self, vectors: Vectors, generator: torch.Generator) -> None:
        """Make the whole autoencoder from data, where `is_fitted`; called after :meth:`initialise`."""

    def forward(self, x: Tensor) -> SaeOutput:
        """Reconstruction and codes of raw activations (..., D)."""
        codes = self.encode(x)
        return SaeOutput(self.decode(codes), codes)

    def normalise(self, x: Tensor) -> Tensor:
        """Raw to inner units."""
        return x * self.scale

    def source(self, x: Tensor) -> Tensor:
        """The part of a batch (..., D) that is encoded."""
        return x

    def target(self, x: Tensor) -> Tensor:
        """The part of a batch that is to be reconstructed."""
        return x

    @property
    def is_of_one_site(self) -> bool:
        """Whether it reconstructs what it reads, as all but transcoders do."""
        return type(self).source is Autoencoder.source

    def project_gradient(self) -> None:
        """Remove what of the gradient :meth:`normalise_atoms` would undo; nothing where atoms are free."""

    def normalise_atoms(self) -> None:
        """Bring atoms back to unit norm after a step; nothing where they are free."""

    def constrain(self) -> None:
        """Bring other parameters back to where they must be after a step."""

    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        """Start some features anew (inner units).

        Args:
            features: (K,) their numbers.
            encoder_kd, atoms_kd: their new rows of encoder and dictionary; atoms are brought to unit norm.
            bias_k: their new encoder biases.
        """
        raise ConfigError(
            f"features of {type(self).__name__} cannot be resampled", fix="Use trainer.resampling.kind=none."
        )


class Sae(Autoencoder):
    """An autoencoder with a linear dictionary: one vector in and the same vector out.

    Attributes:
        W_enc, W_dec: (F, D), a feature a row; rows of `W_dec` are the atoms.
        b_enc: (F,). b_dec: (D,), subtracted before the encoder and added after the decoder.
    """

    can_be_revived = True
    of_features: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")

    def __init__(self, config: SaeConfig | Mapping[str, Any], width: int, n_features: int | None = None) -> None:
        super().__init__(config, width, n_features)
        self.W_enc = nn.Parameter(torch.zeros(self.n_features, width))
        self.b_enc = nn.Parameter(torch.zeros(self.n_features))
        self.W_dec = nn.Parameter(torch.zeros(self.n_features, width))
        self.b_dec = nn.Parameter(torch.zeros(width))

    # What an architecture fills in.

    @abstractmethod
    def activation(self, pre: Tensor) -> Tensor:
        """Codes (..., F) from pre-activations (..., F)."""

    @property
    def atoms(self) -> Tensor:
        """(F, D): the dictionary in inner units; an architecture that composes its atoms overrides this."""
        return self.W_dec

    @property
    def centre(self) -> Tensor:
        """(D,): what is subtracted before the encoder, inner units."""
        return self.b_dec

    # The contract.

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., F) of raw activations (..., D)."""
        return self.activation(self.pre_activations(x))

    def pre_activations(self, x: Tensor) -> Tensor:
        """What :meth:`activation` gets, (..., F), of raw activations (..., D)."""
        return F.linear(self.normalise(x) - self.centre, self.W_enc, self.b_enc)

    def decode(self, codes: Tensor) -> Tensor:
        """Raw activations (..., D) of codes (..., F): ``codes @ dictionary + offset``."""
        return codes @ self.dictionary + self.offset

    @property
    def dictionary(self) -> Tensor:
        """(F, D): what one unit of each code adds to the site's output, in raw units."""
        return self.atoms / self.scale

    @property
    def offset(self) -> Tensor:
        """(D,): the reconstruction of all-zero codes, in raw units."""
        return self.b_dec / self.scale

    @property
    def encoder_weights(self) -> EncoderWeights:
        """The affine part of the encoder, scale and pre-bias folded in."""
        return EncoderWeights(self.W_enc * self.scale, self.b_enc - self.W_enc @ self.centre)

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Move `scale` into the weights, so that inner units are raw units. Codes, and so all thresholds on them, stay
        what they were; atoms are no longer of unit norm."""
        self.W_enc.mul_(self.scale)
        self.W_dec.div_(self.scale)
        self.b_dec.div_(self.scale)
        self.variance.div_(self.scale.square())
        self.scale.fill_(1.0)

    # Before and during training.

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """Start from data: b_dec at its mean, atoms random of unit norm, W_enc at W_decᵀ, biases 0.

        The first two decide quality: an encoder unrelated to the dictionary leaves a third of the features dead, and
        so does a b_dec of 0 on data with a mean, as all activations of vision networks have.

        Args:
            sample_nd: raw vectors of the training data.
            generator: on the CPU.
            normalisation: of the vectors; see :class:`~mis_lab.sae.trainer_config.Normalisation`.

        Raises:
            DataError: when the sample is not finite, or all its vectors are equal.
        """
        self.start_units(sample_moments(sample_nd), normalisation)
        atoms_fd = torch.randn(self.n_features, self.width, generator=generator)
        self.W_dec.copy_(F.normalize(atoms_fd, dim=1))
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()

    @torch.no_grad()
    def start_units(self, moments: Moments, normalisation: Normalisation) -> None:
        """Set `scale` and `variance` by the statistics of raw vectors, and b_dec to their mean."""
        scale = input_scale(moments, normalisation)
        self.scale.fill_(scale)
        self.variance.fill_(float(moments.variance.sum()) * scale**2)
        self.b_dec.copy_(moments.mean * scale)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from each atom's gradient the part along the atom: the renormalisation would undo it anyway, but an
        optimiser's moments would keep it."""
        if self.W_dec.grad is not None:
            along_f1 = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            squared_f1 = self.W_dec.square().sum(1, keepdim=True).clamp_min(SMALLEST_NORM)
            self.W_dec.grad.addcmul_(along_f1 / squared_f1, self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_atoms(self) -> None:
        """Bring every atom back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM))

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        self.W_enc[features] = encoder_kd
        self.W_dec[features] = F.normalize(atoms_kd, dim=1)
        self.b_enc[features] = bias_k


def sample_moments(sample_nd: Tensor) -> Moments:
    """Statistics of the vectors that an autoencoder starts from.

    Raises:
        DataError: when they are not finite, or all equal.
    """
    if not torch.isfinite(sample_nd).all():
        raise DataError("activations to train on contain NaN or infinity", fix="Check the network's input range.")
    moments = Moments()
    moments.update(sample_nd)
    if float(moments.variance.sum()) <= 0:
        raise DataError(f"all {moments.count} activation vectors of the sample are equal: nothing to learn")
    return moments


def input_scale(moments: Moments, normalisation: Normalisation) -> float:
    """Factor that brings vectors with these statistics to the units wanted.

    Raises:
        DataError: when their squares do not fit into float32.
    """
    spread, squared_mean = float(moments.variance.sum()), float(moments.mean.square().sum())
    if not spread + squared_mean < torch.finfo(torch.float32).max:
        raise DataError("activations are too large for float32", fix="Check the network's input range.")
    if normalisation is Normalisation.unit_variance:
        return spread**-0.5
    if normalisation is Normalisation.mean_square:
        return (spread + squared_mean) ** -0.5
    return 1.0

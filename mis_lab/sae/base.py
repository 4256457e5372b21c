"""The contract of every sparse autoencoder: raw activations in, codes, raw activations out.

An architecture is an activation function (:meth:`Sae.activation`, or its own :meth:`Sae.encode`) and a loss
(:meth:`Sae.step_losses`); trainer, evaluation, scoring and circuits know this contract only.

Inside, a vector is scaled so that E‖x − mean‖² = 1 over the training data; `scale` is stored, so nobody outside ever
scales. Codes are in those units: with unit-norm atoms a code is the length of its contribution, as a share of the
data's standard deviation √E‖x − mean‖², and so comparable between sites. `dictionary` and `offset` are in raw units:
``x̂ = codes @ dictionary + offset`` holds to the bit, so a change of codes Δ moves the site's output by Δ @ dictionary.
"""

# N vectors (any leading dimensions)  D site width  F features

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.statistics import Moments
from mis_lab.sae.config import SaeConfig

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
    """

    step: int
    sparsity: float
    dead_f: Tensor


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


class Sae(nn.Module, ABC):
    """Base of every architecture with one vector in and the same vector out.

    Args:
        config: options; a mapping of plain values for a class without a configuration dataclass.
        width: D of the site.
        n_features: F, where `config` does not say it.

    Attributes:
        W_enc, W_dec: (F, D), a feature a row; rows of `W_dec` are the atoms.
        b_enc: (F,). b_dec: (D,), subtracted before the encoder and added after the decoder.
        scale: factor from raw to inner units. variance: E‖x − mean‖² in inner units, so that
            squared error / variance is in units of FVU.
    """

    config_type: ClassVar[type[SaeConfig] | None] = None

    scale: Tensor
    variance: Tensor

    def __init__(self, config: SaeConfig | Mapping[str, Any], width: int, n_features: int | None = None) -> None:
        super().__init__()
        if n_features is None:
            if not isinstance(config, SaeConfig):
                raise ConfigError(f"{type(self).__name__} was not told its number of features", fix="Pass n_features.")
            n_features = config.features_of(width)
        self.config, self.width, self.n_features = config, width, n_features
        self.W_enc = nn.Parameter(torch.zeros(n_features, width))
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.W_dec = nn.Parameter(torch.zeros(n_features, width))
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))

    # What an architecture fills in.

    @abstractmethod
    def activation(self, pre: Tensor) -> Tensor:
        """Codes (..., F) from pre-activations (..., F)."""

    @abstractmethod
    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """Losses of one batch of raw vectors (N, D)."""

    @property
    def atoms(self) -> Tensor:
        """(F, D): the dictionary in inner units; an architecture that composes its atoms overrides this."""
        return self.W_dec

    # The contract.

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., F) of raw activations (..., D)."""
        return self.activation(F.linear(self.normalise(x) - self.b_dec, self.W_enc, self.b_enc))

    def decode(self, codes: Tensor) -> Tensor:
        """Raw activations (..., D) of codes (..., F): ``codes @ dictionary + offset``."""
        return codes @ self.dictionary + self.offset

    def forward(self, x: Tensor) -> SaeOutput:
        """Reconstruction and codes of raw activations (..., D)."""
        codes = self.encode(x)
        return SaeOutput(self.decode(codes), codes)

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
        return EncoderWeights(self.W_enc * self.scale, self.b_enc - self.W_enc @ self.b_dec)

    def normalise(self, x: Tensor) -> Tensor:
        """Raw to inner units."""
        return x * self.scale

    # Before and during training.

    @torch.no_grad()
    def initialise(self, sample_nd: Tensor, generator: torch.Generator, normalise: bool = True) -> None:
        """Start from data: b_dec at its mean, atoms random of unit norm, W_enc at W_decᵀ, biases 0.

        The first two decide quality: an encoder unrelated to the dictionary leaves a third of the features dead, and
        so does a b_dec of 0 on data with a mean, as all activations of vision networks have.

        Args:
            sample_nd: raw vectors of the training data.
            generator: on the CPU.
            normalise: scale so that E‖x − mean‖² = 1; else leave raw units.

        Raises:
            DataError: when the sample is not finite, or all its vectors are equal.
        """
        if not torch.isfinite(sample_nd).all():
            raise DataError("activations to train on contain NaN or infinity", fix="Check the network's input range.")
        moments = Moments()
        moments.update(sample_nd)
        raw_variance = float(moments.variance.sum())
        if raw_variance <= 0:
            raise DataError(f"all {moments.count} activation vectors of the sample are equal: nothing to learn")
        scale = raw_variance**-0.5 if normalise else 1.0
        self.scale.fill_(scale)
        self.variance.fill_(raw_variance * scale**2)
        self.b_dec.copy_(moments.mean * scale)
        atoms_fd = torch.randn(self.n_features, self.width, generator=generator)
        self.W_dec.copy_(F.normalize(atoms_fd, dim=1))
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()

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

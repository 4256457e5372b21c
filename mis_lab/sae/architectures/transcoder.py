"""Transcoder: reads the vectors of one site and gives those of another, through k features.

z = ReLU(TopK_k(W_enc·(x − b_pre) + b_enc)), ŷ = zᵀ·W_dec + b_dec, at will + W_skip·(x − b_pre). Dunefsky, Chlenski and
Nanda 2024, "Transcoders find interpretable LLM feature circuits" (arXiv 2406.11944); Paulo, Shabalin and Belrose 2025,
"Transcoders beat sparse autoencoders for interpretability" (arXiv 2501.18823: the skip). docs/sae/transcoder.md.
"""

# N vectors  D source width  O target width  F features  K features to revive

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.base import EncoderWeights, SaeOutput, input_scale, sample_moments
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.further_config import TranscoderConfig
from mis_lab.sae.trainer_config import Normalisation


class TranscoderSae(TopKSae):
    """Batches hold the two sites' vectors side by side (N, D + O); loss: :meth:`SelectedSae.step_losses`.

    Without a skip ``ŷ = codes @ dictionary + offset``; with one, ŷ is what calling the transcoder on x gives, and
    :meth:`decode` the part of it that goes through the features.

    Args:
        config: options.
        width: D of the site that is read.
        width_out: O of the site that is written.

    Attributes:
        W_enc: (F, D). b_enc: (F,). b_pre: (D,), subtracted from the source. W_dec: (F, O). b_dec: (O,).
        W_skip: (O, D), with a skip only.
        scale, target_scale: factors from raw to inner units of source and target.
        variance: of the target, inner units.
    """

    config_type: ClassVar[type[SaeConfig]] = TranscoderConfig
    config: TranscoderConfig
    can_be_revived = False
    target_scale: Tensor

    def __init__(self, config: TranscoderConfig, width: int, width_out: int) -> None:
        super().__init__(config, width)
        self.width_out = width_out
        self.arguments = {"width_out": width_out}
        self.register_buffer("target_scale", torch.ones(()))
        self.b_pre = nn.Parameter(torch.zeros(width))
        self.W_dec = nn.Parameter(torch.zeros(self.n_features, width_out))
        self.b_dec = nn.Parameter(torch.zeros(width_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(width_out, width))

    @property
    def centre(self) -> Tensor:
        return self.b_pre

    @property
    def dictionary(self) -> Tensor:
        """(F, O): what one unit of each code adds to the target site, in raw units."""
        return self.atoms / self.target_scale

    @property
    def offset(self) -> Tensor:
        """(O,): what all-zero codes give at the source's mean, in raw units."""
        return self.b_dec / self.target_scale

    def source(self, x: Tensor) -> Tensor:
        return x[..., : self.width]

    def target(self, x: Tensor) -> Tensor:
        return x[..., self.width :]

    def parts(self, x_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The source, and the target less what the skip gives of it."""
        if x_nd.shape[-1] != self.width + self.width_out:
            raise ConfigError(
                f"a transcoder of widths {self.width} and {self.width_out} cannot read vectors of {x_nd.shape[-1]}",
                fix="Give it batches of both sites side by side (PairedActivations).",
            )
        source_nd, target_no = self.normalise(self.source(x_nd)), self.target(x_nd) * self.target_scale
        return source_nd, target_no - self._skip(source_nd) if self.config.skip else target_no

    def _skip(self, source: Tensor) -> Tensor:
        return F.linear(source - self.b_pre, self.W_skip)

    def forward(self, x: Tensor) -> SaeOutput:
        """ŷ (..., O) and codes (..., F) of raw vectors (..., D) of the source."""
        codes = self.encode(x)
        y = self.decode(codes)
        return SaeOutput(y + self._skip(self.normalise(x)) / self.target_scale if self.config.skip else y, codes)

    @property
    def skip_weights(self) -> EncoderWeights:
        """The skip in raw units, (O, D) and (O,): it adds ``x @ weight_fd.T + bias_f`` to the target; 0 without one."""
        if not self.config.skip:
            none_od = self.W_dec.new_zeros(self.width_out, self.width)
            return EncoderWeights(none_od, torch.zeros_like(self.b_dec))
        weight_od = self.W_skip / self.target_scale
        return EncoderWeights(weight_od * self.scale, -weight_od @ self.b_pre)

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """Biases at the means of a sample (N, D + O), random unit rows of the encoder, the skip at 0.

        Each atom starts along the target's covariance with its feature's pre-activation: of all directions the one from
        which that feature alone explains most, as W_encᵀ would be if source and target were one and uncorrelated.

        Raises:
            DataError: when the sample is not finite, or all vectors of a part are equal.
        """
        source, target = sample_moments(self.source(sample_nd)), sample_moments(self.target(sample_nd))
        scale, target_scale = input_scale(source, normalisation), input_scale(target, normalisation)
        self.scale.fill_(scale)
        self.target_scale.fill_(target_scale)
        self.variance.fill_(float(target.variance.sum()) * target_scale**2)
        self.b_pre.copy_(source.mean * scale)
        self.b_dec.copy_(target.mean * target_scale)
        sample_nd = sample_nd.double().cpu()
        covariance_do = (self.source(sample_nd) - source.mean).T @ (self.target(sample_nd) - target.mean)
        rows_fd = F.normalize(torch.randn(self.n_features, self.width, generator=generator), dim=1)
        self.W_enc.copy_(rows_fd)
        self.W_dec.copy_(F.normalize(rows_fd.double() @ covariance_do, dim=1))
        self.b_enc.zero_()
        if self.config.skip:
            self.W_skip.zero_()

    @torch.no_grad()
    def fold_scale(self) -> None:
        self.W_enc.mul_(self.scale)
        self.b_pre.div_(self.scale)
        self.W_dec.div_(self.target_scale)
        self.b_dec.div_(self.target_scale)
        if self.config.skip:
            self.W_skip.mul_(self.scale / self.target_scale)
        self.variance.div_(self.target_scale.square())
        self.scale.fill_(1.0)
        self.target_scale.fill_(1.0)

    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        raise ConfigError(
            "features of a transcoder cannot be resampled: directions of its source say nothing about its target",
            fix="Use trainer.resampling.kind=none; AuxK revives them.",
        )

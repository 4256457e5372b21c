"""Convolutional SAE: its features see, and are drawn by, a neighbourhood of every position.

z = ReLU(W_enc ∗ (x − b_dec) + b_enc), x̂ = W_dec ∗ z + b_dec, both convolutions with small kernels and zeros around the
map; at will a ReLU on x̂. Toussaint 2024. A code moves several vectors of the site, so there is no dictionary to hand to
circuits. docs/sae/conv.md.
"""

# B images  P = H·W positions  D site width  F features

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError
from mis_lab.sae.base import SMALLEST_NORM, Autoencoder, Losses, StepInfo, input_scale, sample_moments
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.further_config import ConvConfig
from mis_lab.sae.trainer_config import Normalisation

ATOM = (1, 2, 3)  # dimensions of W_dec that make up a feature's atom


class ConvSae(Autoencoder):
    """An autoencoder of whole maps.

    Args:
        config: options.
        width: D.
        grid: (H, W) of the positions of an image.

    Attributes:
        W_enc: (F, D, K, K). b_enc: (F,). W_dec: (F, D, K, K): what one unit of a code adds around its position, row by
            row. b_dec: (D,).
    """

    config_type: ClassVar[type[SaeConfig]] = ConvConfig
    config: ConvConfig
    reads_maps = True

    def __init__(self, config: ConvConfig, width: int, grid: Sequence[int]) -> None:
        super().__init__(config, width)
        self.grid = (int(grid[0]), int(grid[1]))
        self.arguments = {"grid": list(self.grid)}
        kernel = (self.n_features, width, config.kernel, config.kernel)
        self.W_enc = nn.Parameter(torch.zeros(kernel))
        self.b_enc = nn.Parameter(torch.zeros(self.n_features))
        self.W_dec = nn.Parameter(torch.zeros(kernel))
        self.b_dec = nn.Parameter(torch.zeros(width))

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., P, F) of whole images (..., P, D)."""
        centred = self.normalise(x) - self.b_dec
        return self._over_maps(centred, lambda maps: F.conv2d(maps, self.W_enc, self.b_enc, padding="same")).relu()

    def decode(self, codes: Tensor) -> Tensor:
        """Whole images (..., P, D) of codes (..., P, F)."""
        return self._decode(codes) / self.scale

    def _decode(self, codes: Tensor) -> Tensor:
        margin = self.config.kernel // 2
        drawn = self._over_maps(codes, lambda maps: F.conv_transpose2d(maps, self.W_dec, self.b_dec, padding=margin))
        return drawn.relu() if self.config.rectify_output else drawn

    def _over_maps(self, x: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        """Convolve vectors (..., P, C) as maps of the grid."""
        if x.ndim < 2 or x.shape[-2] != self.grid[0] * self.grid[1]:
            raise ConfigError(
                f"a convolutional SAE of {self.grid[0]} x {self.grid[1]} positions cannot read {tuple(x.shape)}",
                fix="Give it whole images (..., positions, width) of the site that it was made for.",
            )
        maps_bchw = x.reshape(-1, *x.shape[-2:]).mT.unflatten(2, self.grid)
        return convolve(maps_bchw).flatten(2).mT.reshape(*x.shape[:-1], -1)

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """FVU + `sparsity`·λ·L1 of whole images (B, P, D): E‖x − x̂‖² / E‖x − mean‖² + λ·E Σ|z|, means over vectors."""
        x_bpd = self.normalise(x_nd)
        codes_bpf = self.encode(x_nd)
        fvu = (x_bpd - self._decode(codes_bpf)).square().sum(2).mean() / self.variance
        l1 = codes_bpf.sum(2).mean()
        active_bpf = codes_bpf.detach() > 0
        named = {"fvu": fvu.detach(), "l1": l1.detach(), "l0": active_bpf.sum(2).double().mean()}
        return Losses(fvu + step.sparsity * self.config.l1 * l1, named, active_bpf.any(1).any(0))

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """Start from whole images (N, P, D) as every SAE does: b_dec at the mean, atoms random of unit norm, the
        encoder at the decoder's transpose.

        Raises:
            DataError: when the sample is not finite, or all its vectors are equal.
            ConfigError: when its numbers go below 0 and the output is rectified.
        """
        moments = sample_moments(sample_nd.reshape(-1, self.width))
        if self.config.rectify_output and float(moments.minimum.min()) < 0:
            raise ConfigError(
                f"sae.rectify_output cannot reconstruct activations down to {float(moments.minimum.min()):.3g}",
                fix="Use a site after a ReLU, or sae.rectify_output=false.",
            )
        scale = input_scale(moments, normalisation)
        self.scale.fill_(scale)
        self.variance.fill_(float(moments.variance.sum()) * scale**2)
        self.b_dec.copy_(moments.mean * scale)
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalise_atoms()
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()

    @torch.no_grad()
    def project_gradient(self) -> None:
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(ATOM, keepdim=True)
            squared = self.W_dec.square().sum(ATOM, keepdim=True).clamp_min(SMALLEST_NORM)
            self.W_dec.grad.addcmul_(along / squared, self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_atoms(self) -> None:
        norm = self.W_dec.square().sum(ATOM, keepdim=True).sqrt()
        self.W_dec.div_(norm.clamp_min(SMALLEST_NORM))

    @property
    def dictionary(self) -> NoReturn:
        self._refuse("a dictionary of vectors")

    @property
    def offset(self) -> NoReturn:
        self._refuse("an offset")

    @property
    def encoder_weights(self) -> NoReturn:
        self._refuse("encoder weights for single vectors")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"a convolutional SAE has not {what}: a code adds to several vectors of the site",
            fix="Take another architecture for circuits and for comparing dictionaries.",
        )

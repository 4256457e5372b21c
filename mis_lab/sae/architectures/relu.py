"""ReLU SAE with an L1 penalty: f = ReLU(W_enc·(x − b_dec) + b_enc), x̂ = fᵀ·W_dec + b_dec.

Bricken et al. 2023, "Towards Monosemanticity" (form ``bricken``); Toussaint 2024 (form ``thesis``); Conerly et al.,
"Update on how we train SAEs", April 2024 (form ``april``). docs/sae/relu.md.
"""

# N vectors  D site width  F features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import ReluConfig, ReluForm, SaeConfig
from mis_lab.sae.encoder import centred_linear
from mis_lab.sae.trainer_config import Normalisation

INITIAL_NORM = 0.1  # of the free atoms of April 2024


class ReluSae(Sae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`."""

    config_type: ClassVar[type[SaeConfig]] = ReluConfig
    config: ReluConfig

    def __init__(self, config: ReluConfig, width: int) -> None:
        super().__init__(config, width)
        self.has_free_atoms = config.form is ReluForm.april

    @property
    def centre(self) -> Tensor:
        return torch.zeros_like(self.b_dec) if self.has_free_atoms else self.b_dec

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """As every SAE; atoms and encoder rows of April 2024 have norm 0.1, and its encoder bias starts where a
        pre-bias of b_dec would put it (there: 0, on data without a mean)."""
        super().initialise(sample_nd, generator, normalisation)
        if self.has_free_atoms:
            self.W_dec.mul_(INITIAL_NORM)
            self.W_enc.mul_(INITIAL_NORM)
            self.b_enc.copy_(-self.W_enc @ self.b_dec)

    def project_gradient(self) -> None:
        if not self.has_free_atoms:
            super().project_gradient()

    def normalise_atoms(self) -> None:
        if not self.has_free_atoms:
            super().normalise_atoms()

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        super().revive(features, encoder_kd, atoms_kd, bias_k)
        if self.has_free_atoms:
            self.W_dec[features] *= INITIAL_NORM
            self.b_enc[features] -= self.W_enc[features] @ self.b_dec

    def activation(self, pre: Tensor) -> Tensor:
        return pre.relu()

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """Reconstruction + `sparsity`·λ·L1, in inner units.

        bricken: mean over vectors of ‖x − x̂‖² + λ Σ|f| (unit-norm atoms: the trainer's `unit_norm`).
        thesis: mean over vectors and dimensions of (x − x̂)², plus λ times the mean over vectors and features of |f|.
        april: mean over vectors of ‖x − x̂‖² + λ Σ|f|·‖atom‖.
        """
        x_nd = self.normalise(x_nd)
        codes_nf = self.activation(centred_linear(x_nd, self.centre, self.W_enc, self.b_enc))
        squared_nd = (x_nd - self.b_dec - codes_nf @ self.W_dec).square()
        if self.config.form is ReluForm.thesis:
            reconstruction, l1 = squared_nd.mean(), codes_nf.mean()
        else:
            reconstruction = squared_nd.sum(1).mean()
            code_f = codes_nf.sum(0) / len(x_nd)
            l1 = code_f @ self.W_dec.norm(dim=1) if self.has_free_atoms else code_f.sum()
        active_nf = codes_nf.detach() > 0
        named = {"reconstruction": reconstruction.detach(), "l1": l1.detach(), "l0": active_nf.sum() / len(x_nd)}
        return Losses(reconstruction + step.sparsity * self.config.l1 * l1, named, active_nf.any(0))

"""Gated SAE: gates decide which features are active, magnitudes how strong; the L1 penalty acts on the gates alone.

π = W_enc·(x − b_dec) + b_enc, f = 1[π > 0] ⊙ ReLU(e^r ⊙ W_enc·(x − b_dec) + b_mag), x̂ = fᵀ·W_dec + b_dec.
Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", arXiv 2404.16014 (eq. 5 to
8).
docs/sae/gated.md.
"""

# N vectors  D site width  F features  K some features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mis_lab.sae.aux_k import add_aux_k
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import GatedConfig, SaeConfig
from mis_lab.sae.encoder import centred_linear


class GatedSae(Sae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`.

    Attributes:
        W_enc, b_enc: of the gates. r_mag: (F,), logarithm of what magnitudes scale W_enc by. b_mag: (F,).
    """

    config_type: ClassVar[type[SaeConfig]] = GatedConfig
    config: GatedConfig
    of_features: ClassVar[tuple[str, ...]] = (*Sae.of_features, "r_mag", "b_mag")

    def __init__(self, config: GatedConfig, width: int) -> None:
        super().__init__(config, width)
        self.r_mag = nn.Parameter(torch.zeros(self.n_features))
        self.b_mag = nn.Parameter(torch.zeros(self.n_features))

    def activation(self, pre: Tensor) -> Tensor:
        """Codes of the gates' pre-activations, which hold the magnitudes' too, as both read the same product."""
        return (pre > 0) * ((pre - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """‖x − x̂‖² + `sparsity`·λ·Σ ReLU(π) + ‖x − x̂(ReLU(π))‖² (+ AuxK), means over vectors (eq. 8).

        The last term decodes the open gates with a frozen copy of decoder and b_dec; its gradient is what tells a gate
        to open, so it must reach π. A gate at 1[π > 0] alone would learn from the penalty only, and close.
        """
        x_nd = self.normalise(x_nd)
        gate_nf = centred_linear(x_nd, self.b_dec, self.W_enc, self.b_enc)
        codes_nf = self.activation(gate_nf)
        error_nd = x_nd - self.b_dec - codes_nf @ self.W_dec
        reconstruction = error_nd.square().sum(1).mean()
        open_nf = gate_nf.relu()
        l1 = open_nf.sum() / len(x_nd)
        gates = (x_nd - self.b_dec.detach() - open_nf @ self.W_dec.detach()).square().sum(1).mean()
        active_nf = codes_nf.detach() > 0
        named = {
            "reconstruction": reconstruction.detach(),
            "l1": l1.detach(),
            "gates": gates.detach(),
            "l0": active_nf.sum() / len(x_nd),
        }
        total = reconstruction + step.sparsity * self.config.l1 * l1 + gates
        total = add_aux_k(total, named, self, x_nd, error_nd, step)
        return Losses(total, named, active_nf.any(0))

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        super().revive(features, encoder_kd, atoms_kd, bias_k)
        self.r_mag[features] = 0
        self.b_mag[features] = bias_k

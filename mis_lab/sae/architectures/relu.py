"""ReLU SAE with an L1 penalty: f = ReLU(W_enc·(x − b_dec) + b_enc), x̂ = fᵀ·W_dec + b_dec.

Bricken et al. 2023, "Towards Monosemanticity" (form ``bricken``); Toussaint 2024 (form ``thesis``). docs/sae/relu.md.
"""

# N vectors  D site width  F features

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import ReluConfig, ReluForm, SaeConfig
from mis_lab.sae.encoder import centred_linear


class ReluSae(Sae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`."""

    config_type: ClassVar[type[SaeConfig]] = ReluConfig
    config: ReluConfig

    def __init__(self, config: ReluConfig, width: int) -> None:
        super().__init__(config, width)

    def activation(self, pre: Tensor) -> Tensor:
        return pre.relu()

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """Reconstruction + `sparsity`·λ·L1, in inner units.

        bricken: mean over vectors of ‖x − x̂‖² + λ Σ|f| (unit-norm atoms: the trainer's `unit_norm`).
        thesis: mean over vectors and dimensions of (x − x̂)², plus λ times the mean over vectors and features of |f|.
        """
        x_nd = self.normalise(x_nd)
        codes_nf = self.activation(centred_linear(x_nd, self.b_dec, self.W_enc, self.b_enc))
        squared_nd = (x_nd - self.b_dec - codes_nf @ self.W_dec).square()
        if self.config.form is ReluForm.bricken:
            reconstruction, l1 = squared_nd.sum(1).mean(), codes_nf.sum() / len(x_nd)
        else:
            reconstruction, l1 = squared_nd.mean(), codes_nf.mean()
        active_nf = codes_nf.detach() > 0
        named = {"reconstruction": reconstruction.detach(), "l1": l1.detach(), "l0": active_nf.sum() / len(x_nd)}
        return Losses(reconstruction + step.sparsity * self.config.l1 * l1, named, active_nf.any(0))

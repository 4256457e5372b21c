"""JumpReLU SAE: a threshold θ of its own for every feature, z = π·1[π > θ], π = W_enc·(x − b_dec) + b_enc.

Rajamanoharan et al. 2024, "Jumping ahead" (arXiv 2407.14435, eq. 7 to 12), with the L0 penalty; Conerly et al., January
2025, with the tanh penalty. Thresholds are raw numbers kept at 0 or above: as exponentials (the paper's) they move by
θ·lr a step and are stuck where they start. docs/sae/jump_relu.md.
"""

# N vectors  D site width  F features  K some features

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mis_lab.sae.aux_k import add_aux_k
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import JumpReluConfig, JumpReluPenalty, SaeConfig
from mis_lab.sae.encoder import centred_linear
from mis_lab.sae.trainer_config import Normalisation


class _JumpRelu(Function):
    """π·1[π > θ] with ∂/∂θ = −(θ/ε)·K((π − θ)/ε), K the box of width 1 (eq. 11); `both` mirrors it into ∂/∂π."""

    @staticmethod
    def forward(ctx: Any, pre_nf: Tensor, threshold_f: Tensor, bandwidth: float, both: bool) -> Tensor:
        ctx.save_for_backward(pre_nf, threshold_f)
        ctx.bandwidth, ctx.both = bandwidth, both
        return pre_nf * (pre_nf > threshold_f)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nf: Tensor) -> tuple[Tensor | None, ...]:
        pre_nf, threshold_f = ctx.saved_tensors
        grad_pre_nf = grad_nf * (pre_nf > threshold_f)
        through_nf = grad_nf * box(pre_nf, threshold_f, ctx.bandwidth)
        if ctx.both:
            grad_pre_nf = grad_pre_nf + through_nf * (threshold_f / ctx.bandwidth)
        return grad_pre_nf, -through_nf.sum(0) * (threshold_f / ctx.bandwidth), None, None


class _L0(Function):
    """Number of active features over all vectors, with ∂/∂θ = −(1/ε)·K((π − θ)/ε) on pre-activations (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre_nf: Tensor, threshold_f: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_nf, threshold_f)
        ctx.bandwidth = bandwidth
        return (pre_nf > threshold_f).sum().to(pre_nf.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre_nf, threshold_f = ctx.saved_tensors
        return None, -grad / ctx.bandwidth * box(pre_nf, threshold_f, ctx.bandwidth).sum(0), None


def box(pre_nf: Tensor, threshold_f: Tensor, bandwidth: float) -> Tensor:
    """K((π − θ)/ε): whether a pre-activation lies within half a bandwidth of its threshold."""
    return (pre_nf - threshold_f).abs() < bandwidth / 2


class JumpReluSae(Sae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`.

    Attributes:
        threshold: (F,), θ in units of codes.
    """

    config_type: ClassVar[type[SaeConfig]] = JumpReluConfig
    config: JumpReluConfig
    of_features: ClassVar[tuple[str, ...]] = (*Sae.of_features, "threshold")

    def __init__(self, config: JumpReluConfig, width: int) -> None:
        super().__init__(config, width)
        self.threshold = nn.Parameter(torch.full((self.n_features,), config.threshold))

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        super().initialise(sample_nd, generator, normalisation)
        self.threshold.fill_(self.config.threshold)

    def activation(self, pre: Tensor) -> Tensor:
        return pre * (pre > self.threshold)

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """FVU + `sparsity`·λ·penalty (+ AuxK): penalty = L0 a vector, or Σ tanh(c·z·‖atom‖) with
        `pre_act`·Σ ReLU(θ − π)·‖atom‖ beside it."""
        config, x_nd = self.config, self.normalise(x_nd)
        by_l0 = config.penalty is JumpReluPenalty.l0
        pre_nf = centred_linear(x_nd, self.b_dec, self.W_enc, self.b_enc)
        codes_nf = _JumpRelu.apply(pre_nf, self.threshold, config.bandwidth, not by_l0)
        error_nd = x_nd - self.b_dec - codes_nf @ self.W_dec
        fvu = error_nd.square().sum(1).mean() / self.variance
        active_nf = codes_nf.detach() > 0
        l0 = active_nf.sum() / len(x_nd)
        named = {"fvu": fvu.detach(), "l0": l0}
        if by_l0:
            penalty = _L0.apply(pre_nf, self.threshold, config.bandwidth) / len(x_nd)
            total = fvu + step.sparsity * config.sparsity * penalty
        else:
            norm_f = self.W_dec.norm(dim=1)
            penalty = (config.tanh_scale * codes_nf * norm_f).tanh().sum() / len(x_nd)
            below = ((self.threshold - pre_nf).relu().sum(0) @ norm_f) / len(x_nd)
            total = fvu + step.sparsity * config.sparsity * penalty + config.pre_act * below
            named["below_threshold"] = below.detach()
        named["penalty"] = penalty.detach()
        total = add_aux_k(total, named, self, x_nd, error_nd, step)
        return Losses(total, named, active_nf.any(0))

    @torch.no_grad()
    def constrain(self) -> None:
        self.threshold.clamp_min_(0.0)

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        super().revive(features, encoder_kd, atoms_kd, bias_k)
        self.threshold[features] = self.config.threshold

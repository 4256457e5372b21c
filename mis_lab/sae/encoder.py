"""The encoder's affine map with its pre-bias, at the cost of a dense layer without one.

Autograd would pay a sixth dense product for the gradient of the pre-bias, by way of the gradient of the vectors.
The pre-bias is the same for all vectors, so its gradient is −(Σ_b ∂L/∂pre_b)·W_enc: a matrix-vector product.
"""

# B vectors  D site width  F features

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _CentredLinear(Function):
    @staticmethod
    def forward(ctx: Any, x_bd: Tensor, centre_d: Tensor, weight_fd: Tensor, bias_f: Tensor) -> Tensor:
        centred_bd = x_bd - centre_d
        ctx.save_for_backward(centred_bd, weight_fd)
        return F.linear(centred_bd, weight_fd, bias_f)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bf: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        centred_bd, weight_fd = ctx.saved_tensors
        grad_f = grad_bf.sum(0)
        grad_x_bd = grad_bf @ weight_fd if ctx.needs_input_grad[0] else None
        return grad_x_bd, -(grad_f @ weight_fd), grad_bf.T @ centred_bd, grad_f


def centred_linear(x_bd: Tensor, centre_d: Tensor, weight_fd: Tensor, bias_f: Tensor) -> Tensor:
    """(B, F): (x − centre) · weightᵀ + bias, for training (first derivatives only)."""
    return _CentredLinear.apply(x_bd, centre_d, weight_fd, bias_f)

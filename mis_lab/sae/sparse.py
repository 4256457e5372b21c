"""The sparse step: one dense product (encode) and then work on the selected features alone, with its exact gradient.

For codes with few features a vector (TopK, Gao et al. 2024, arXiv 2406.04093; its batch-wise kin) the decoder and both
weight gradients are products with a sparse matrix (B, F), which no step ever fills: the decoder reads the rows of the
selected features, and ∂L/∂W_dec = codesᵀ·∂L/∂x̂ and ∂L/∂W_enc = (∂L/∂pre)ᵀ·(x − b) read the vectors that chose them.
A sparse matrix stands in CSR form and is multiplied by ``embedding_bag`` (a bag a row), several times as fast on a CPU
as torch's sparse product and in a fixed order of addition on every device.
"""

# B vectors  D site width  F features  M selected (vector, feature) pairs, in the order of the vectors

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mis_lab.sae.encoder import centred_linear


class Selection(NamedTuple):
    """Which features each vector keeps, as a CSR matrix: row b has pairs ``starts_b[b] : starts_b[b + 1]``.

    Attributes:
        values_m: pre-activations of the pairs.
        features_m: int64, their features.
        starts_b: (B + 1) int64, where each vector's pairs start; the last entry is M.
    """

    values_m: Tensor
    features_m: Tensor
    starts_b: Tensor


Select = Callable[[Tensor], Selection]


class Coded(NamedTuple):
    """Vectors decoded from their selected features.

    Attributes:
        decoded_bd: Σ codes · atoms, without the decoder's bias.
        codes_m: ReLU of the selected pre-activations; may hold zeros.
        features_m: their features.
    """

    decoded_bd: Tensor
    codes_m: Tensor
    features_m: Tensor

    def fired(self, n_features: int) -> Tensor:
        """(F,) bool: which features have a positive code."""
        fired_f = torch.zeros(n_features, dtype=torch.bool, device=self.features_m.device)
        fired_f[self.features_m[self.codes_m > 0]] = True
        return fired_f


def top_k(pre_bf: Tensor, k: int) -> Selection:
    """The k largest pre-activations of every vector.

    The selection comes first and ReLU acts on its k values: selecting from rectified values costs half as much again.
    """
    values_bk, features_bk = pre_bf.topk(k, dim=-1, sorted=False)
    starts_b = torch.arange(0, features_bk.numel() + 1, k, device=pre_bf.device)
    return Selection(values_bk.reshape(-1), features_bk.reshape(-1), starts_b)


def _product(values_m: Tensor, columns_m: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
    """CSR matrix times dense matrix: row r is Σ over its pairs of value · dense[column]."""
    return F.embedding_bag(columns_m, dense, starts, mode="sum", per_sample_weights=values_m, include_last_offset=True)


class _SparseAutoencode(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_bd: Tensor,
        centre_d: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        select: Select,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred_bd = x_bd - centre_d
        selection = select(F.linear(centred_bd, W_enc, b_enc))  # the (B, F) pre-activations end here
        codes_m = selection.values_m.relu()
        decoded_bd = _product(codes_m, selection.features_m, selection.starts_b, W_dec)
        ctx.save_for_backward(centred_bd, W_enc, W_dec, codes_m, selection.features_m, selection.starts_b)
        ctx.mark_non_differentiable(selection.features_m)
        return decoded_bd, codes_m, selection.features_m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bd: Tensor, grad_codes_m: Tensor, _: None) -> tuple[Tensor | None, ...]:
        centred_bd, W_enc, W_dec, codes_m, features_m, starts_b = ctx.saved_tensors
        n_vectors, n_features = len(centred_bd), len(W_enc)

        # ∂L/∂code of a pair = ⟨∂L/∂x̂ of its vector, atom of its feature⟩: the derivative of the decoder in its weights.
        with torch.enable_grad():
            weights_m = codes_m.detach().requires_grad_()
            decoded_bd = _product(weights_m, features_m, starts_b, W_dec.detach())
        (grad_m,) = torch.autograd.grad(decoded_bd, weights_m, grad_bd.contiguous())
        grad_pre_m = (grad_m + grad_codes_m) * (codes_m > 0)

        # The transposed matrix in CSR form: pairs sorted by feature; a stable sort keeps the order of the vectors.
        order_m = features_m.argsort(stable=True)
        sizes_b = starts_b.diff()
        rows_m = torch.arange(n_vectors, device=features_m.device).repeat_interleave(sizes_b)[order_m]
        starts_f = F.pad(torch.bincount(features_m, minlength=n_features).cumsum(0), (1, 0))

        sorted_grad_m = grad_pre_m[order_m]
        grad_W_dec = _product(codes_m[order_m], rows_m, starts_f, grad_bd.contiguous())
        grad_W_enc = _product(sorted_grad_m, rows_m, starts_f, centred_bd)
        ones_b1 = torch.ones(n_vectors, 1, dtype=grad_bd.dtype, device=grad_bd.device)
        grad_b_enc = _product(sorted_grad_m, rows_m, starts_f, ones_b1).squeeze(1)
        grad_x_bd = _product(grad_pre_m, features_m, starts_b, W_enc) if ctx.needs_input_grad[0] else None
        return grad_x_bd, -(grad_b_enc @ W_enc), grad_W_enc, grad_b_enc, grad_W_dec, None


def sparse_autoencode(
    x_bd: Tensor, centre_d: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, select: Select
) -> Coded:
    """Encode, select, rectify, decode; the gradient is exact given the selection, and flows through its values only.

    Args:
        x_bd: vectors.
        centre_d: pre-bias, subtracted before the encoder.
        W_enc, W_dec: (F, D), a feature a row.
        b_enc: (F,).
        select: chooses pairs from the pre-activations (B, F).
    """
    return Coded(*_SparseAutoencode.apply(x_bd, centre_d, W_enc, b_enc, W_dec, select))


def dense_autoencode(
    x_bd: Tensor, centre_d: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, select: Select
) -> Coded:
    """What :func:`sparse_autoencode` computes, by autograd: five dense products (B, D, F) instead of one."""
    pre_bf = centred_linear(x_bd, centre_d, W_enc, b_enc)
    selection = select(pre_bf)
    codes_m = selection.values_m.relu()
    rows_m = torch.arange(len(x_bd), device=x_bd.device).repeat_interleave(selection.starts_b.diff())
    codes_bf = torch.zeros_like(pre_bf).index_put((rows_m, selection.features_m), codes_m)
    return Coded(codes_bf @ W_dec, codes_m, selection.features_m)

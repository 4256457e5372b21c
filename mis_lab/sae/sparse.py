"""The sparse step: one dense product (encode) and then work on the selected features alone, with its exact gradient.

For codes with few features a vector (TopK, Gao et al. 2024, arXiv 2406.04093; its batch-wise kin) the decoder and both
weight gradients are products with a sparse matrix (B, F), which no step ever fills: the decoder reads the rows of the
selected features, and ∂L/∂W_dec = codesᵀ·∂L/∂x̂ and ∂L/∂W_enc = (∂L/∂pre)ᵀ·(x − b) read the vectors that chose them.
A sparse matrix stands in CSR form and is multiplied by ``embedding_bag`` (a bag a row), several times as fast on a CPU
as torch's sparse product and in a fixed order of addition on every device. Pre-activations exist for a few hundred
vectors at a time (`selection.py`).

Features may be cut into groups (Matryoshka's nested prefixes): then each group decodes apart, at no further product.
"""

# B vectors  D site width  F features  M selected (vector, feature) pairs, in the order of the vectors  G groups

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mis_lab.sae.encoder import centred_linear
from mis_lab.sae.selection import Select


class Coded(NamedTuple):
    """Vectors decoded from their selected features.

    Attributes:
        decoded_gbd: Σ codes · atoms of each group of features, without the decoder's bias; G = 1 without groups.
        codes_m: ReLU of the selected pre-activations; may hold zeros.
        features_m: their features.
    """

    decoded_gbd: Tensor
    codes_m: Tensor
    features_m: Tensor

    @property
    def decoded_bd(self) -> Tensor:
        """(B, D): Σ codes · atoms over all features."""
        return self.decoded_gbd.sum(0) if len(self.decoded_gbd) > 1 else self.decoded_gbd[0]

    @property
    def n_active(self) -> Tensor:
        """Number of positive codes of the whole batch."""
        return (self.codes_m > 0).sum()

    def fired(self, n_features: int) -> Tensor:
        """(F,) bool: which features have a positive code."""
        fired_f = torch.zeros(n_features, dtype=torch.bool, device=self.features_m.device)
        fired_f[self.features_m[self.codes_m > 0]] = True
        return fired_f


def _product(values_m: Tensor, columns_m: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
    """CSR matrix times dense matrix: row r is Σ over its pairs of value · dense[column]."""
    return F.embedding_bag(columns_m, dense, starts, mode="sum", per_sample_weights=values_m, include_last_offset=True)


def _sampled_product(rows: Tensor, columns_m: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
    """(M,): ⟨rows[r], dense[column]⟩ of every pair (r, column): what the product's derivative in its values is."""
    with torch.enable_grad():
        values_m = dense.new_zeros(len(columns_m)).requires_grad_()
        out = _product(values_m, columns_m, starts, dense.detach())
    return torch.autograd.grad(out, values_m, rows.contiguous())[0]


def _starts(keys_m: Tensor, n: int) -> Tensor:
    """(n + 1,): where the pairs of every key start, once they are sorted by it."""
    return F.pad(torch.bincount(keys_m, minlength=n).cumsum(0), (1, 0))


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
        group_f: Tensor | None,
        precision: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred_bd = x_bd - centre_d
        low_bd, low_W = centred_bd.to(precision), W_enc.to(precision)

        def pre(rows: slice | Tensor) -> Tensor:
            if low_bd is centred_bd:
                return F.linear(centred_bd[rows], W_enc, b_enc)
            return F.linear(low_bd[rows], low_W).to(W_enc.dtype).add_(b_enc)

        values_m, features_m, starts_b = select(pre, len(x_bd))
        if low_bd is not centred_bd:  # chosen in low precision, computed in full
            values_m = _sampled_product(centred_bd, features_m, starts_b, W_enc).add_(b_enc[features_m])
        codes_m = values_m.relu()
        # Bags are (group, vector); without groups the order of the vectors is that of the bags already.
        bag_m, order_m, n_bags = None, None, len(x_bd)
        if group_f is not None:
            rows_m = torch.arange(len(x_bd), device=x_bd.device).repeat_interleave(starts_b.diff())
            bag_m = group_f[features_m] * len(x_bd) + rows_m
            order_m = bag_m.argsort(stable=True)
            n_bags *= int(group_f[-1]) + 1
        starts = starts_b if bag_m is None else _starts(bag_m, n_bags)
        columns_m = features_m if order_m is None else features_m[order_m]
        decoded = _product(codes_m if order_m is None else codes_m[order_m], columns_m, starts, W_dec)
        ctx.save_for_backward(centred_bd, W_enc, W_dec, codes_m, features_m, starts_b, bag_m, order_m, starts)
        ctx.mark_non_differentiable(features_m)
        return decoded.view(-1, len(x_bd), W_dec.shape[1]), codes_m, features_m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gbd: Tensor, grad_codes_m: Tensor, _: None) -> tuple[Tensor | None, ...]:
        centred_bd, W_enc, W_dec, codes_m, features_m, starts_b, bag_m, order_m, starts = ctx.saved_tensors
        n_vectors, n_features = len(centred_bd), len(W_enc)
        grad_bags = grad_gbd.reshape(-1, W_dec.shape[1])

        # ∂L/∂code of a pair = ⟨∂L/∂x̂ of its vector (in its group), atom of its feature⟩.
        if order_m is None:
            grad_m = _sampled_product(grad_bags, features_m, starts, W_dec)
        else:
            grad_m = torch.empty_like(codes_m)
            grad_m[order_m] = _sampled_product(grad_bags, features_m[order_m], starts, W_dec)
        grad_pre_m = (grad_m + grad_codes_m) * (codes_m > 0)

        # The transposed matrix in CSR form: pairs sorted by feature; a stable sort keeps the order of the vectors.
        by_feature_m = features_m.argsort(stable=True)
        rows_m = torch.arange(n_vectors, device=features_m.device).repeat_interleave(starts_b.diff())[by_feature_m]
        starts_f = _starts(features_m, n_features)

        grad_W_dec = None
        if ctx.needs_input_grad[4]:
            bags_m = rows_m if bag_m is None else bag_m[by_feature_m]
            grad_W_dec = _product(codes_m[by_feature_m], bags_m, starts_f, grad_bags.contiguous())
        sorted_grad_m = grad_pre_m[by_feature_m]
        grad_W_enc = _product(sorted_grad_m, rows_m, starts_f, centred_bd)
        ones_b1 = torch.ones(n_vectors, 1, dtype=grad_bags.dtype, device=grad_bags.device)
        grad_b_enc = _product(sorted_grad_m, rows_m, starts_f, ones_b1).squeeze(1)
        grad_x_bd = _product(grad_pre_m, features_m, starts_b, W_enc) if ctx.needs_input_grad[0] else None
        return grad_x_bd, -(grad_b_enc @ W_enc), grad_W_enc, grad_b_enc, grad_W_dec, None, None, None


def sparse_autoencode(
    x_bd: Tensor,
    centre_d: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    select: Select,
    group_f: Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> Coded:
    """Encode, select, rectify, decode; the gradient is exact given the selection, and flows through its values only.

    Args:
        x_bd: vectors.
        centre_d: pre-bias, subtracted before the encoder.
        W_enc, W_dec: (F, D), a feature a row; their D may differ (transcoders).
        b_enc: (F,).
        select: chooses pairs from the pre-activations.
        group_f: (F,) int64, group of every feature, not falling; None for one group.
        precision: of the encoder's product; float32 means that of the vectors. A lower one decides which features are
            selected; their values are computed anew in full precision, and so are all gradients.
    """
    if precision is torch.float32:
        precision = x_bd.dtype
    return Coded(*_SparseAutoencode.apply(x_bd, centre_d, W_enc, b_enc, W_dec, select, group_f, precision))


def dense_autoencode(
    x_bd: Tensor,
    centre_d: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    select: Select,
    group_f: Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> Coded:
    """What :func:`sparse_autoencode` computes, by autograd in full precision: five dense products (B, D, F)."""
    pre_bf = centred_linear(x_bd, centre_d, W_enc, b_enc)
    pre_detached_bf = pre_bf.detach()
    _, features_m, starts_b = select(lambda rows: pre_detached_bf[rows], len(x_bd))
    rows_m = torch.arange(len(x_bd), device=x_bd.device).repeat_interleave(starts_b.diff())
    codes_m = pre_bf[rows_m, features_m].relu()
    codes_bf = torch.zeros_like(pre_bf).index_put((rows_m, features_m), codes_m)
    if group_f is None:
        decoded_gbd = (codes_bf @ W_dec).unsqueeze(0)
    else:
        groups = [group_f == group for group in range(int(group_f[-1]) + 1)]
        decoded_gbd = torch.stack([codes_bf[:, group] @ W_dec[group] for group in groups])
    return Coded(decoded_gbd, codes_m, features_m)

"""AuxK, the auxiliary loss that brings dead features back (Gao et al. 2024, arXiv 2406.04093, app. A.2)."""

# N vectors  D site width  F features  K dead features

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mis_lab.sae.base import StepInfo
from mis_lab.sae.config import AuxKConfig
from mis_lab.sae.selection import TopK
from mis_lab.sae.sparse import Coded, sparse_autoencode


def add_aux_k(
    total: Tensor,
    named: dict[str, Tensor],
    sae: Any,
    source_nd: Tensor,
    error_nd: Tensor,
    step: StepInfo,
    autoencode: Callable[..., Coded] = sparse_autoencode,
) -> Tensor:
    """The loss of an SAE with options :class:`~mis_lab.sae.config.AuxKConfig`, its AuxK added and named."""
    config: AuxKConfig = sae.config
    if not (config.aux_k and config.aux_weight):
        return total
    weights = sae.centre, sae.W_enc, sae.b_enc, sae.atoms
    aux = aux_k_loss(source_nd, error_nd.detach(), step.dead_f, *weights, config.aux_k, autoencode)
    named["aux"] = aux.detach()
    return total + config.aux_weight * aux


def aux_k_loss(
    x_nd: Tensor,
    error_nd: Tensor,
    dead_f: Tensor,
    centre_d: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    aux_k: int,
    autoencode: Callable[..., Coded] = sparse_autoencode,
) -> Tensor:
    """How badly the dead features reconstruct the error: E‖e − ê‖² / E‖e − ē‖², 0 while nothing is dead.

    ê = z_aux·W_dec without a bias, z_aux = ReLU of the `aux_k` largest pre-activations among the dead (all of them
    where they are fewer). Only their rows are computed.

    Args:
        x_nd: what the encoder reads, inner units.
        error_nd: x − x̂, without gradient: else the living features would learn to leave an easy error.
        dead_f: (F,) bool.
        centre_d: pre-bias.
        W_enc, b_enc, W_dec: of all features.
    """
    dead_k = dead_f.nonzero().squeeze(1)
    if len(dead_k) == 0:
        return error_nd.new_zeros(())
    W_enc, b_enc, W_dec = (weights.index_select(0, dead_k) for weights in (W_enc, b_enc, W_dec))
    guess = autoencode(x_nd, centre_d, W_enc, b_enc, W_dec, TopK(min(aux_k, len(dead_k))))
    missed = (error_nd - guess.decoded_bd).square().sum()
    spread = (error_nd - error_nd.mean(0)).square().sum()
    # A perfect reconstruction leaves nothing to learn (0/0 in the formula).
    return torch.where(spread > 0, missed / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)

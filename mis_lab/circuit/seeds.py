"""Where backward passes of edges begin: the derivative of a downstream node over the vectors of its site.

Of the sum q_k = Σ_p ḡ_k·f_k over positions, with ḡ_k = ⟨atom_k, ∂m/∂y⟩ held fixed, the derivative over y is
ḡ_k·slope_k·W_enc[k] wherever codes are a function of their own pre-activation once it is known which are active
(ReLU, TopK, JumpReLU, gated): no pass through the encoder is needed. Other encoders are differentiated by
autograd. The error node is y − x̂(y), so its derivative is what features leave of ∂m/∂y.

Images do not know of each other, so that one pass serves another node of each image.
"""

# B images  P positions  D site width  F features  T chosen nodes

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.dictionaries import NodeDictionary, SaeFeatures, n_images_at_once
from mis_lab.circuit.ends import atoms_of
from mis_lab.core.errors import ConfigError
from mis_lab.sae.base import Sae

# (B,) numbers of features among the chosen ones, one an image → (B, P, D) their derivatives.
PullBack = Callable[[Tensor], Tensor]


class Seeds:
    """Derivatives of chosen nodes of a site, one node an image at a time.

    Args:
        nodes: of the site.
        y_bpd: its vectors.
        gradient_bpd: of the objective, over vectors.
        chosen: (T,) features, :data:`ERROR` for the error node.

    Attributes:
        active_bt: whether a node's derivative differs from zero on an image.

    Raises:
        ConfigError: when codes have no derivative.
    """

    def __init__(self, nodes: SiteNodes, y_bpd: Tensor, gradient_bpd: Tensor, chosen: Tensor) -> None:
        chosen = chosen.to(y_bpd.device)
        self.is_feature = chosen != ERROR
        features = chosen[self.is_feature]
        wants_error = len(features) < len(chosen)
        dictionary = nodes.dictionary
        found = _by_rows(dictionary, y_bpd, gradient_bpd, features, wants_error)
        if found is None:
            found = _by_autograd(dictionary, y_bpd, gradient_bpd, features, wants_error)
        self.place_t = self.is_feature.cumsum(0) - 1
        self.pull_back, self.error_bpd = found.pull_back, found.error_bpd
        self.active_bt = torch.ones(len(y_bpd), len(chosen), dtype=torch.bool, device=y_bpd.device)
        self.active_bt[:, self.is_feature] = found.active_bk
        if wants_error:
            self.active_bt[:, ~self.is_feature] = self.error_bpd.any(2).any(1)[:, None]

    def passes(self) -> Tensor:
        """(J, B) places of chosen nodes: every active node of every image once, −1 where an image has no more."""
        n_active_b = self.active_bt.sum(1)
        order_bt = self.active_bt.int().argsort(dim=1, descending=True, stable=True)
        is_active_bt = torch.arange(order_bt.shape[1], device=order_bt.device) < n_active_b[:, None]
        n_passes = int(n_active_b.max()) if len(n_active_b) else 0
        return torch.where(is_active_bt, order_bt, -1)[:, :n_passes].T

    @torch.no_grad()
    def at(self, places_b: Tensor) -> Tensor:
        """(B, P, D): the derivative of the node at each image's place; zero where that is −1."""
        is_feature_b = self.is_feature[places_b.clamp_min(0)]
        seed_bpd = torch.zeros_like(self.error_bpd)
        if bool(self.is_feature.any()):
            seed_bpd = self.pull_back(self.place_t[places_b.clamp_min(0)].clamp_min(0))
        seed_bpd = torch.where(is_feature_b[:, None, None], seed_bpd, self.error_bpd)
        return seed_bpd * (places_b >= 0)[:, None, None]


class _Found(NamedTuple):
    """How to pull back features, which of them are active (B, K), and the error's derivative (B, P, D)."""

    pull_back: PullBack
    active_bk: Tensor
    error_bpd: Tensor


@torch.no_grad()
def _by_rows(
    dictionary: NodeDictionary, y_bpd: Tensor, gradient_bpd: Tensor, features: Tensor, wants_error: bool
) -> _Found | None:
    """Derivatives as multiples of encoder rows; None where codes depend on each other's pre-activations."""
    if not dictionary.has_error:  # the nodes are the coordinates
        coefficient_bpk, rows_kd = gradient_bpd[..., features], atoms_of(dictionary, features)
        error_bpd = torch.zeros_like(y_bpd)
    elif isinstance(dictionary, SaeFeatures) and type(dictionary.sae).encode is Sae.encode:
        rows_fd = dictionary.sae.encoder_weights.weight_fd
        n_at_once = n_images_at_once(dictionary, y_bpd.shape[1])
        coefficients, errors = [], []
        for y, gradient in zip(y_bpd.split(n_at_once), gradient_bpd.split(n_at_once), strict=True):
            slope = _slopes(dictionary.sae, y)
            if slope is None:
                return None
            of_codes = dictionary.project(gradient) * slope
            coefficients.append(of_codes[..., features])
            errors.append(gradient - of_codes @ rows_fd if wants_error else torch.zeros_like(y))
        coefficient_bpk, rows_kd, error_bpd = torch.cat(coefficients), rows_fd[features], torch.cat(errors)
    else:
        return None

    def pull_back(places_b: Tensor) -> Tensor:
        index = places_b[:, None, None].expand(-1, coefficient_bpk.shape[1], 1)
        return coefficient_bpk.gather(2, index) * rows_kd[places_b][:, None]

    return _Found(pull_back, (coefficient_bpk != 0).any(1), error_bpd)


@torch.enable_grad()
def _slopes(sae: Sae, y_bpd: Tensor) -> Tensor | None:
    """∂code/∂pre-activation (B, P, F); None where a code has a derivative over another's pre-activation."""
    pre = sae.pre_activations(y_bpd).detach().requires_grad_()
    codes = sae.activation(pre)
    if not codes.requires_grad:
        return None
    slope = torch.autograd.grad(codes, pre, torch.ones_like(codes), retain_graph=True)[0]
    # Only a diagonal matrix gives back whatever it gets, times its own entries.
    uneven = 1 + torch.arange(codes.shape[-1], dtype=pre.dtype, device=pre.device) / codes.shape[-1]
    again = torch.autograd.grad(codes, pre, uneven.expand_as(codes))[0]
    return slope if torch.allclose(again, slope * uneven) else None


@torch.enable_grad()
def _by_autograd(
    dictionary: NodeDictionary, y_bpd: Tensor, gradient_bpd: Tensor, features: Tensor, wants_error: bool
) -> _Found:
    """Derivatives through the whole encoder, whose graph is kept for the batch."""
    leaf = y_bpd.detach().clone().requires_grad_()
    codes = dictionary.sae.encode(leaf) if isinstance(dictionary, SaeFeatures) else dictionary.encode(leaf)
    if not codes.requires_grad:
        raise ConfigError(f"the codes of {_name(dictionary)} have no derivative", fix="Use exact edges.")
    projected = dictionary.project(gradient_bpd)
    error_bpd = torch.zeros_like(gradient_bpd)
    if wants_error:
        error_bpd = gradient_bpd - torch.autograd.grad(codes, leaf, projected, retain_graph=True)[0]
    codes_bpk, projected_bpk = codes[..., features], projected[..., features]

    def pull_back(places_b: Tensor) -> Tensor:
        index = places_b[:, None, None].expand(-1, codes_bpk.shape[1], 1)
        cotangent = torch.zeros_like(projected_bpk).scatter(2, index, projected_bpk.gather(2, index))
        return torch.autograd.grad(codes_bpk, leaf, cotangent, retain_graph=True)[0]

    active_bk = torch.ones(len(y_bpd), len(features), dtype=torch.bool, device=y_bpd.device)
    return _Found(pull_back, active_bk, error_bpd)


def _name(dictionary: NodeDictionary) -> str:
    return type(dictionary.sae if isinstance(dictionary, SaeFeatures) else dictionary).__name__

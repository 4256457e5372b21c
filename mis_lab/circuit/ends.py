"""The two ends of an edge on one batch: how far upstream nodes are from their baselines, and what that
does to downstream nodes when it is carried out.
"""

# B images  n copies of the batch  P positions  D site width  F features
# U chosen upstream nodes  T chosen downstream nodes

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.core.errors import ConfigError


def check_chosen(path: str, dictionary: NodeDictionary, chosen: Tensor) -> None:
    """Whether the numbers of nodes exist and each is there once.

    Raises:
        ConfigError: when not.
    """
    lowest = ERROR if dictionary.has_error else 0
    wrong = [node for node in chosen.tolist() if not lowest <= node < dictionary.n_features]
    if wrong:
        has = f"{dictionary.n_features} {dictionary.kind}s" + (", the error is -1" if dictionary.has_error else "")
        raise ConfigError(f"site {path} has no node {wrong[0]}", looked=has)
    if len(chosen.unique()) < len(chosen):
        raise ConfigError(f"a node of site {path} was chosen twice", fix="Name each node once.")


def atoms_of(dictionary: NodeDictionary, features: Tensor) -> Tensor:
    """Atoms of some features, (K, D)."""
    like = dictionary.offset
    return dictionary.combine(torch.eye(len(features), dtype=like.dtype, device=like.device), features)


class SourceEnd:
    """Chosen nodes of the upstream site, Δ = node − baseline.

    Args:
        nodes: of the site.
        x_bpd: its vectors.
        chosen: (U,) features, :data:`ERROR` for the error node.
    """

    @torch.no_grad()
    def __init__(self, nodes: SiteNodes, x_bpd: Tensor, chosen: Tensor) -> None:
        dictionary, chosen = nodes.dictionary, chosen.to(x_bpd.device)
        self.is_feature = chosen != ERROR
        features = chosen[self.is_feature]
        self.atoms_ud = atoms_of(dictionary, features)
        deltas, errors = [], []
        for x, of_images in nodes.chunks(x_bpd):
            codes = dictionary.encode(x)
            deltas.append(codes[..., features] - of_images.features[..., features])
            if len(features) < len(chosen):
                errors.append(x - dictionary.combine(codes) - dictionary.offset - of_images.error)
        self.delta_bpu = torch.cat(deltas)
        self.error_bpd = torch.cat(errors) if errors else None
        # Of the nodes among the features; the error node has no place there.
        self.place_u = self.is_feature.cumsum(0) - 1

    @property
    def moving(self) -> Tensor:
        """Places of the nodes that leave their baselines on any image."""
        moves = torch.ones_like(self.is_feature)
        moves[self.is_feature] = self.delta_bpu.any(1).any(0)
        return moves.nonzero().squeeze(1)

    def contract(self, gradient_bpd: Tensor) -> Tensor:
        """Σ_p ⟨gradient, Δ of the node in x⟩, (B, U)."""
        found_bu = gradient_bpd.new_zeros(len(gradient_bpd), len(self.is_feature))
        found_bu[:, self.is_feature] = ((gradient_bpd @ self.atoms_ud.T) * self.delta_bpu).sum(1)
        if self.error_bpd is not None:
            found_bu[:, ~self.is_feature] = (gradient_bpd * self.error_bpd).sum((1, 2))[:, None]
        return found_bu

    def share(self, node: int) -> Tensor:
        """What the node at this place adds to x beyond its baseline, (B, P, D)."""
        if self.error_bpd is not None and not self.is_feature[node]:
            return self.error_bpd
        place = self.place_u[node]
        return self.delta_bpu[..., place, None] * self.atoms_ud[place]


class TargetEnd:
    """Chosen nodes of the downstream site, each weighed with its gradient of the objective.

    Args:
        nodes: of the site.
        y_bpd: its clean vectors.
        gradient_bpd: of the objective, over vectors.
        chosen: (T,) features, :data:`ERROR` for the error node.
    """

    @torch.no_grad()
    def __init__(self, nodes: SiteNodes, y_bpd: Tensor, gradient_bpd: Tensor, chosen: Tensor) -> None:
        self.dictionary, chosen = nodes.dictionary, chosen.to(y_bpd.device)
        self.is_feature = chosen != ERROR
        self.features = chosen[self.is_feature]
        self.y_bpd, self.gradient_bpd = y_bpd, gradient_bpd
        self.weight_bpt = gradient_bpd @ atoms_of(self.dictionary, self.features).T
        # ⟨gradient, e⟩ = ⟨gradient, y⟩ − Σ_k ⟨gradient, atom_k⟩·f_k − constant: no reconstruction is needed.
        wants_error = len(self.features) < len(chosen)
        self.projected_bpf = self.dictionary.project(gradient_bpd) if wants_error else None
        self.n_at_once = n_images_at_once(self.dictionary, y_bpd.shape[1])
        images = torch.arange(len(y_bpd), device=y_bpd.device)
        parts = [self._told(y_bpd[rows], rows) for rows in images.split(self.n_at_once)]
        self.codes_bpt, self.told_bp = (torch.cat(column) for column in zip(*parts, strict=True))

    def _told(self, y_bpd: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen codes (B, P, T), and (B, P) what all features say of ⟨gradient, y⟩; 0 where nobody asks."""
        codes = self.dictionary.encode(y_bpd)
        if self.projected_bpf is None:
            return codes[..., self.features], codes.new_zeros(codes.shape[:2])
        return codes[..., self.features], (codes * self.projected_bpf[image]).sum(2)

    @torch.no_grad()
    def lost(self, moved_bpd: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_p ⟨gradient, node − node with the site moved⟩: (n·B, T) of the nodes, (n·B,) of the whole site.

        Args:
            moved_bpd: (n·B, P, D), the site's vectors with something upstream ablated.
        """
        found, whole = moved_bpd.new_zeros(len(moved_bpd), len(self.is_feature)), moved_bpd.new_zeros(len(moved_bpd))
        for rows in torch.arange(len(moved_bpd), device=moved_bpd.device).split(self.n_at_once):
            image = rows % len(self.y_bpd)
            codes, told_bp = self._told(moved_bpd[rows], image)
            whole_bp = ((self.y_bpd[image] - moved_bpd[rows]) * self.gradient_bpd[image]).sum(2)
            whole[rows] = whole_bp.sum(1)
            of_features = ((self.codes_bpt[image] - codes) * self.weight_bpt[image]).sum(1)
            of_error = (whole_bp - (self.told_bp[image] - told_bp)).sum(1)
            found[rows] = torch.where(self.is_feature, 0, of_error[:, None])
            found[rows[:, None], self.is_feature.nonzero().T] = of_features
        return found, whole

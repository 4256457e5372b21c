"""What the nodes of a site are: features of an SAE plus an error node, or the site's own neurons.

A dictionary writes vectors as x = Σ_k f_k(x)·atom_k + offset + error(x). For neurons f is x itself; offset
and error are exactly zero, so neurons have no error node.
"""

# B images  P positions  D site width  F features  N nodes: F features, then the error node where there is one

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.model.sites import Site
from mis_lab.sae.base import Autoencoder, Sae

# Codes of more entries than this are made some images at a time (64 MiB in float32).
MAX_CODES = 2**24


class NodeDictionary(Protocol):
    """Nodes of one site.

    Attributes:
        kind: ``feature`` or ``neuron``.
        n_features: F.
        has_error: whether the error is a node; without one the features are the coordinates of x themselves.
        offset: (D,) what is left with all features and the error at zero.
    """

    @property
    def kind(self) -> str: ...

    @property
    def n_features(self) -> int: ...

    @property
    def has_error(self) -> bool: ...

    @property
    def offset(self) -> Tensor: ...

    def encode(self, x_bpd: Tensor) -> Tensor:
        """Codes (..., F) of vectors (..., D)."""
        ...

    def combine(self, f_bpf: Tensor, which_k: Tensor | None = None) -> Tensor:
        """Σ_k f_k·atom_k, (..., D); `f_bpf` holds the features `which_k` (K,) alone when given."""
        ...

    def project(self, g_bpd: Tensor) -> Tensor:
        """⟨atom_k, g⟩ for all features, (..., F)."""
        ...


def n_nodes(dictionary: NodeDictionary) -> int:
    """N: features and, where there is one, the error node (always the last)."""
    return dictionary.n_features + int(dictionary.has_error)


def n_images_at_once(dictionary: NodeDictionary | Autoencoder, n_positions: int) -> int:
    """How many images' codes (B, P, F) fit the budget :data:`MAX_CODES`; at least one."""
    return max(1, MAX_CODES // (n_positions * dictionary.n_features))


@dataclass(frozen=True, eq=False)
class SaeFeatures:
    """The features of an SAE as nodes, with an error node x − x̂."""

    sae: Sae
    atoms: Tensor
    offset: Tensor
    kind: str = "feature"
    has_error: bool = True

    @classmethod
    def at(cls, site: Site, sae: Autoencoder) -> SaeFeatures:
        """The SAE trained at `site`.

        Raises:
            ConfigError: when it has no linear dictionary, or was trained on vectors of another width.
        """
        if not isinstance(sae, Sae) or not sae.is_of_one_site:
            raise ConfigError(
                f"{type(sae).__name__} is no dictionary of the single vectors of site {site.path}",
                fix="Circuits need one: no convolutional SAE, no transcoder.",
            )
        atoms_fd, offset_d = sae.dictionary.detach(), sae.offset.detach()
        if atoms_fd.shape[1] != site.width:
            raise ConfigError(f"the SAE for site {site.path} has width {atoms_fd.shape[1]}, the site {site.width}")
        return cls(sae, atoms_fd, offset_d)

    @property
    def n_features(self) -> int:
        return self.atoms.shape[0]

    def encode(self, x_bpd: Tensor) -> Tensor:
        with torch.no_grad():
            return self.sae.encode(x_bpd)

    def combine(self, f_bpf: Tensor, which_k: Tensor | None = None) -> Tensor:
        return f_bpf @ (self.atoms if which_k is None else self.atoms[which_k])

    def project(self, g_bpd: Tensor) -> Tensor:
        return g_bpd @ self.atoms.T


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a site as nodes: every coordinate of x is one."""

    n_features: int
    offset: Tensor
    kind: str = "neuron"
    has_error: bool = False

    @classmethod
    def at(cls, site: Site, like: Tensor) -> Neurons:
        """The neurons of `site`; numbers of the type and on the device of `like`."""
        return cls(site.width, torch.zeros(site.width, dtype=like.dtype, device=like.device))

    def encode(self, x_bpd: Tensor) -> Tensor:
        return x_bpd

    def combine(self, f_bpf: Tensor, which_k: Tensor | None = None) -> Tensor:
        if which_k is None:
            return f_bpf
        return f_bpf.new_zeros(*f_bpf.shape[:-1], self.n_features).index_copy_(-1, which_k, f_bpf)

    def project(self, g_bpd: Tensor) -> Tensor:
        return g_bpd

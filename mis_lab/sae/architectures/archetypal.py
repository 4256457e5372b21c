"""Archetypal SAE: a TopK SAE whose atoms are directions near the convex hull of the data.

Atoms are the unit vectors along W·C + Λ: C candidate points (centroids of the centred data), W non-negative with rows
that sum to 1, Λ a relaxation whose rows are no longer than δ times those of W·C. Fel et al. 2025, "Archetypal SAE"
(arXiv 2502.12892, eq. 4; there δ is absolute). docs/sae/archetypal.md.
"""

# N vectors  D site width  F features  C candidates  K features to revive

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.base import sample_moments
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.further_config import ArchetypalConfig
from mis_lab.sae.trainer_config import Normalisation

INITIAL_SHARE = 0.9  # of each atom's first candidate in it; the others share the rest


class ArchetypalSae(TopKSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`; loss: :meth:`SelectedSae.step_losses`.

    Attributes:
        candidates: (C, D) buffer, inner units, relative to the data's mean.
        mixing: (F, C) logits; their softmax over the candidates is W.
        relaxation: (F, D), Λ in units of the length of each row of W·C.
        atom_norm: () buffer, norm of all atoms: 1, until the scale is folded in.
    """

    config_type: ClassVar[type[SaeConfig]] = ArchetypalConfig
    config: ArchetypalConfig
    of_features: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "mixing", "relaxation")
    candidates: Tensor
    atom_norm: Tensor

    def __init__(self, config: ArchetypalConfig, width: int) -> None:
        super().__init__(config, width)
        n_candidates = config.n_candidates or 2 * self.n_features
        if n_candidates < self.n_features:
            raise ConfigError(
                f"sae.n_candidates={n_candidates} is less than the {self.n_features} features at width {width}",
                fix="Use more candidates (0 takes twice as many) or fewer features.",
            )
        del self.W_dec  # composed, not free
        self.register_buffer("candidates", torch.zeros(n_candidates, width))
        self.register_buffer("atom_norm", torch.ones(()))
        self.mixing = nn.Parameter(torch.zeros(self.n_features, n_candidates))
        self.relaxation = nn.Parameter(torch.zeros(self.n_features, width))

    @property
    def archetypes(self) -> Tensor:
        """(F, D): W·C + Λ, points near the convex hull of the data, inner units, relative to the data's mean."""
        in_hull_fd = self.mixing.softmax(1) @ self.candidates
        return in_hull_fd + in_hull_fd.norm(dim=1, keepdim=True) * self.relaxation

    @property
    def atoms(self) -> Tensor:
        """(F, D): directions of the archetypes."""
        return F.normalize(self.archetypes, dim=1) * self.atom_norm

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """As every SAE; candidates are k-means centroids of the sample, and each atom starts at one of its own.

        Raises:
            DataError: when the sample has fewer vectors than there are candidates.
        """
        moments = sample_moments(sample_nd)
        if moments.count < len(self.candidates):
            raise DataError(
                f"{moments.count} vectors cannot give {len(self.candidates)} candidate points of archetypes",
                fix="Lower sae.n_candidates or sae.expansion, or use more images.",
            )
        self.start_units(moments, normalisation)
        self.atom_norm.fill_(1.0)
        centred_nd = self.normalise(sample_nd) - self.b_dec
        self.candidates.copy_(centroids(centred_nd, len(self.candidates), generator))
        first_f = torch.randperm(len(self.candidates), generator=generator)[: self.n_features]
        self._start_at(torch.arange(self.n_features), first_f)
        self.W_enc.copy_(self.atoms)
        self.b_enc.zero_()

    def _start_at(self, features: Tensor, candidates: Tensor) -> None:
        """Make some atoms :data:`INITIAL_SHARE` of a candidate each and, evenly, of all others."""
        share = torch.tensor(INITIAL_SHARE * (len(self.candidates) - 1) / (1 - INITIAL_SHARE))
        self.mixing[features] = 0.0
        self.mixing[features, candidates] = share.log().to(self.mixing)
        self.relaxation[features] = 0.0

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring rows of Λ back to length δ."""
        norm_f1 = self.relaxation.norm(dim=1, keepdim=True)
        self.relaxation.mul_((self.config.delta / norm_f1.clamp_min(self.config.delta)) if self.config.delta else 0.0)

    def project_gradient(self) -> None:
        """Nothing: the length of an archetype is no part of its atom, so no gradient is along it."""

    def normalise_atoms(self) -> None:
        """Nothing: atoms are of unit norm as they are composed."""

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        """Start some features anew; their atoms at the candidates nearest in direction to those asked for."""
        nearest_k = (F.normalize(atoms_kd, dim=1) @ F.normalize(self.candidates, dim=1).T).argmax(1)
        self._start_at(features, nearest_k)
        self.W_enc[features] = encoder_kd
        self.b_enc[features] = bias_k

    @torch.no_grad()
    def fold_scale(self) -> None:
        self.W_enc.mul_(self.scale)
        self.b_dec.div_(self.scale)
        self.candidates.div_(self.scale)
        self.atom_norm.div_(self.scale)
        self.variance.div_(self.scale.square())
        self.scale.fill_(1.0)


def centroids(x_nd: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, D) k-means centroids (mini-batches, Sculley 2010), on the CPU."""
    seed = int(torch.randint(2**31, (), generator=generator))
    found = MiniBatchKMeans(n, random_state=seed, n_init=1).fit(x_nd.detach().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_)

"""An SAE's features as units to score."""

# B images  P positions  D site width  U units (features)

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.sae.base import Autoencoder


class Features:
    """Unit source whose units' activation maps are their codes at every position.

    Args:
        kind: of the units; another word for a baseline whose codes are no features.
    """

    def __init__(self, sae: Autoencoder, kind: str = "feature") -> None:
        self.sae, self.kind = sae, kind
        self.n_units = sae.n_features

    @torch.no_grad()
    def activate(self, x_bpd: Tensor) -> Tensor:
        """(B, P, U) codes of the vectors of some images, computed on the SAE's device."""
        return self.sae.encode(x_bpd.to(self.sae.scale))

"""The site's own neurons as features, codes of both signs: what an SAE's features are compared with.

All of them reconstruct without error; the k that lie farthest from their means say what sparse codes in the basis of
neurons are worth. docs/sae/neurons.md.
"""

# N vectors  D site width = F features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.sae.base import sample_moments
from mis_lab.sae.baseline import FittedSae, keep_largest
from mis_lab.sae.baseline_config import NeuronsConfig
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.trainer_config import Normalisation


class NeuronsSae(FittedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`. Inner units are raw units.

    With `k` = 0 codes are the vectors, to the bit, and the offset is 0. With k they are what the k neurons farthest
    from their means differ from them by, and the offset is the mean: of all choices of k neurons the least error.
    """

    config_type: ClassVar[type[SaeConfig]] = NeuronsConfig
    config: NeuronsConfig

    def activation(self, pre: Tensor) -> Tensor:
        return keep_largest(pre, self.config.k)

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.none
    ) -> None:
        """Identity matrices, and the sample's mean where k is given; nothing random, whatever the normalisation."""
        self.start_units(sample_moments(sample_nd), Normalisation.none)
        if not self.config.k:
            self.b_dec.zero_()
        self.W_enc.copy_(torch.eye(self.width))
        self.W_dec.copy_(torch.eye(self.width))
        self.b_enc.zero_()

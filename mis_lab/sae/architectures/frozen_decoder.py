"""TopK SAE whose random dictionary stays as it starts; only what reads it learns: does learning atoms matter?

Korznikov et al. 2026, "Sanity checks for sparse autoencoders: do SAEs beat random baselines?" (arXiv 2602.14111).
docs/sae/frozen_decoder.md.
"""

# D site width  F features  K features to revive

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.baseline_config import FrozenDecoderConfig
from mis_lab.sae.config import SaeConfig


class FrozenDecoderSae(TopKSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`; loss: :meth:`SelectedSae.step_losses`.

    `W_dec` is a buffer; encoder and both biases learn.
    """

    config_type: ClassVar[type[SaeConfig]] = FrozenDecoderConfig
    config: FrozenDecoderConfig

    def __init__(self, config: FrozenDecoderConfig, width: int) -> None:
        super().__init__(config, width)
        del self.W_dec
        self.register_buffer("W_dec", torch.zeros(self.n_features, width))

    def project_gradient(self) -> None:
        """Nothing: atoms have no gradient."""

    def normalise_atoms(self) -> None:
        """Nothing: atoms stay, to the bit."""

    @torch.no_grad()
    def revive(self, features: Tensor, encoder_kd: Tensor, atoms_kd: Tensor, bias_k: Tensor) -> None:
        """Start the encoder of some features anew; their atoms stay."""
        self.W_enc[features] = encoder_kd
        self.b_enc[features] = bias_k

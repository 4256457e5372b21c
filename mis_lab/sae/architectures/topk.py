"""TopK SAE with AuxK: z = ReLU(TopK_k(W_enc·(x − b_dec) + b_enc)), x̂ = zᵀ·W_dec + b_dec.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093, §2.3, app. A.2). docs/sae/topk.md.
"""

# N vectors  D site width  F features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.sae.base import StepInfo
from mis_lab.sae.config import SaeConfig, TopKConfig
from mis_lab.sae.selected import SelectedSae
from mis_lab.sae.selection import Select, TopK
from mis_lab.sae.sparse import Coded


class TopKSae(SelectedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`; loss: :meth:`SelectedSae.step_losses`."""

    config_type: ClassVar[type[SaeConfig]] = TopKConfig
    config: TopKConfig

    def __init__(self, config: TopKConfig, width: int) -> None:
        super().__init__(config, width)
        if config.multi_k > self.n_features:
            raise ConfigError(f"sae.multi_k={config.multi_k} is more than the {self.n_features} features")

    def activation(self, pre: Tensor) -> Tensor:
        values, features = pre.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, features, values.relu())

    def select(self, step: StepInfo) -> Select:
        return TopK(self.k_at(step))

    def reconstruction_loss(
        self, source_nd: Tensor, target_nd: Tensor, error_nd: Tensor, coded: Coded, step: StepInfo
    ) -> Tensor:
        """FVU at k, plus `multi_weight` times FVU at `multi_k` (Multi-TopK, Gao et al. 2024, app. A.5)."""
        loss = self.fvu(error_nd)
        if self.config.multi_k:
            more = self._coded(source_nd, TopK(self.config.multi_k), step.precision)
            loss = loss + self.config.multi_weight * self.fvu(target_nd - self.b_dec - more.decoded_bd)
        return loss

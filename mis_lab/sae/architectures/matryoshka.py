"""Matryoshka SAE: a BatchTopK SAE in which nested prefixes of the features reconstruct alone, coarse features first.

Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders" (arXiv 2503.17547).
docs/sae/matryoshka.md.
"""

# N vectors  D site width  F features  G prefixes

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.sae.architectures.batch_topk import BatchTopKSae
from mis_lab.sae.base import StepInfo
from mis_lab.sae.config import MatryoshkaConfig, SaeConfig
from mis_lab.sae.sparse import Coded


class MatryoshkaSae(BatchTopKSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`.

    Features are selected over the whole width, as in BatchTopK; with one prefix the two are the same.

    Attributes:
        prefixes: number of features in each prefix, rising, the last F.
    """

    config_type: ClassVar[type[SaeConfig]] = MatryoshkaConfig
    config: MatryoshkaConfig

    def __init__(self, config: MatryoshkaConfig, width: int) -> None:
        super().__init__(config, width)
        self.prefixes = [round(share * self.n_features) for share in config.prefixes]
        sizes = torch.tensor([0, *self.prefixes]).diff()
        if (sizes < 1).any():
            raise ConfigError(
                f"sae.prefixes={config.prefixes} leave a prefix of {self.n_features} features no feature of its own",
                fix="Use fewer prefixes or more features.",
            )
        if len(sizes) > 1:
            self.group_f = torch.arange(len(sizes)).repeat_interleave(sizes)

    def reconstruction_loss(
        self, source_nd: Tensor, target_nd: Tensor, error_nd: Tensor, coded: Coded, step: StepInfo
    ) -> Tensor:
        """Mean over the prefixes of their FVU: 1/|M| Σ_m ‖x − (z_{:m}·W_dec,{:m} + b_dec)‖² (eq. 3; the mean, and no
        term of b_dec alone, so that one prefix gives BatchTopK's loss). AuxK sees the residual of all features."""
        prefix_gnd = coded.decoded_gbd.cumsum(0)
        return self.fvu(target_nd - self.b_dec - prefix_gnd).mean()

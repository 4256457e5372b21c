"""BatchTopK SAE: the k·B largest rectified pre-activations of a batch of B; at inference all above a threshold.

Bussmann, Leask and Nanda 2024, "BatchTopK sparse autoencoders" (arXiv 2412.06410). docs/sae/batch_topk.md.
"""

# N vectors  D site width  F features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.sae.base import StepInfo
from mis_lab.sae.config import BatchTopKConfig, SaeConfig
from mis_lab.sae.selected import SelectedSae
from mis_lab.sae.selection import BatchTopK, Select
from mis_lab.sae.sparse import Coded


class BatchTopKSae(SelectedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`; loss: :meth:`SelectedSae.step_losses`.

    Attributes:
        threshold: of inference: running mean of every batch's smallest selected pre-activation. In units of codes, so
            it needs no change when the scale is folded into the weights. 0 before the first step.
    """

    config_type: ClassVar[type[SaeConfig]] = BatchTopKConfig
    config: BatchTopKConfig
    threshold: Tensor

    def __init__(self, config: BatchTopKConfig, width: int) -> None:
        super().__init__(config, width)
        self.register_buffer("threshold", torch.zeros(()))
        self._least: Tensor | None = None  # smallest positive code of the step under way

    def activation(self, pre: Tensor) -> Tensor:
        """Codes of inference, each vector for itself: pre·1[pre > threshold]."""
        return pre * (pre > self.threshold)

    def select(self, step: StepInfo) -> Select:
        return BatchTopK(self.k_at(step))

    def after_selection(self, coded: Coded) -> None:
        positive_m = coded.codes_m.detach()[coded.codes_m > 0]
        self._least = positive_m.min() if len(positive_m) else None

    @torch.no_grad()
    def constrain(self) -> None:
        """Move the threshold towards this batch's smallest positive code (Bussmann et al. 2024, §3), once the step has
        proved to be finite."""
        if self._least is not None:
            self.threshold.lerp_(self._least, self.config.threshold_rate if self.threshold > 0 else 1.0)
        self._least = None

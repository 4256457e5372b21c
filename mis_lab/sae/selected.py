"""What SAEs that select their features have in common: the sparse step, FVU and AuxK as loss."""

# N vectors  D site width  F features  G groups of features (nested prefixes)

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.sae.aux_k import add_aux_k
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import BatchTopKConfig, TopKConfig
from mis_lab.sae.selection import Select
from mis_lab.sae.sparse import Coded, dense_autoencode, sparse_autoencode


class SelectedSae(Sae):
    """Base of TopK and its kin.

    Attributes:
        group_f: (F,) group of every feature where some are decoded apart, else None.

    Raises:
        ConfigError: when k is more than the number of features.
    """

    config: TopKConfig | BatchTopKConfig
    group_f: Tensor | None

    def __init__(self, config: TopKConfig | BatchTopKConfig, width: int, n_features: int | None = None) -> None:
        super().__init__(config, width, n_features)
        if config.k > self.n_features:
            raise ConfigError(
                f"sae.k={config.k} is more than the {self.n_features} features at width {width}",
                fix="Lower sae.k or raise sae.expansion.",
            )
        self.register_buffer("group_f", None, persistent=False)
        self.autoencode = sparse_autoencode if config.sparse else dense_autoencode

    @abstractmethod
    def select(self, step: StepInfo) -> Select:
        """How features are chosen at this step."""

    def k_at(self, step: StepInfo) -> int:
        """k of this step."""
        return min(self.n_features, round(self.config.k * step.k_factor))

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """FVU of the batch + aux_weight · AuxK: E‖x − x̂‖² / E‖x − mean‖² + α·E‖ê − e‖² / E‖e − ē‖².

        The first denominator is that of the initial sample. AuxK is 0 while no feature is dead.
        """
        source_nd, target_nd = self.parts(x_nd)
        coded = self._coded(source_nd, self.select(step), step.precision)
        error_nd = target_nd - self.b_dec - coded.decoded_bd
        named = {"fvu": self.fvu(error_nd.detach()), "l0": coded.n_active / len(x_nd)}
        total = self.reconstruction_loss(source_nd, target_nd, error_nd, coded, step)
        total = add_aux_k(total, named, self, source_nd, error_nd, step, self.autoencode)
        self.after_selection(coded)
        return Losses(total, named, coded.fired(self.n_features))

    def parts(self, x_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Of a batch of raw vectors: what is encoded, and what b_dec and the codes are to reconstruct; inner units."""
        x_nd = self.normalise(x_nd)
        return x_nd, x_nd

    def _coded(self, source_nd: Tensor, select: Select, precision: torch.dtype) -> Coded:
        return self.autoencode(
            source_nd, self.centre, self.W_enc, self.b_enc, self.atoms, select, self.group_f, precision
        )

    def fvu(self, error_nd: Tensor) -> Tensor:
        """Mean squared error in units of the variance of the initial sample."""
        return error_nd.square().sum(-1).mean(-1) / self.variance

    def reconstruction_loss(
        self, source_nd: Tensor, target_nd: Tensor, error_nd: Tensor, coded: Coded, step: StepInfo
    ) -> Tensor:
        """The loss without AuxK."""
        return self.fvu(error_nd)

    def after_selection(self, coded: Coded) -> None:
        """Note what :meth:`constrain` will need to know of what was selected (inference thresholds)."""

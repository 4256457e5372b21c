"""TopK SAE with AuxK: z = ReLU(TopK_k(W_enc·(x − b_dec) + b_enc)), x̂ = zᵀ·W_dec + b_dec.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093, §2.3, app. A.2). docs/sae/topk.md.
"""

# N vectors  D site width  F features  K selected dead features

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import SaeConfig, TopKConfig
from mis_lab.sae.sparse import dense_autoencode, sparse_autoencode, top_k


class TopKSae(Sae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`.

    Raises:
        ConfigError: when k is more than the number of features.
    """

    config_type: ClassVar[type[SaeConfig]] = TopKConfig
    config: TopKConfig

    def __init__(self, config: TopKConfig, width: int) -> None:
        super().__init__(config, width)
        if config.k > self.n_features:
            raise ConfigError(
                f"sae.k={config.k} is more than the {self.n_features} features at width {width}",
                fix="Lower sae.k or raise sae.expansion.",
            )
        self.autoencode = sparse_autoencode if config.sparse else dense_autoencode

    def activation(self, pre: Tensor) -> Tensor:
        values, features = pre.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, features, values.relu())

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        """FVU of the batch + aux_weight · AuxK: E‖x − x̂‖² / E‖x − mean‖² + α·E‖ê − e‖² / E‖e − ē‖².

        The first denominator is that of the initial sample. AuxK is 0 while no feature is dead.
        """
        x_nd = self.normalise(x_nd)
        coded = self.autoencode(x_nd, self.b_dec, self.W_enc, self.b_enc, self.W_dec, partial(top_k, k=self.config.k))
        error_nd = x_nd - self.b_dec - coded.decoded_bd
        fvu = error_nd.square().sum(1).mean() / self.variance
        named = {"fvu": fvu.detach(), "l0": (coded.codes_m > 0).sum() / len(x_nd)}
        total = fvu
        if self.config.aux_k and self.config.aux_weight:
            aux = self._aux_k(x_nd, error_nd.detach(), step.dead_f)
            named["aux"] = aux.detach()
            total = fvu + self.config.aux_weight * aux
        return Losses(total, named, coded.fired(self.n_features))

    def _aux_k(self, x_nd: Tensor, error_nd: Tensor, dead_f: Tensor) -> Tensor:
        """How badly the dead features reconstruct the error e: ê = z_aux·W_dec (no bias), z_aux the aux_k largest
        pre-activations among them; in units of the error's own variance. Only their rows are computed."""
        dead_k = dead_f.nonzero().squeeze(1)
        if len(dead_k) == 0:
            return error_nd.new_zeros(())
        W_enc, b_enc, W_dec = (weights.index_select(0, dead_k) for weights in (self.W_enc, self.b_enc, self.W_dec))
        n_selected = min(self.config.aux_k, len(dead_k))
        guess = self.autoencode(x_nd, self.b_dec, W_enc, b_enc, W_dec, partial(top_k, k=n_selected))
        missed = (error_nd - guess.decoded_bd).square().sum()
        spread = (error_nd - error_nd.mean(0)).square().sum()
        # A perfect reconstruction leaves nothing to learn (0/0 in the formula).
        return torch.where(spread > 0, missed / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)

"""A random dictionary that nothing is learnt for: W_enc = W_decᵀ, the k largest products of every vector.

docs/sae/random.md.
"""

# N vectors  D site width  F features

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.sae.baseline import FittedSae
from mis_lab.sae.baseline_config import RandomConfig
from mis_lab.sae.config import SaeConfig


class RandomSae(FittedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`. What :meth:`initialise` draws is all there is to it."""

    config_type: ClassVar[type[SaeConfig]] = RandomConfig
    config: RandomConfig

    def __init__(self, config: RandomConfig, width: int) -> None:
        super().__init__(config, width)
        if config.k > self.n_features:
            raise ConfigError(
                f"sae.k={config.k} is more than the {self.n_features} features at width {width}",
                fix="Lower sae.k or raise sae.expansion.",
            )

    def activation(self, pre: Tensor) -> Tensor:
        values, features = pre.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, features, values.relu())

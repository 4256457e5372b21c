"""Principal components as features, codes of both signs: the least error that F directions can have (Pearson 1901).

docs/sae/pca.md.
"""

# N vectors  B vectors of a batch  D site width  F components

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.sae.base import Vectors
from mis_lab.sae.baseline import FittedSae, keep_largest
from mis_lab.sae.baseline_config import PcaConfig
from mis_lab.sae.config import SaeConfig


class PcaSae(FittedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`; components by falling variance."""

    config_type: ClassVar[type[SaeConfig]] = PcaConfig
    config: PcaConfig

    def activation(self, pre: Tensor) -> Tensor:
        return keep_largest(pre, self.config.k)

    @torch.no_grad()
    def fit(self, vectors: Vectors, generator: torch.Generator) -> None:
        """Set the components by the exact covariance of one epoch of batches; the scale stays that of the sample.

        Raises:
            DataError: when a vector is not finite.
        """
        mean_d, covariance_dd = covariance(vectors)
        if not covariance_dd.isfinite().all():
            raise DataError("activations to fit contain NaN or infinity", fix="Extract them again.")
        _, vectors_dd = torch.linalg.eigh(covariance_dd)
        components_fd = vectors_dd.T.flip(0)[: self.n_features]
        # Either sign is an eigenvector; the largest entry tells which.
        largest_f1 = components_fd.gather(1, components_fd.abs().argmax(1, keepdim=True))
        self.W_dec.copy_(components_fd * largest_f1.sign())
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        self.b_dec.copy_(mean_d * self.scale.cpu())
        self.variance.fill_(float(covariance_dd.trace()) * float(self.scale) ** 2)


def covariance(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """Mean (D,) and population covariance (D, D) of one epoch of batches, float64, on the CPU.

    Batches are reduced around their own mean and merged (Chan, Golub and LeVeque 1983), so that nothing cancels.
    """
    n = 0
    mean_d, summed_dd = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    first_bd = vectors.batch(0)
    n_steps = max(1, vectors.n_vectors // len(first_bd))
    for step in progress(range(n_steps), "covariance", n_steps, unit="step"):
        x_bd = (vectors.batch(step) if step else first_bd).double().cpu()
        batch_mean_d, n_new = x_bd.mean(0), len(x_bd)
        centred_bd, delta_d = x_bd - batch_mean_d, batch_mean_d - mean_d
        summed_dd = summed_dd + centred_bd.T @ centred_bd + torch.outer(delta_d, delta_d) * (n * n_new / (n + n_new))
        n += n_new
        mean_d = mean_d + delta_d * (n_new / n)
    return mean_d, summed_dd / n

"""How well an SAE reconstructs stored activations, how sparsely, and with how many of its features.

FVU = Σ‖x − x̂‖² / Σ‖x − μ‖² with μ the mean of every dimension over the whole evaluation set: not zero, not one number
for all dimensions, not the mean of a batch, each of which makes a bad SAE look good on data with a mean; and sums over
the whole set, never a mean of ratios. x is what the SAE is to reconstruct, for a transcoder the site that it writes.
"""

# B images of a chunk  P positions  D width of what is reconstructed  F features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mis_lab.core.records import read_record, write_record
from mis_lab.core.statistics import Moments
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.reconstructions import (
    CHUNK_VECTORS,
    Reconstructed,
    Stored,
    chosen_images,
    reconstructed,
    target_moments,
)

__all__ = ["CHUNK_VECTORS", "ReconstructionQuality", "Stored", "evaluate_reconstruction"]
NAME = "reconstruction"  # of its files


@dataclass(frozen=True)
class ReconstructionQuality:
    """Quality over an evaluation set.

    Attributes:
        fvu: share of the variance that is missed; 0 is perfect, 1 what the mean alone reaches.
        fvu_by_group: the same over each group's vectors, with the same μ: a group's squared error and spread are its
            parts of the whole's, so `fvu` is their mean weighted by spread.
        mse: squared error, mean over vectors and dimensions; in squared raw units, as all that follow are in raw ones.
        rmse: root of each dimension's mean squared error, mean over dimensions (Toussaint 2024).
        nrmse: the same, each dimension in units of its range (largest − smallest x over the set); dimensions that do
            not vary are left out (Toussaint 2024).
        n_constant: number of them.
        distance_mean, distance_std: of ‖x − x̂‖ over the vectors (population standard deviation).
        norm_ratio: E‖x̂‖ / E‖x‖.
        l0: mean number of active features a vector.
        l1: mean Σ|code| a vector, in the units of the codes.
        dead_share: share of the features that never fire in the set.
        reconstruction_bias: E‖x̂ − μ‖² / E⟨x − μ, x̂ − μ⟩, 1 when unbiased, below 1 when the reconstruction shrinks
            (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10, about the mean: on data with a large mean the ratio
            about zero is 1 whatever the SAE does).
        reconstruction_bias_zero: E‖x̂‖² / E⟨x, x̂⟩, the equation as printed.
        density_f: (F,) float64, share of the vectors on which each feature fires.
        image_density_f: (F,) float64, share of the images where it fires anywhere.
        mean_activation_f: (F,) float64, mean code over all vectors.
        n_images, n_vectors: size of the set.
    """

    fvu: float
    fvu_by_group: dict[str, float]
    mse: float
    rmse: float
    nrmse: float
    n_constant: int
    distance_mean: float
    distance_std: float
    norm_ratio: float
    l0: float
    l1: float
    dead_share: float
    reconstruction_bias: float
    reconstruction_bias_zero: float
    density_f: Tensor
    image_density_f: Tensor
    mean_activation_f: Tensor
    n_images: int
    n_vectors: int

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.fvu

    def numbers(self) -> dict[str, float]:
        """The numbers about the whole SAE, by name."""
        first = {"fvu": self.fvu, "explained_variance": self.explained_variance}
        return first | {name: value for name, value in vars(self).items() if isinstance(value, float | int)}

    def write(self, folder: Path) -> None:
        """Write into `folder`; :meth:`read` reads it back."""
        write_record(folder, NAME, self)

    @classmethod
    def read(cls, folder: Path) -> ReconstructionQuality:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: when a file is missing, damaged or of another version.
        """
        return read_record(cls, folder, NAME)


def evaluate_reconstruction(
    sae: Autoencoder, stored: Stored, indices: Sequence[int] | None = None, chunk_vectors: int = CHUNK_VECTORS
) -> ReconstructionQuality:
    """Quality over the images at `indices` (all by default).

    Args:
        sae: on any device.
        stored: activations of the SAE's site (of a transcoder: of its two sites side by side).
        indices: images of the evaluation set; order and repeats do not matter.
        chunk_vectors: vectors in memory at a time; results do not depend on it (1e-9 relative).

    Raises:
        DataError: when the set is empty, does not vary, or a reconstruction is not finite.
    """
    chosen = chosen_images(stored, indices)
    moments = target_moments(sae, stored, chosen, chunk_vectors)
    totals = _Totals(moments)
    for part in reconstructed(sae, stored, chosen, chunk_vectors):
        totals.add(part, [stored.groups[image] for image in part.images])
    return totals.quality(len(chosen), stored.n_positions)


class _Totals:
    """Sums over the chunks so far, float64, on the CPU."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.distance = Moments()
        self.n_fired_f, self.n_images_fired_f, self.code_f = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        self.squared_error_d = torch.zeros((), dtype=torch.float64)
        self.error_by_group: dict[str, float] = {}
        self.spread_by_group: dict[str, float] = {}
        self.sums: dict[str, float] = {}

    def add(self, part: Reconstructed, groups: Sequence[str]) -> None:
        x_bpd, codes_bpf, decoded_bpd = part.target_bpd, part.codes_bpf, part.decoded_bpd
        fired_bpf = codes_bpf != 0
        self.n_fired_f = self.n_fired_f + fired_bpf.sum((0, 1)).cpu()
        self.n_images_fired_f = self.n_images_fired_f + fired_bpf.any(1).sum(0).cpu()
        self.code_f = self.code_f + codes_bpf.sum((0, 1)).cpu()

        squared_bpd = (x_bpd - decoded_bpd).square()
        self.squared_error_d = self.squared_error_d + squared_bpd.sum((0, 1)).cpu()
        squared_bp = squared_bpd.sum(2)
        self.distance.update(squared_bp.sqrt().reshape(-1, 1))
        mean_d = self.moments.mean.to(x_bpd)
        centred_bpd, shifted_bpd = x_bpd - mean_d, decoded_bpd - mean_d
        spread_b = centred_bpd.square().sum((1, 2)).tolist()
        for group, error, spread in zip(groups, squared_bp.sum(1).tolist(), spread_b, strict=True):
            self.error_by_group[group] = self.error_by_group.get(group, 0.0) + error
            self.spread_by_group[group] = self.spread_by_group.get(group, 0.0) + spread
        sums = {
            "l1": codes_bpf.abs().sum(),
            "norm": x_bpd.norm(dim=2).sum(),
            "norm_decoded": decoded_bpd.norm(dim=2).sum(),
            "squared": shifted_bpd.square().sum(),
            "product": (centred_bpd * shifted_bpd).sum(),
            "squared_zero": decoded_bpd.square().sum(),
            "product_zero": (x_bpd * decoded_bpd).sum(),
        }
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def quality(self, n_images: int, n_positions: int) -> ReconstructionQuality:
        n_vectors = n_images * n_positions
        range_d = self.moments.maximum - self.moments.minimum
        rmse_d = (self.squared_error_d / n_vectors).sqrt()
        varies_d = range_d > 0
        sums = self.sums
        return ReconstructionQuality(
            fvu=sum(self.error_by_group.values()) / sum(self.spread_by_group.values()),
            fvu_by_group={
                group: _ratio(self.error_by_group[group], spread)
                for group, spread in sorted(self.spread_by_group.items())
            },
            mse=float(self.squared_error_d.mean()) / n_vectors,
            rmse=float(rmse_d.mean()),
            nrmse=float((rmse_d[varies_d] / range_d[varies_d]).mean()),
            n_constant=int((~varies_d).sum()),
            distance_mean=float(self.distance.mean),
            distance_std=float(self.distance.variance.sqrt()),
            norm_ratio=_ratio(sums["norm_decoded"], sums["norm"]),
            l0=float(self.n_fired_f.sum()) / n_vectors,
            l1=sums["l1"] / n_vectors,
            dead_share=float((self.n_fired_f == 0).double().mean()),
            reconstruction_bias=_ratio(sums["squared"], sums["product"]),
            reconstruction_bias_zero=_ratio(sums["squared_zero"], sums["product_zero"]),
            density_f=self.n_fired_f / n_vectors,
            image_density_f=self.n_images_fired_f / n_images,
            mean_activation_f=self.code_f / n_vectors,
            n_images=n_images,
            n_vectors=n_vectors,
        )


def _ratio(above: float, below: float) -> float:
    """NaN where there is nothing to divide by."""
    return above / below if below else float("nan")

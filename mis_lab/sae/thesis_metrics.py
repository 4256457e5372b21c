"""The quality measures of the thesis that this package grew out of (Toussaint 2024), under names that say what they
measure: for comparison with its tables. For anything else take :mod:`mis_lab.sae.evaluate`.

Two of them are not what they were called. Its "variance explained" is :attr:`ThesisQuality.variance_deficit`, 0 for a
perfect reconstruction and 1 for none at all. Its "sparsity" is :attr:`UnitActivity.relative_density`, which rises with
the number of active features.
"""

# B images of a chunk  P positions  D width of what is reconstructed  F features  U units (features or dimensions)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.reconstructions import CHUNK_VECTORS, Stored, chosen_images, reconstructed

N_BINS = 40  # of the thesis' histogram


@dataclass(frozen=True)
class UnitActivity:
    """How many of some units are active, which means: not exactly zero.

    Attributes:
        width: dimensions of the original activations, n_units / K where there are K times as many features.
        density_u: (U,) float64, share of the vectors on which each unit is active.
        image_density_u: (U,) float64, share of the images in which it is active at any position (MET-10: the thesis'
            channel activation frequency).
    """

    width: int
    density_u: Tensor
    image_density_u: Tensor

    @property
    def n_units(self) -> int:
        return len(self.density_u)

    @property
    def n_active(self) -> float:
        """Mean number of units active on a vector."""
        return float(self.density_u.sum())

    @property
    def n_active_image(self) -> float:
        """Mean number of units active anywhere in an image."""
        return float(self.image_density_u.sum())

    @property
    def dead_share(self) -> float:
        """Share of the units that are never active in the set."""
        return float((self.density_u == 0).double().mean())

    @property
    def relative_density(self) -> float:
        """Active units of an image as a multiple of the original width, from 0 to K: called sparsity in the thesis,
        channel-wise. On maps nearly every unit is active somewhere, so that it says little of how sparse codes are."""
        return self.n_active_image / self.width

    @property
    def relative_density_by_position(self) -> float:
        """The same of a vector: L0 / width (the thesis' circuit code)."""
        return self.n_active / self.width

    @property
    def inactive_share_of_living(self) -> float:
        """1 − active / (total − dead), of an image: an older "sparsity" of the thesis (sparsity_0). NaN when all units
        are dead."""
        n_living = int((self.density_u > 0).sum())
        return 1 - self.n_active_image / n_living if n_living else float("nan")

    @property
    def unused_share_of_width(self) -> float:
        """1 − active / (total / K), of an image: another (sparsity_1); negative when more features are active than the
        original has dimensions."""
        return 1 - self.relative_density


@dataclass(frozen=True)
class ThesisQuality:
    """The thesis' numbers about one SAE.

    Attributes:
        variance_deficit: 1 − mean Var(x̂) / mean Var(x), where Var is over the positions of one channel of one image
            and the mean over channels and images; at sites with one position Var is over the dimensions of a vector.
            How much flatter the reconstruction is, not how much it misses: 0 for any x̂ = ±x + constant, 1 for a flat
            x̂, −3 for x̂ = 2x. NaN when x is flat everywhere.
        codes, original, reconstruction: activity of the features, and of the dimensions before and after.
        n_images, n_vectors: size of the set.
    """

    variance_deficit: float
    codes: UnitActivity
    original: UnitActivity
    reconstruction: UnitActivity
    n_images: int
    n_vectors: int

    def numbers(self) -> dict[str, float]:
        """All numbers by name; those of the activity as ``codes/dead_share``."""
        told = {"variance_deficit": self.variance_deficit}
        names = (
            "relative_density",
            "relative_density_by_position",
            "dead_share",
            "inactive_share_of_living",
            "unused_share_of_width",
        )
        for part in ("codes", "original", "reconstruction"):
            told |= {f"{part}/{name}": getattr(getattr(self, part), name) for name in names}
        return told


class DensityHistogram(NamedTuple):
    """Units by the share of images or vectors on which they are active.

    Attributes:
        counts: (bins,) int64, living units; a bin holds its lower edge, the last one both.
        edges: (bins + 1,) float64, from 0 to 1.
        n_dead: units with density 0, which are in no bin.
    """

    counts: Tensor
    edges: Tensor
    n_dead: int


def density_histogram(density_u: Tensor, n_bins: int = N_BINS) -> DensityHistogram:
    """Histogram of the densities (U,) of some units (MET-10, MET-13).

    Raises:
        DataError: when a density is not in [0, 1].
    """
    density_u = density_u.double().cpu()
    if not ((density_u >= 0) & (density_u <= 1)).all():
        raise DataError("densities to count must lie between 0 and 1")
    living = density_u[density_u > 0]
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)
    bins = (torch.bucketize(living, edges, right=True) - 1).clamp_max(n_bins - 1)
    return DensityHistogram(torch.bincount(bins, minlength=n_bins), edges, len(density_u) - len(living))


def evaluate_as_thesis(
    sae: Autoencoder, stored: Stored, indices: Sequence[int] | None = None, chunk_vectors: int = CHUNK_VECTORS
) -> ThesisQuality:
    """The thesis' numbers over the images at `indices` (all by default), as means over images, not over batches.

    Arguments and errors are those of :func:`mis_lab.sae.evaluate.evaluate_reconstruction`; activations that do not
    vary are let through.
    """
    chosen = chosen_images(stored, indices)
    codes, original, reconstruction = _Counts(), _Counts(), _Counts()
    varies = varies_decoded = 0.0
    width = 0
    for _, x_bpd, codes_bpf, decoded_bpd in reconstructed(sae, stored, chosen, chunk_vectors):
        width = x_bpd.shape[2]
        axis = 2 if stored.n_positions == 1 else 1
        varies += float(x_bpd.var(axis, correction=0).sum())
        varies_decoded += float(decoded_bpd.var(axis, correction=0).sum())
        for counts, a_bpu in ((codes, codes_bpf), (original, x_bpd), (reconstruction, decoded_bpd)):
            counts.add(a_bpu)
    n_images, n_vectors = len(chosen), len(chosen) * stored.n_positions
    return ThesisQuality(
        variance_deficit=1 - varies_decoded / varies if varies else float("nan"),
        codes=codes.activity(width, n_images, n_vectors),
        original=original.activity(width, n_images, n_vectors),
        reconstruction=reconstruction.activity(width, n_images, n_vectors),
        n_images=n_images,
        n_vectors=n_vectors,
    )


class _Counts:
    """On how many vectors and images units are active."""

    def __init__(self) -> None:
        self.n_vectors_u = self.n_images_u = torch.zeros((), dtype=torch.float64)

    def add(self, a_bpu: Tensor) -> None:
        active_bpu = a_bpu != 0
        self.n_vectors_u = self.n_vectors_u + active_bpu.sum((0, 1)).cpu()
        self.n_images_u = self.n_images_u + active_bpu.any(1).sum(0).cpu()

    def activity(self, width: int, n_images: int, n_vectors: int) -> UnitActivity:
        return UnitActivity(width, self.n_vectors_u / n_vectors, self.n_images_u / n_images)

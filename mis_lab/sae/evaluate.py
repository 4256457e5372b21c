"""How well an SAE reconstructs stored activations, how sparsely, and with how many of its features.

FVU = Σ‖x − x̂‖² / Σ‖x − μ‖² with μ the mean of every dimension over the whole evaluation set: not zero, not one number
for all dimensions, not the mean of a batch, each of which makes a bad SAE look good on data with a mean. The SAE is
evaluated in float64, so that no number depends on how the images were cut into chunks.
"""

# B images of a chunk  P positions  D site width  F features

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.progress import progress
from mis_lab.core.statistics import Moments
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.sae.base import Sae

CHUNK_VECTORS = 2048
NUMBERS, PER_FEATURE = "reconstruction.json", "reconstruction.safetensors"


class Stored(Protocol):
    """What is read of :class:`mis_lab.activations.shards.StoredActivations`."""

    n_images: int
    n_positions: int

    @property
    def groups(self) -> Sequence[str]:
        """Group of every image."""

    @property
    def moments(self) -> Moments:
        """Statistics over all vectors."""

    def take(self, indices: Sequence[int]) -> Tensor:
        """(B, P, D) vectors of some images."""


@dataclass(frozen=True)
class ReconstructionQuality:
    """Quality over an evaluation set.

    Attributes:
        fvu: share of the variance that is missed; 0 is perfect, 1 what the mean alone reaches.
        fvu_by_group: the same over each group's vectors, with the same μ: a group's squared error and spread are its
            parts of the whole's, so `fvu` is their mean weighted by spread.
        l0: mean number of active features a vector.
        dead_share: share of the features that never fire in the set.
        reconstruction_bias: E‖x̂ − μ‖² / E⟨x − μ, x̂ − μ⟩, 1 when unbiased, below 1 when the reconstruction shrinks
            (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10, about the mean: on data with a large mean the ratio
            about zero is 1 whatever the SAE does).
        density_f: (F,) float64, share of the vectors on which each feature fires.
        image_density_f: (F,) float64, share of the images where it fires anywhere.
        mean_activation_f: (F,) float64, mean code over all vectors.
        n_images, n_vectors: size of the set.
    """

    fvu: float
    fvu_by_group: dict[str, float]
    l0: float
    dead_share: float
    reconstruction_bias: float
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
        names = ("fvu", "explained_variance", "l0", "dead_share", "reconstruction_bias", "n_images", "n_vectors")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: Path) -> None:
        """Write into `folder`; :meth:`read` reads it back."""
        per_feature = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        write_tensors(folder / PER_FEATURE, per_feature)
        write_json(folder / NUMBERS, {name: value for name, value in vars(self).items() if name not in per_feature})

    @classmethod
    def read(cls, folder: Path) -> ReconstructionQuality:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: when a file is missing or damaged.
        """
        per_feature: dict[str, Any] = read_tensors(folder / PER_FEATURE)
        return cls(**read_json(folder / NUMBERS), **per_feature)


@torch.no_grad()
def evaluate_reconstruction(
    sae: Sae, stored: Stored, indices: Sequence[int] | None = None, chunk_vectors: int = CHUNK_VECTORS
) -> ReconstructionQuality:
    """Quality over the images at `indices` (all by default).

    Args:
        sae: on any device.
        stored: activations of the SAE's site.
        indices: images of the evaluation set; order and repeats do not matter.
        chunk_vectors: vectors in memory at a time; results do not depend on it (1e-9 relative).

    Raises:
        DataError: when the set is empty, does not vary, or a reconstruction is not finite.
    """
    chosen = sorted(set(range(stored.n_images) if indices is None else indices))
    if not chosen:
        raise DataError("no images to evaluate an SAE on", fix="Check dataset.split.hold_out and limit.")
    n_images_chunk = max(1, chunk_vectors // stored.n_positions)
    moments = stored.moments
    if len(chosen) < stored.n_images:
        moments = Moments()
        for _, x_bpd in _chunks(stored, chosen, n_images_chunk):
            moments.update(x_bpd.flatten(0, 1))
    if torch.equal(moments.minimum, moments.maximum):
        raise DataError(f"the activations of all {len(chosen)} evaluation images are equal: FVU has no meaning")

    # mps has no float64.
    device = torch.device("cpu") if sae.scale.device.type == "mps" else sae.scale.device
    exact = copy.deepcopy(sae).to(device, torch.float64).eval()
    totals = _Totals(exact.n_features, device)
    n_chunks = -(-len(chosen) // n_images_chunk)
    for images, x_bpd in progress(_chunks(stored, chosen, n_images_chunk), "evaluating the SAE", n_chunks):
        groups = [stored.groups[image] for image in images]
        totals.add(exact, x_bpd.to(device, torch.float64), moments.mean.to(device), groups)
    return totals.quality(len(chosen), stored.n_positions)


def _chunks(stored: Stored, chosen: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (image numbers, their vectors (B, P, D)), up to `size` images each."""
    for start in range(0, len(chosen), size):
        images = chosen[start : start + size]
        yield images, stored.take(images)


class _Totals:
    """Sums over the chunks so far, float64."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        zeros = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.n_fired_f, self.n_images_fired_f, self.code_f = zeros, zeros.clone(), zeros.clone()
        self.error_by_group: dict[str, float] = {}
        self.spread_by_group: dict[str, float] = {}
        self.squared = self.product = 0.0

    def add(self, sae: Sae, x_bpd: Tensor, mean_d: Tensor, groups: Sequence[str]) -> None:
        codes_bpf = sae.encode(x_bpd)
        decoded_bpd = sae.decode(codes_bpf)
        fired_bpf = codes_bpf != 0
        self.n_fired_f += fired_bpf.sum((0, 1))
        self.n_images_fired_f += fired_bpf.any(1).sum(0)
        self.code_f += codes_bpf.sum((0, 1))
        error_b = (x_bpd - decoded_bpd).square().sum((1, 2)).tolist()
        x_bpd, decoded_bpd = x_bpd - mean_d, decoded_bpd - mean_d
        spread_b = x_bpd.square().sum((1, 2)).tolist()
        for group, error, spread in zip(groups, error_b, spread_b, strict=True):
            self.error_by_group[group] = self.error_by_group.get(group, 0.0) + error
            self.spread_by_group[group] = self.spread_by_group.get(group, 0.0) + spread
        self.squared += float(decoded_bpd.square().sum())
        self.product += float((x_bpd * decoded_bpd).sum())

    def quality(self, n_images: int, n_positions: int) -> ReconstructionQuality:
        error, spread = sum(self.error_by_group.values()), sum(self.spread_by_group.values())
        if not error < float("inf"):
            raise DataError(
                "the SAE's reconstruction is not finite", fix="Check the activations and the SAE's weights."
            )
        n_vectors = n_images * n_positions
        return ReconstructionQuality(
            fvu=error / spread,
            fvu_by_group={
                group: self.error_by_group[group] / spread if spread > 0 else float("nan")
                for group, spread in sorted(self.spread_by_group.items())
            },
            l0=float(self.n_fired_f.sum()) / n_vectors,
            dead_share=float((self.n_fired_f == 0).double().mean()),
            reconstruction_bias=self.squared / self.product if self.product else float("nan"),
            density_f=(self.n_fired_f / n_vectors).cpu(),
            image_density_f=(self.n_images_fired_f / n_images).cpu(),
            mean_activation_f=(self.code_f / n_vectors).cpu(),
            n_images=n_images,
            n_vectors=n_vectors,
        )

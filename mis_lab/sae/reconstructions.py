"""One pass of an autoencoder over stored images in float64: what every measure of its quality is computed from.

In float64, so that no number depends on how the images were cut into chunks.
"""

# B images of a chunk  P positions  D width of what is reconstructed  F features  N vectors

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.core.statistics import Moments
from mis_lab.sae.base import Autoencoder

CHUNK_VECTORS = 2048


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


class VectorsInMemory:
    """Vectors (N, D) as stored activations: one image of one position each."""

    def __init__(self, x_nd: Tensor) -> None:
        self.x_nd = x_nd
        self.n_images, self.n_positions = len(x_nd), 1
        self.groups = [""] * len(x_nd)
        self.moments = Moments()
        self.moments.update(x_nd)

    def take(self, indices: Sequence[int]) -> Tensor:
        return self.x_nd[list(indices), None]


class Reconstructed(NamedTuple):
    """Some images.

    Attributes:
        images: their numbers.
        target_bpd: what is to be reconstructed, float64.
        codes_bpf, decoded_bpd: codes and reconstruction.
    """

    images: Sequence[int]
    target_bpd: Tensor
    codes_bpf: Tensor
    decoded_bpd: Tensor


def chosen_images(stored: Stored, indices: Sequence[int] | None) -> list[int]:
    """The images at `indices` (all by default), each once, in stored order.

    Raises:
        DataError: when there are none.
    """
    chosen = sorted(set(range(stored.n_images) if indices is None else indices))
    if not chosen:
        raise DataError("no images to evaluate an SAE on", fix="Check dataset.split.hold_out and limit.")
    return chosen


def chunks(
    stored: Stored, chosen: Sequence[int], chunk_vectors: int = CHUNK_VECTORS
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (image numbers, their vectors (B, P, D)), at most `chunk_vectors` vectors (but an image) at a time."""
    size = max(1, chunk_vectors // stored.n_positions)
    for start in range(0, len(chosen), size):
        images = chosen[start : start + size]
        yield images, stored.take(images)


def target_moments(
    sae: Autoencoder, stored: Stored, chosen: Sequence[int], chunk_vectors: int = CHUNK_VECTORS
) -> Moments:
    """Statistics of what is to be reconstructed of the images `chosen`.

    Raises:
        DataError: when it does not vary.
    """
    if len(chosen) == stored.n_images:
        of = stored.moments
        parts = (of.mean, of.squared_deviation, of.minimum, of.maximum)
        moments = Moments(of.count, *(sae.target(part[None, None])[0, 0] for part in parts))
    else:
        moments = Moments()
        for _, x_bpd in chunks(stored, chosen, chunk_vectors):
            moments.update(sae.target(x_bpd).flatten(0, 1))
    if torch.equal(moments.minimum, moments.maximum):
        raise DataError(f"the activations of all {len(chosen)} evaluation images are equal: FVU has no meaning")
    return moments


def in_float64(sae: Autoencoder) -> Autoencoder:
    """A copy that computes in float64, on the same device where that can."""
    device = torch.device("cpu") if sae.scale.device.type == "mps" else sae.scale.device
    return copy.deepcopy(sae).to(device, torch.float64).eval()


@torch.no_grad()
def reconstructed(
    sae: Autoencoder,
    stored: Stored,
    chosen: Sequence[int],
    chunk_vectors: int = CHUNK_VECTORS,
    what: str = "evaluating the SAE",
) -> Iterator[Reconstructed]:
    """Yield the images `chosen` with their codes and reconstructions, on the SAE's device.

    Args:
        what: name of the progress bar.

    Raises:
        DataError: when a reconstruction is not finite.
    """
    exact = in_float64(sae)
    n_chunks = -(-len(chosen) // max(1, chunk_vectors // stored.n_positions))
    for images, x_bpd in progress(chunks(stored, chosen, chunk_vectors), what, n_chunks):
        x_bpd = x_bpd.to(exact.scale.device, torch.float64)
        decoded_bpd, codes_bpf = exact(exact.source(x_bpd))
        if not decoded_bpd.isfinite().all():
            raise DataError(
                "the SAE's reconstruction is not finite", fix="Check the activations and the SAE's weights."
            )
        yield Reconstructed(images, exact.target(x_bpd), codes_bpf, decoded_bpd)

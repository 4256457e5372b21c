"""Units: what is scored at a site. A source of units turns the site's vectors into their activations.

Neurons and random directions are here; SAE features are another source of the same shape (mis_lab.sae.units).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.shards import StoredActivations
from mis_lab.core.seeding import generator

# B images  P positions  D width  U units  N images of a data set

CHUNK_NUMBERS = 2**23  # activations of units held at once
LARGEST_CHUNK = 512  # images


class UnitSource(Protocol):
    """Turns vectors into activations of units.

    Attributes:
        kind: one word: "neuron", "feature", "random_direction".
        n_units: U.
    """

    kind: str
    n_units: int

    def activate(self, x_bpd: Tensor) -> Tensor:
        """Activations (B, P, U) of vectors (B, P, D)."""
        ...


class Neurons:
    """The channels of a site themselves."""

    kind = "neuron"

    def __init__(self, width: int) -> None:
        self.n_units = width

    def activate(self, x_bpd: Tensor) -> Tensor:
        return x_bpd


class RandomDirections:
    """Projections on random directions, uniform on the sphere: a control for "any direction would do".

    Attributes:
        directions_ud: (U, D) of unit length, float64.
    """

    kind = "random_direction"

    def __init__(self, width: int, n: int, seed: int) -> None:
        self.n_units = n
        random = generator(seed, "random directions")
        drawn_ud = torch.randn((n, width), generator=random, dtype=torch.float64)
        self.directions_ud = drawn_ud / drawn_ud.norm(dim=1, keepdim=True)

    def activate(self, x_bpd: Tensor) -> Tensor:
        # In float64, then rounded: float32 products differ in the last bit between chunk sizes and devices.
        x_bpd = _where_float64_is(x_bpd)
        return (x_bpd.double() @ self.directions_ud.to(x_bpd.device).T).float()


def aggregate(a_bpu: Tensor, image_activation: ImageActivation) -> Tensor:
    """Image activations (B, U), float32: mean or maximum over the positions.

    The mean is taken in float64 and rounded once, so that it does not depend on chunk size or device.
    """
    if image_activation is ImageActivation.max:
        return a_bpu.amax(1).float()
    if a_bpu.shape[1] == 1:
        return a_bpu[:, 0].float()
    return _where_float64_is(a_bpu).mean(1, dtype=torch.float64).float()


def _where_float64_is(x: Tensor) -> Tensor:
    """`x`, on the CPU if its own device computes in float32 only (Apple's)."""
    return x.cpu() if x.device.type == "mps" else x


def image_activations(
    stored: StoredActivations,
    source: UnitSource,
    image_activation: ImageActivation = ImageActivation.mean,
    device: torch.device | str = "cpu",
    images: range | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Yield (indices, a_bu) over all stored images, or those of `images`, in order.

    Chunks follow from the shapes alone, so that one store gives one result: a source that multiplies matrices in
    float32 may give another last bit in another chunk. So `images` must begin and end where chunks do, as those of
    :func:`image_slices`.
    """
    batch = _chunk_size(stored, source)
    if images is None:
        chunks = stored.images(batch)
    elif images.start % batch or (images.stop % batch and images.stop != stored.n_images) or images.step != 1:
        raise ValueError(f"{images} does not begin and end where chunks of {batch} images do")
    else:
        chunks = stored.images(batch, images)
    for indices, x_bpd in chunks:
        with torch.no_grad():
            a_bu = aggregate(source.activate(x_bpd.to(device)), image_activation)
        yield indices, a_bu


def image_slices(stored: StoredActivations, source: UnitSource, n_slices: int) -> list[range]:
    """All stored images in at most `n_slices` runs of about one length, to be ranked in as many jobs."""
    batch = _chunk_size(stored, source)
    n_chunks = -(-stored.n_images // batch)
    n_slices = min(n_slices, n_chunks)
    cuts = [n_chunks * number // n_slices * batch for number in range(n_slices)]
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], stored.n_images], strict=True)]


def _chunk_size(stored: StoredActivations, source: UnitSource) -> int:
    """Images of a chunk."""
    return min(max(1, CHUNK_NUMBERS // (stored.n_positions * max(source.n_units, stored.width))), LARGEST_CHUNK)


def permute_images(a_nu: Tensor, seed: int, units: Sequence[int | str]) -> Tensor:
    """Activations (N, U) with every unit's values given to other images: a control without relation to them.

    Each unit keeps its values; its permutation depends on `seed` and its entry in `units` (its number or
    name) alone, so that taking units in other chunks changes nothing. Rows must be in an order that belongs
    to the images (sorted ids), not to the store.
    """
    if a_nu.shape[1] != len(units):
        raise ValueError(f"{len(units)} names for {a_nu.shape[1]} units")
    places_nu = torch.stack(
        [torch.randperm(len(a_nu), generator=generator(seed, "permuted images", unit)) for unit in units], 1
    )
    return a_nu.gather(0, places_nu.to(a_nu.device))

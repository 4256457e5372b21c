"""MonoSemanticity score: how alike the images are that a unit responds to, each pair weighted by both responses.

Pach et al. (2025), "Sparse autoencoders learn monosemantic features in vision-language models", arXiv:2504.02821:
activations scaled to ã in [0, 1], MS = Σ_{i<j} ã_i ã_j s(i, j) / Σ_{i<j} ã_i ã_j. Here from sums (O(n d) a unit) and
two passes over the activations. Scaling leaves a dense unit with weights near one half everywhere, so its score is the
data set's mean similarity whatever it encodes: told beside the score, and avoided by the variants.
"""

# U units  B images of a chunk  n images  m width of the embedding's table  S pool size

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import image_activations
from mis_lab.core.errors import DataError
from mis_lab.mis.similarity import mean_similarity, squared_lengths, table_of, within
from mis_lab.mis.units import UnitStatus, silent_status

if TYPE_CHECKING:
    from mis_lab.activations.pools import Pools
    from mis_lab.activations.shards import StoredActivations
    from mis_lab.activations.units import UnitSource
    from mis_lab.metric.base import Embedding

# Starts a pass: (indices of B images, their activations (B, U)), every image once.
Chunks = Callable[[], Iterable[tuple[Sequence[int], Tensor]]]
_MOST_NUMBERS = 1 << 22


class Weighting(Enum):
    """How an activation becomes a weight in [0, 1].

    scaled: (a − min) / (max − min) over all images (the paper's).
    active: max(a, 0) / max: images that do not excite the unit count for nothing. The same as `scaled` where the least
        activation is zero; a signed unit gets the score of its rectified copy.
    """

    scaled = 0
    active = 1


class Monosemanticity(NamedTuple):
    """Scores of U units; NaN where a unit has none, and its status says why.

    Attributes:
        score: (U,) float64, on the scale of the similarity (a cosine, or minus a squared distance).
        base_rate: mean similarity of two images of the data set.
        above_base_rate: (U,) float64, score − base_rate.
        status: (U,) int64, numbers of :class:`~mis_lab.mis.units.UnitStatus`; ``too_rare`` with fewer than two images.
        n_images: (U,) int64, images with a weight.
    """

    score: Tensor
    base_rate: float
    above_base_rate: Tensor
    status: Tensor
    n_images: Tensor


def stored_chunks(
    stored: StoredActivations,
    source: UnitSource,
    image_activation: ImageActivation = ImageActivation.mean,
    device: torch.device | str = "cpu",
) -> Chunks:
    """Passes over the image activations of a store."""
    return partial(image_activations, stored, source, image_activation, device)


def monosemanticity(chunks: Chunks, embedding: Embedding, weighting: Weighting = Weighting.scaled) -> Monosemanticity:
    """MonoSemanticity of all units, in two passes.

    Memory: U × d float64 sums with an embedding of rows, U × n activations with a Gram matrix (n is small then). Equal
    to the definition to 1e-10 unless one image has nearly all of a unit's weight.

    Args:
        chunks: starts a pass; called twice.
        embedding: of the same images; an index is a place in it.

    Raises:
        DataError: when images are missing, or an activation is NaN or infinite.
        ValueError: when an image comes twice.
    """
    table, n_images = table_of(embedding), len(table_of(embedding))
    extent = _extent(_once(chunks, n_images))
    n_units = len(extent.minimum)
    status = silent_status(extent.n_active, extent.minimum, extent.maximum)
    by_image: list[tuple[list[int], Tensor]] = []
    sums_um = torch.zeros(n_units, 0 if embedding.rows is None else table.shape[1], dtype=torch.float64)
    totals = [torch.zeros(n_units, dtype=torch.float64) for _ in range(4)]
    counts_u = torch.zeros(n_units, dtype=torch.int64)
    lengths_n = squared_lengths(embedding).cpu()
    for indices, a_bu in _once(chunks, n_images):
        weights_bu = _weights(a_bu, extent, weighting)
        counts_u += (weights_bu > 0).sum(0)
        lengths_b1 = lengths_n[indices, None]
        for total, part in zip(
            totals,
            (weights_bu, weights_bu.square(), weights_bu * lengths_b1, weights_bu.square() * lengths_b1),
            strict=True,
        ):
            total += part.sum(0)
        if embedding.rows is None:
            by_image.append((indices, a_bu))
        else:
            sums_um.addmm_(weights_bu.T, table[indices].to("cpu", torch.float64))
    if embedding.rows is None:
        inner_u = _quadratic_forms(table, by_image, extent, weighting)
    else:
        inner_u = sums_um.square().sum(1)
    score = _from_totals(embedding, inner_u, totals).masked_fill(counts_u < 2, torch.nan)
    return _finished(score, mean_similarity(embedding), status, counts_u)


def pool_monosemanticity(pools: Pools, embedding: Embedding, k: int) -> Monosemanticity:
    """MonoSemanticity over the `k` most activating images of each unit, weights scaled over all images.

    Raises:
        ValueError: when the pools hold fewer than `k` images.
    """
    if not 2 <= k <= pools.top.shape[1]:
        raise ValueError(f"top {k} of pools of {pools.top.shape[1]} images")
    low_u1, range_u1 = pools.minimum.double()[:, None], (pools.maximum.double() - pools.minimum.double())[:, None]
    weights_uk = ((pools.top_values[:, :k].double() - low_u1) / range_u1).nan_to_num(0.0)
    status = silent_status(pools.n_active, pools.minimum, pools.maximum)
    score = within(embedding, pools.top[:, :k], weights_uk)
    return _finished(score, mean_similarity(embedding), status, (weights_uk > 0).sum(1))


def _finished(score: Tensor, base_rate: float, status: Tensor, counts_u: Tensor) -> Monosemanticity:
    ok = UnitStatus.ok.value
    status = torch.where((status == ok) & (counts_u < 2), UnitStatus.too_rare.value, status)
    score = score.masked_fill(status != ok, torch.nan)
    return Monosemanticity(score, base_rate, score - base_rate, status, counts_u)


class _Extent(NamedTuple):
    minimum: Tensor
    maximum: Tensor
    n_active: Tensor


def _once(chunks: Chunks, n_images: int) -> Iterable[tuple[list[int], Tensor]]:
    """One pass, activations on the CPU, checked: every image of the embedding, each once."""
    seen = torch.zeros(n_images, dtype=torch.bool)
    for indices, a_bu in chunks():
        places = list(indices)
        if len(places) != len(a_bu):
            raise ValueError(f"{len(a_bu)} rows of activations for {len(places)} images")
        if max(places, default=0) >= n_images:
            raise DataError(
                f"there are activations of image {max(places)}, and the metric embedded {n_images} images",
                fix="Embed the images of the activations, in their order.",
            )
        if seen[places].any() or len(set(places)) < len(places):
            raise ValueError("an image came twice")
        seen[places] = True
        yield places, a_bu.detach().cpu()
    if not seen.all():
        raise DataError(
            f"{int((~seen).sum())} of {n_images} images have no activations (or this pass could not be started again)",
            fix="Give a function that starts a pass over all images of the embedding.",
        )


def _extent(chunks: Iterable[tuple[list[int], Tensor]]) -> _Extent:
    found: _Extent | None = None
    for _, a_bu in chunks:
        here = _Extent(a_bu.amin(0).double(), a_bu.amax(0).double(), (a_bu > 0).sum(0))
        if found is not None:
            minimum, maximum = torch.minimum(found.minimum, here.minimum), torch.maximum(found.maximum, here.maximum)
            here = _Extent(minimum, maximum, found.n_active + here.n_active)
        found = here
    assert found is not None  # an embedding has images, and all were seen
    return found


def _weights(a_bu: Tensor, extent: _Extent, weighting: Weighting) -> Tensor:
    """(B, U) float64 in [0, 1]; 0 for a unit without a range."""
    if weighting is Weighting.active:
        return (a_bu.double().clamp_min(0.0) / extent.maximum.clamp_min(0.0)).nan_to_num(0.0)
    return ((a_bu.double() - extent.minimum) / (extent.maximum - extent.minimum)).nan_to_num(0.0)


def _quadratic_forms(
    gram_nn: Tensor, by_image: Sequence[tuple[list[int], Tensor]], extent: _Extent, weighting: Weighting
) -> Tensor:
    """(U,) wᵀ G w, units in blocks."""
    order = torch.tensor([index for indices, _ in by_image for index in indices]).argsort()
    a_nu = torch.cat([a_bu for _, a_bu in by_image])[order]
    gram = gram_nn.to("cpu", torch.float64)
    step = max(1, _MOST_NUMBERS // len(gram))
    found = []
    for start in range(0, a_nu.shape[1], step):
        units = slice(start, start + step)
        weights_nu = _weights(a_nu[:, units], _Extent(*(part[units] for part in extent)), weighting)
        found.append(((gram @ weights_nu) * weights_nu).sum(0))
    return torch.cat(found)


def _from_totals(embedding: Embedding, inner_u: Tensor, totals: Sequence[Tensor]) -> Tensor:
    """The pair mean of Σw, Σw², Σw‖e‖², Σw²‖e‖² (`pair_mean`, when images are gone by)."""
    weight, weight2, length, length2 = totals
    alike_u = embedding.margin_factor * (inner_u - length2)
    if embedding.similarity == "squared_euclidean":
        alike_u = alike_u - 2 * (weight * length - length2)
    return alike_u / (weight.square() - weight2)

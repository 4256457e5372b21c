"""Of how many classes a unit tells: polysemanticity by labels, or by the network's own predictions without them.

Any source of units will do, neurons and features alike. Counts of (unit, class) are gathered in one pass; everything
else is computed from them.
"""

# B images of a chunk  P positions  N images  U units  C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import CHUNK_NUMBERS, LARGEST_CHUNK, UnitSource, aggregate
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.progress import progress
from mis_lab.sae.reconstructions import Stored, chosen_images


class Per(Enum):
    """What is counted: images by their image activation, or single vectors, each of its image's class."""

    image = 0
    vector = 1


class Share(Enum):
    """What a unit's distribution over classes is made of.

    rate: share of each class's items on which the unit is active, so that large classes weigh no more than small ones.
    count: number of items; then the largest class is the favourite of every unit that fires at random.
    activation: the class's mean of the activations above the threshold, zeros included.
    """

    rate = 0
    count = 1
    activation = 2


@dataclass(frozen=True)
class ClassCounts:
    """What one pass gathers.

    Attributes:
        active_uc: (U, C) float64, items of each class on which each unit's activation is above `threshold`.
        total_uc: (U, C) float64, sum of those activations.
        n_items_c: (C,) float64, items of each class.
        threshold: as given.
    """

    active_uc: Tensor
    total_uc: Tensor
    n_items_c: Tensor
    threshold: float


@dataclass(frozen=True)
class Selectivity:
    """How units divide themselves among the classes that occur.

    A unit that is active on nothing is dead: NaN, and no class (−1).

    Attributes:
        n_classes: C', classes with at least one item.
        n_active_classes_u: (U,) int64, classes with at least one item on which the unit is active.
        entropy_u: (U,) float64, entropy of the unit's distribution over the classes, divided by log C': 0 for one
            class, 1 for all alike.
        gini_u: (U,) float64, Gini coefficient of the same: 0 for all alike, 1 − 1/C' for one class.
        top_class_u: (U,) int64, the class with the largest share (the first of equals).
        top_share_u: (U,) float64, its share.
        histogram: (C' + 1,) int64, units by number of active classes; the first entry counts the dead.
    """

    n_classes: int
    n_active_classes_u: Tensor
    entropy_u: Tensor
    gini_u: Tensor
    top_class_u: Tensor
    top_share_u: Tensor
    histogram: Tensor

    @property
    def n_dead(self) -> int:
        return int(self.histogram[0])

    @property
    def active_classes_mean(self) -> float:
        """Mean number of active classes of the living units; NaN when there is none."""
        return self._living().mean().item()

    @property
    def active_classes_std(self) -> float:
        """Its population standard deviation over the living units."""
        return self._living().std(correction=0).item()

    def _living(self) -> Tensor:
        living = self.n_active_classes_u[self.n_active_classes_u > 0].double()
        return living if len(living) else torch.full((1,), float("nan"), dtype=torch.float64)


def count_classes(
    stored: Stored,
    source: UnitSource,
    classes_n: Tensor,
    n_classes: int,
    *,
    threshold: float = 0.0,
    per: Per = Per.image,
    image_activation: ImageActivation = ImageActivation.mean,
    indices: Sequence[int] | None = None,
    chunk_images: int = 0,
    device: torch.device | str = "cpu",
) -> ClassCounts:
    """Count on how many items of each class each unit is active.

    Args:
        stored: activations of a site.
        source: the units.
        classes_n: (N,) integers, the class of every stored image: labels, or the network's predictions.
        n_classes: C.
        threshold: active means an activation above it; units with both signs count by their positive side.
        per: count images or vectors.
        image_activation: of an image, where images are counted.
        indices: images to look at (all by default).
        chunk_images: at a time; 0 lets the shapes decide. Results do not depend on it, as far as those of the source
            do not.

    Raises:
        ConfigError: when there is not one class per stored image.
        DataError: when there are no images, or one has no class.
    """
    chosen = chosen_images(stored, indices)
    classes_n = classes_n.detach().cpu().long()
    if classes_n.shape != (stored.n_images,):
        raise ConfigError(f"{stored.n_images} stored images need as many classes, got shape {tuple(classes_n.shape)}")
    wanted = classes_n[chosen]
    outside = (wanted < 0) | (wanted >= n_classes)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} images have a class outside 0 to {n_classes - 1} ({int(wanted[outside][0])})",
            fix="Without labels pass the network's own predictions.",
        )
    size = chunk_images or min(max(1, CHUNK_NUMBERS // (stored.n_positions * source.n_units)), LARGEST_CHUNK)
    active_cu = torch.zeros(n_classes, source.n_units, dtype=torch.float64)
    total_cu = torch.zeros_like(active_cu)
    for start in progress(range(0, len(chosen), size), "counting classes"):
        images = chosen[start : start + size]
        with torch.no_grad():
            a_bpu = source.activate(stored.take(images).to(device))
            if per is Per.image:
                a_bpu = aggregate(a_bpu, image_activation)[:, None]
        a_bpu = a_bpu.cpu().double()
        active_bpu = a_bpu > threshold
        active_cu.index_add_(0, classes_n[images], active_bpu.double().sum(1))
        total_cu.index_add_(0, classes_n[images], (a_bpu * active_bpu).sum(1))
    n_items_c = torch.bincount(wanted, minlength=n_classes).double()
    if per is Per.vector:
        n_items_c *= stored.n_positions
    return ClassCounts(active_cu.T.contiguous(), total_cu.T.contiguous(), n_items_c, threshold)


def selectivity(counts: ClassCounts, share: Share = Share.rate) -> Selectivity:
    """How units divide themselves among the classes that occur.

    Raises:
        DataError: when fewer than two classes occur, or activations to share out are negative.
    """
    occurs_c = counts.n_items_c > 0
    n_classes = int(occurs_c.sum())
    if n_classes < 2:
        raise DataError(f"images of {n_classes} class say nothing about selectivity", fix="Use at least two classes.")
    active_uc, n_items_c = counts.active_uc[:, occurs_c], counts.n_items_c[occurs_c]
    if share is Share.count:
        weight_uc = active_uc
    elif share is Share.rate:
        weight_uc = active_uc / n_items_c
    else:
        weight_uc = counts.total_uc[:, occurs_c] / n_items_c
        if (weight_uc < 0).any():
            raise DataError("negative activations cannot be shared out", fix="Use a threshold of at least 0.")
    weight_u1 = weight_uc.sum(1, keepdim=True)
    p_uc = weight_uc / weight_u1  # NaN for the dead
    dead_u = weight_u1[:, 0] == 0
    top_share_u, top_u = p_uc.max(1)
    top_class_u = occurs_c.nonzero()[:, 0][top_u]
    n_active_u = (active_uc > 0).sum(1)
    return Selectivity(
        n_classes=n_classes,
        n_active_classes_u=n_active_u,
        entropy_u=torch.special.entr(p_uc).sum(1) / math.log(n_classes),
        gini_u=_gini(p_uc),
        top_class_u=torch.where(dead_u, -1, top_class_u),
        top_share_u=top_share_u,
        histogram=torch.bincount(n_active_u, minlength=n_classes + 1),
    )


def _gini(p_uc: Tensor) -> Tensor:
    """(U,) mean absolute difference of all pairs over twice the mean, from the sorted values."""
    n = p_uc.shape[1]
    ranks_c = torch.arange(1, n + 1, dtype=p_uc.dtype)
    return ((2 * ranks_c - n - 1) * p_uc.sort(1).values).sum(1) / n

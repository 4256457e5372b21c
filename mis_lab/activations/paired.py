"""Activations of two sites of the same images, side by side: what a transcoder learns from and is judged on."""

# B images  P positions  D source width  O target width  N vectors

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.shards import StoredActivations
from mis_lab.core.errors import DataError
from mis_lab.core.statistics import Moments


class PairedActivations:
    """A view of two stores that reads like one: vectors of D + O numbers, the source's first.

    Args:
        source: of the site that is read.
        target: of the site that is written.

    Attributes:
        width: D + O. dtype: in which both are held without loss.
        site: of the target.
        moments: of both parts, over all vectors.

    Raises:
        DataError: when the two do not hold the same images, or not as many positions.
    """

    def __init__(self, source: StoredActivations, target: StoredActivations) -> None:
        of = f"{source.site.path} and {target.site.path}"
        if source.n_positions != target.n_positions:
            raise DataError(
                f"sites {of} have {source.n_positions} and {target.n_positions} positions an image: no pairs",
                fix="Pair sites whose maps are of equal size.",
            )
        if source.ids != target.ids:
            raise DataError(f"activations of {of} are of different images", fix="Extract both from one data set.")
        self.source, self.target = source, target
        self.site = target.site
        self.ids, self.groups, self.labels = target.ids, target.groups, target.labels
        self.n_images, self.n_positions = target.n_images, target.n_positions
        self.width = source.width + target.width
        self.dtype = torch.promote_types(source.dtype, target.dtype)
        parts = source.moments, target.moments
        self.moments = Moments(
            target.moments.count,
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("mean", "squared_deviation", "minimum", "maximum")
            ),
        )

    def __len__(self) -> int:
        """Number of pairs of vectors, images × positions."""
        return len(self.target)

    def take(self, indices: Sequence[int] | np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """The pairs of vectors (B, P, D + O) of some images, in the order of `indices`."""
        return torch.cat([self.source.take(indices, dtype), self.target.take(indices, dtype)], 2)

    def vectors(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Single pairs (N, D + O), float32; pair `image · P + position` in the order of `numbers`."""
        return torch.cat([self.source.vectors(numbers), self.target.vectors(numbers)], 1)

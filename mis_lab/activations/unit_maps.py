"""Activation maps of single units on chosen images, computed anew from stored activations."""

# n images  h, w of the site's grid  U units of the source

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import CHUNK_NUMBERS, UnitSource, aggregate


class UnitMaps(NamedTuple):
    """A unit on n images: its image activations (n,) and its maps (n, h, w), float32 on the CPU."""

    values: Tensor
    maps: Tensor


class MapReader:
    """Looks units up in stored activations.

    Args:
        stored: activations of the site that the units read.
        source: the units.
        image_activation: how a map becomes a number.
    """

    def __init__(
        self, stored: StoredActivations, source: UnitSource, image_activation: ImageActivation = ImageActivation.mean
    ) -> None:
        self.stored, self.source, self.image_activation = stored, source, image_activation

    @torch.no_grad()
    def of(self, unit: int, images: Sequence[int]) -> UnitMaps:
        """Values and maps of one unit on the images at these indices, in their order."""
        at_once = max(1, CHUNK_NUMBERS // (self.stored.n_positions * max(self.source.n_units, self.stored.width)))
        maps, values = [torch.empty(0, *self.stored.site.grid)], [torch.empty(0)]
        for start in range(0, len(images), at_once):
            some = list(images[start : start + at_once])
            a_np1 = self.source.activate(self.stored.take(some))[..., unit : unit + 1].float()
            values.append(aggregate(a_np1, self.image_activation)[:, 0].cpu())
            maps.append(a_np1.reshape(len(some), *self.stored.site.grid).cpu())
        return UnitMaps(torch.cat(values), torch.cat(maps))

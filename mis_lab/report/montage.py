"""Montage: the images that activate many units most and least, a row a unit.

Silent units (active on no image, or the same on all) have no such images and are left out, as in Toussaint (2024).
"""

# U units  n images a strip

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from mis_lab.activations.pools import Pools
from mis_lab.activations.unit_maps import MapReader
from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.mis.units import UnitStatus, is_sparse, silent_status
from mis_lab.report.canvas import Canvas
from mis_lab.report.data import UnitImage
from mis_lab.report.images import heat_overlay, largest_activation
from mis_lab.report.wording import named, number

TILE, GAP, EDGE, NAMES, APART, HEADER = 72, 4, 32, 190, 28, 92  # pixels


@dataclass(frozen=True)
class MontageRow:
    """A unit with its images.

    Attributes:
        name: "feature 17"; `note`: a second line, empty for none.
        most, least: the most extreme image first.
    """

    name: str
    note: str
    most: Sequence[UnitImage]
    least: Sequence[UnitImage]


def montage_rows(
    pools: Pools,
    dataset: ImageDataset,
    units: Sequence[int],
    names: Sequence[str],
    n_images: int,
    notes: Sequence[str] = (),
    maps: MapReader | None = None,
) -> tuple[dict[int, MontageRow], dict[str, int]]:
    """A row for every unit of the pools that is not silent; and how many are, by status.

    A unit that is never negative gets no image among its most activating ones that does not activate it.

    Args:
        dataset: the images that the pools index.
        units: (U) the units' numbers; `names`: (U) and, where given, `notes`: (U) for people.
        n_images: of a strip; fewer where the pools have fewer.
        maps: where heat-maps come from.

    Returns:
        number of a unit → its row, and name of a status → number of units without one.
    """
    if not len(pools.top) == len(units) == len(names):
        raise ValueError(f"{len(units)} units and {len(names)} names for pools of {len(pools.top)} units")
    status_u = silent_status(pools.n_active, pools.minimum, pools.maximum)
    sparse_u = is_sparse(pools.minimum)
    rows: dict[int, MontageRow] = {}
    left_out: Counter[str] = Counter()
    for place, unit in enumerate(units):
        if (status := UnitStatus(int(status_u[place]))) is not UnitStatus.ok:
            left_out[status.name] += 1
            continue
        top, bottom = pools.top[place], pools.bottom[place]
        if sparse_u[place]:
            top = top.masked_fill(pools.top_values[place] <= 0, -1)
        strips = [
            _images(dataset, unit, images[:n_images], values, maps)
            for images, values in ((top, pools.top_values[place]), (bottom, pools.bottom_values[place]))
        ]
        rows[unit] = MontageRow(names[place], notes[place] if notes else "", *strips)
    return rows, dict(left_out)


def _images(
    dataset: ImageDataset, unit: int, images_n: Tensor, values: Tensor, maps: MapReader | None
) -> list[UnitImage]:
    there = images_n >= 0
    images = images_n[there].tolist()
    heats: Sequence[np.ndarray | None] = [None] * len(images)
    if maps is not None and math.prod(maps.stored.site.grid) > 1:
        heats = list(maps.of(unit, images).maps.numpy())
    return [
        UnitImage(dataset.image(image), value, dataset.groups[image], dataset.ids[image], heat)
        for image, value, heat in zip(images, values[: len(there)][there].tolist(), heats, strict=True)
    ]


def montage(rows: Sequence[MontageRow], title: str, left_out: Mapping[str, int] | None = None) -> Image.Image:
    """The rows one below the other: name, most activating images | least activating images.

    Heat-maps are laid over images that have an activation map, relative to the unit's largest activation shown.

    Args:
        left_out: status → number of units that have no row, said below the title.

    Raises:
        DataError: when there is no row.
    """
    silent = ", ".join(f"{n} {named({}, status)}" for status, n in (left_out or {}).items())
    if not rows:
        raise DataError(f"no unit to show: {silent or 'none given'}", fix="Choose units that some image activates.")
    n = max(len(images) for row in rows for images in (row.most, row.least))
    strip, step = n * (TILE + GAP) - GAP, TILE + 3 * GAP
    middle = EDGE + NAMES + strip + APART // 2
    canvas = Canvas(EDGE + NAMES + 2 * strip + APART + EDGE, HEADER + len(rows) * step + EDGE - GAP)
    room = canvas.image.width - 2 * EDGE
    canvas.text(EDGE, EDGE - 8, title, 22, bold=True, most=room)
    if silent:
        used = canvas.text_width(title, 22, True) + 18
        canvas.text(EDGE + used, EDGE - 1, f"left out: {silent}", 13, "muted", most=max(room - used, 0))
    starts = (EDGE + NAMES, middle + APART // 2)
    for left, words, colour in zip(starts, ("Most activating", "Least activating"), ("feature", "pos"), strict=True):
        canvas.text(left, HEADER - 12, words, 14, colour, True, "ls", most=strip)
    for place, row in enumerate(rows):
        y = HEADER + place * step
        _names(canvas, row, y)
        largest = largest_activation(row.most)
        for left, images in zip(starts, (row.most, row.least), strict=True):
            for at, image in enumerate(images):
                x = left + at * (TILE + GAP)
                canvas.tile(image.image, x, y, TILE)
                if image.heat is not None:
                    canvas.overlay(heat_overlay(image.heat, largest), x, y, TILE)
    canvas.line(middle, HEADER, middle, HEADER + len(rows) * step - 3 * GAP, "faint")
    return canvas.image


def _names(canvas: Canvas, row: MontageRow, y: int) -> None:
    """Left of the strips: the unit's name, its note, and the range of its activations on either strip."""
    room = NAMES - 14
    canvas.text(EDGE, y, row.name, 15, bold=True, most=room)
    canvas.text(EDGE, y + 21, row.note, 12, "ink", most=room)
    for below, images, colour in ((39, row.most, "feature"), (56, row.least, "pos")):
        if images:
            canvas.text(EDGE, y + below, _range(images), 12, colour, most=room)


def _range(images: Sequence[UnitImage]) -> str:
    first, last = number(images[0].activation), number(images[-1].activation)
    return first if first == last else f"{first} to {last}"

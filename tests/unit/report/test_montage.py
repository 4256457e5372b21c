"""A montage has a row a unit, its extreme images in order, and no row for a silent unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.activations.pools import PoolGatherer, Pools
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.activations.unit_maps import MapReader
from mis_lab.activations.units import Neurons
from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.sites import Site
from mis_lab.report.images import heat_overlay
from mis_lab.report.montage import TILE, MontageRow, montage, montage_rows

N_IMAGES, WIDTH = 40, 5
SITE = Site("blocks.1", "bchw", WIDTH, 4, (2, 2))


class Plain(ImageDataset):
    """Image i is grey 40 + i."""

    def __init__(self) -> None:
        super().__init__("plain", "score", [f"{index:02d}" for index in range(N_IMAGES)])

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (8, 8), 40 + index)


@pytest.fixture(scope="module")
def x_bpd() -> torch.Tensor:
    """Neuron 0 has either sign, 1 is dead, 2 is active on three images, 3 is constant, 4 is never positive."""
    random = np.random.default_rng(0)
    x_bpd = random.standard_normal((N_IMAGES, 4, WIDTH)).astype(np.float32)
    x_bpd[..., 1] = 0
    x_bpd[..., 2] = 0
    x_bpd[[7, 3, 30], :, 2] = np.array([[3.0], [1.0], [2.0]], dtype=np.float32)
    x_bpd[..., 3] = 1.5
    x_bpd[..., 4] = -np.abs(x_bpd[..., 4])
    return torch.from_numpy(x_bpd)


@pytest.fixture(scope="module")
def pools(x_bpd) -> Pools:
    gatherer = PoolGatherer(WIDTH, 6, Plain().ids, 0)
    gatherer.update(x_bpd.double().mean(1).float(), range(N_IMAGES))
    return gatherer.result()


@pytest.fixture(scope="module")
def maps(x_bpd, tmp_path_factory) -> MapReader:
    folder = tmp_path_factory.mktemp("stored")
    with ActivationWriter(folder, SITE, Plain().ids, Plain().ids, [-1] * N_IMAGES) as writer:
        writer.append(x_bpd, range(N_IMAGES))
    return MapReader(StoredActivations(folder), Neurons(WIDTH))


NAMES = [f"neuron {unit}" for unit in range(WIDTH)]


def test_rows_have_the_extreme_images_of_units_that_are_not_silent(x_bpd, pools):
    rows, left_out = montage_rows(pools, Plain(), range(WIDTH), NAMES, 4, notes=["soft"] * WIDTH)
    assert list(rows) == [0, 2, 4]
    assert left_out == {"dead": 1, "constant": 1}
    mean = x_bpd.double().mean(1)
    for unit in (0, 4):
        order = mean[:, unit].argsort(descending=True).tolist()
        assert [int(image.image_id) for image in rows[unit].most] == order[:4]
        assert [int(image.image_id) for image in rows[unit].least] == order[::-1][:4]
        assert [image.activation for image in rows[unit].most] == pytest.approx(mean[order[:4], unit].tolist())
        assert rows[unit].most[0].heat is None
    # What never is negative has no image without activation among its most activating ones.
    assert [int(image.image_id) for image in rows[2].most] == [7, 30, 3]
    assert len(rows[2].least) == 4
    assert (rows[2].name, rows[2].note) == ("neuron 2", "soft")


def test_a_row_of_pixels_has_its_images_in_order(pools):
    rows, _ = montage_rows(pools, Plain(), range(WIDTH), NAMES, 4)
    picture = np.asarray(montage(list(rows.values()), "blocks.1", {"dead": 1}))
    for row in rows.values():
        places = []
        for images in (row.most, row.least):
            for image in images:
                ys, xs = (picture == 40 + int(image.image_id)).all(-1).nonzero()
                places.append((xs, ys))
        assert all(len(xs) >= TILE**2 for xs, _ in places)
    (first, *_) = rows.values()
    grey = [40 + int(image.image_id) for image in [*first.most, *first.least]]
    line = picture[92 + TILE // 2]  # through the first row's tiles
    runs = [int(line[x, 0]) for x in range(1, len(line)) if (line[x] == line[x, 0]).all() and line[x, 0] in grey]
    assert list(dict.fromkeys(runs)) == grey


def test_heat_is_laid_over_images_relative_to_the_units_largest_activation(pools, maps, x_bpd):
    rows, _ = montage_rows(pools, Plain(), range(WIDTH), NAMES, 2, maps=maps)
    first = rows[0].most[0]
    index = int(first.image_id)
    np.testing.assert_array_equal(first.heat, x_bpd[index, :, 0].view(2, 2).numpy())
    plain, _ = montage_rows(pools, Plain(), range(WIDTH), NAMES, 2)
    with_heat, without = (np.asarray(montage([one[0]], "t")).astype(int) for one in (rows, plain))
    ys, xs = (without == 40 + index).all(-1).nonzero()
    top, left = ys.min(), xs.min()
    largest = max(float(image.heat.max()) for image in rows[0].most)
    veil = np.asarray(heat_overlay(first.heat, largest).resize((TILE, TILE), Image.Resampling.BICUBIC)).astype(float)
    expected = veil[..., :3] * veil[..., 3:] / 255 + (40 + index) * (1 - veil[..., 3:] / 255)
    found = with_heat[top : top + TILE, left : left + TILE]
    assert np.abs(found - expected).max() < 3
    assert np.abs(found - (40 + index)).mean() > 5


def test_rows_may_be_of_several_sites_and_none_is_an_error(pools):
    rows, _ = montage_rows(pools, Plain(), range(WIDTH), NAMES, 3)
    of_nodes = [MontageRow("feature 3", "blocks.2", rows[0].most, rows[0].least), rows[2]]
    assert montage(of_nodes, "Circuit").height > montage(of_nodes[:1], "Circuit").height
    assert montage(of_nodes, "Circuit").width == montage(of_nodes[:1], "Circuit").width
    with pytest.raises(DataError, match=r"no unit to show: 2 dead, 1 too rare\."):
        montage([], "t", {"dead": 2, "too_rare": 1})
    with pytest.raises(ValueError, match="2 units and 5 names for pools of 5 units"):
        montage_rows(pools, Plain(), [0, 1], NAMES, 3)

from __future__ import annotations

import multiprocessing

import pytest
import torch
from PIL import Image

from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.loading import batches
from mis_lab.dataset.transforms import ImageTransform

TRANSFORM = ImageTransform(TransformConfig(size=2, channels=1, mean=[0.0], std=[1.0]))


class Shades(ImageDataset):
    """Image i is grey of shade i; those in `broken` cannot be read."""

    def __init__(self, n: int, broken: int | None = None) -> None:
        super().__init__("shades", "train", [f"shade/{index}" for index in range(n)])
        self.broken = broken

    def image(self, index: int) -> Image.Image:
        if index == self.broken:
            raise DataError(f"image {self.ids[index]} cannot be read", looked="/data/x.png", fix="Remove it.")
        return Image.new("L", (3, 3), index)


@pytest.mark.usefixtures("untouched_rng")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("indices", [None, [5, 1, 9, 0, 1]])
def test_the_order_is_kept_whatever_the_number_of_workers(workers, indices):
    found = list(batches(Shades(11), TRANSFORM, batch_size=4, workers=workers, indices=indices))
    order = list(range(11)) if indices is None else indices
    assert [len(batch.indices) for batch in found] == [len(order[i : i + 4]) for i in range(0, len(order), 4)]
    assert [index for batch in found for index in batch.indices] == order
    images_bchw = torch.cat([batch.images_bchw for batch in found])
    assert images_bchw.shape == (len(order), 1, 2, 2)
    assert (images_bchw[:, 0, 0, 0] * 255).round().int().tolist() == order


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_stops_with_the_same_line_from_a_worker(workers):
    found = batches(Shades(10, broken=7), TRANSFORM, batch_size=3, workers=workers)
    assert next(found).indices == [0, 1, 2]
    with pytest.raises(DataError) as raised:
        list(found)
    assert str(raised.value) == "image shade/7 cannot be read; looked in /data/x.png. Remove it."
    assert not multiprocessing.active_children()


def test_a_reader_who_leaves_early_leaves_no_worker_behind():
    found = batches(Shades(100), TRANSFORM, batch_size=2, workers=2)
    next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_images_give_no_batches(workers):
    assert list(batches(Shades(3), TRANSFORM, 2, workers=workers, indices=[])) == []

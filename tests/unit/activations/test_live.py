"""Live activations are those that extraction stores, and a loader cannot tell them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.activations.config import ActivationsConfig
from mis_lab.activations.extract import extract
from mis_lab.activations.live import LiveActivations
from mis_lab.activations.loader import VectorLoader
from mis_lab.activations.shards import StoredActivations
from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site, resolve_sites


class Noise(ImageDataset):
    def __init__(self, n: int = 23) -> None:
        ids = [f"noise {index}" for index in range(n)]
        super().__init__("noise", "train", ids, [f"group {index % 3}" for index in range(n)], [0] * n, ["noise"])
        self.opened: list[int] = []

    def image(self, index: int) -> Image.Image:
        self.opened.append(index)
        random = torch.Generator().manual_seed(index)
        return Image.fromarray(torch.randint(0, 255, (6, 6), generator=random, dtype=torch.uint8).numpy())


@pytest.fixture
def model() -> LoadedModel:
    random = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 7))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    module.eval().requires_grad_(False)
    transform = ImageTransform(TransformConfig(size=6, channels=1, mean=[0.5], std=[0.5], interpolation="nearest"))
    return LoadedModel("small", module, "0" * 64, transform, (1, 6, 6), False, 7, torch.device("cpu"))


@pytest.fixture
def sites(model: LoadedModel) -> dict[str, Site]:
    return {site.path: site for site in resolve_sites(model, ["1", "3"])}


@pytest.fixture
def stored(model: LoadedModel, tmp_path: Path) -> StoredActivations:
    extract(model, Noise(), {"3": tmp_path}, ActivationsConfig(batch_size=4))
    return StoredActivations(tmp_path)


def test_everything_is_as_if_it_were_stored(
    model: LoadedModel, sites: dict[str, Site], stored: StoredActivations
) -> None:
    live = LiveActivations(model, Noise(), sites["3"], batch_size=5)
    assert len(live) == len(stored)
    for name in ("site", "ids", "groups", "labels", "n_images", "n_positions", "width", "dtype"):
        assert getattr(live, name) == getattr(stored, name), name
    for images in ([3, 4, 5], [22, 0, 7, 7], []):
        torch.testing.assert_close(live.take(images), stored.take(images))
    for numbers in ([5, 3, 5, 200, 0], list(range(0, 207, 10))):
        torch.testing.assert_close(live.vectors(numbers), stored.vectors(numbers))
    torch.testing.assert_close(live.moments.mean, stored.moments.mean)
    torch.testing.assert_close(live.moments.variance, stored.moments.variance)


@pytest.mark.parametrize("memory_mib", [0.0005, 64])
def test_a_loader_gives_the_same_batches_from_both(
    model: LoadedModel, sites: dict[str, Site], stored: StoredActivations, memory_mib: float
) -> None:
    images = [index for index in range(23) if index % 3]
    live = VectorLoader(LiveActivations(model, Noise(), sites["3"]), 16, 5, images, memory_mib)
    disk = VectorLoader(stored, 16, 5, images, memory_mib)
    for step in (0, 1, disk.steps_per_epoch, 3 * disk.steps_per_epoch - 1):
        torch.testing.assert_close(live.batch(step), disk.batch(step))
    torch.testing.assert_close(live.sample(40), disk.sample(40))


def test_what_fits_into_memory_is_computed_once(model: LoadedModel, sites: dict[str, Site]) -> None:
    dataset = Noise()
    loader = VectorLoader(LiveActivations(model, dataset, sites["3"]), 32, 0)
    for step in range(3 * loader.steps_per_epoch):
        loader.batch(step)
    assert sorted(dataset.opened) == list(range(23))


def test_later_sites_see_what_replaces_earlier_ones(model: LoadedModel, sites: dict[str, Site]) -> None:
    def half(x_bpd: Tensor) -> Tensor:
        return 0.5 * x_bpd

    live = LiveActivations(model, Noise(), sites["3"], replaced={sites["1"]: half})
    images = torch.stack([model.transform(Noise().image(index)) for index in range(4)])
    hidden = 0.5 * model.module[:2](images)
    expected = model.module[2:4](hidden).flatten(2).transpose(1, 2)
    torch.testing.assert_close(live.take(range(4)), expected)
    untouched = LiveActivations(model, Noise(), sites["3"]).take(range(4))
    assert (live.take(range(4)) - untouched).abs().max() > 0.1


def test_an_image_whose_activations_are_not_finite_is_named(model: LoadedModel, sites: dict[str, Site]) -> None:
    class Poisoned(ImageTransform):
        def __call__(self, image: Image.Image) -> Tensor:
            x = super().__call__(image)
            return x * float("nan") if image.getpixel((0, 0)) == Noise().image(9).getpixel((0, 0)) else x

    with_nan = LoadedModel(**{**vars(model), "transform": Poisoned(model.transform.config)})
    with pytest.raises(DataError, match="activations of image noise 9 at 3 are NaN or infinite"):
        LiveActivations(with_nan, Noise(), sites["3"]).take(range(23))

from __future__ import annotations

import logging

import pytest
import torch
from PIL import Image
from torch import nn

from mis_lab.activations.config import ActivationsConfig, Precision
from mis_lab.activations.extract import extract
from mis_lab.activations.shards import StoredActivations
from mis_lab.core import progress
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.config import Layout
from mis_lab.model.load import LoadedModel


class Shades(ImageDataset):
    """Image i is grey of shade 10·i."""

    def __init__(self, n: int) -> None:
        ids = [f"shade {index}" for index in range(n)]
        super().__init__("shades", "train", ids, ["dark", "light"] * (n // 2) + ["dark"] * (n % 2), [0] * n, ["grey"])

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (4, 4), 10 * index)


@pytest.fixture
def model() -> LoadedModel:
    module = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(20, 7))
    module.eval().requires_grad_(False)
    transform = ImageTransform(TransformConfig(size=4, channels=1, mean=[0.5], std=[0.5], interpolation="nearest"))
    return LoadedModel("small", module, "0" * 64, transform, (1, 4, 4), False, 7, torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_all_sites_are_written_in_one_pass(model, tmp_path, batch_size):
    dataset = Shades(11)
    calls = []
    handle = model.module.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    folders = {"0": tmp_path / "map", "3": tmp_path / "vector"}
    config = ActivationsConfig(batch_size=batch_size)
    extract(model, dataset, folders, config)
    handle.remove()
    assert sum(calls[1:]) == 11  # the first pass tells the sites' sizes
    images = torch.stack([model.transform(dataset.image(index)) for index in range(11)])
    maps = model.module[0](images)
    expected = {"0": maps.permute(0, 2, 3, 1).reshape(11, 4, 5), "3": model.module(images)[:, None]}
    for path, folder in folders.items():
        stored = StoredActivations(folder)
        assert stored.site.path == path
        assert torch.allclose(stored.read(0, 11), expected[path], rtol=1e-5, atol=1e-6)
        assert (stored.ids, stored.groups, stored.labels) == (dataset.ids, dataset.groups, dataset.labels)
        assert stored.about == {"model": "small", "dataset": "shades", "split": "train", "class_names": ["grey"]}
    assert StoredActivations(folders["0"]).site.grid == (2, 2)


def test_precision_is_that_of_the_configuration(model, tmp_path):
    extract(model, Shades(3), {"0": tmp_path}, ActivationsConfig(precision=Precision.float16))
    assert StoredActivations(tmp_path).dtype == torch.float16


def test_progress_is_named_by_data_set_and_split(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        extract(model, Shades(5), {"0": tmp_path}, ActivationsConfig(batch_size=2))
    assert "activations shades/train: 3/3 batch" in caplog.text


def test_a_network_that_gives_nan_is_told_with_image_and_site(model, tmp_path):
    model.module[0].weight.fill_(torch.nan)
    with pytest.raises(DataError, match="site 0: activations of image shade 0 are NaN"):
        extract(model, Shades(3), {"0": tmp_path}, ActivationsConfig())
    assert not (tmp_path / "metadata.json").exists()


def test_a_site_that_does_not_exist(model, tmp_path):
    with pytest.raises(ConfigError, match="no module 9"):
        extract(model, Shades(3), {"9": tmp_path}, ActivationsConfig())


def test_a_layout_that_does_not_fit(model, tmp_path):
    with pytest.raises(ConfigError, match="is not btd"):
        extract(model, Shades(3), {"0": tmp_path}, ActivationsConfig(), layout=Layout.btd)

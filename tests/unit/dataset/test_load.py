from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import (
    DatasetConfig,
    ExternalDatasetConfig,
    ImageFolderConfig,
    MnistConfig,
    PhotoPatchesConfig,
    SplitConfig,
)
from mis_lab.dataset.image_folder import ImageFolder
from mis_lab.dataset.load import load_dataset


class Mine(ImageDataset):
    """A data set of somebody's own."""

    def __init__(self, n: int, split: str) -> None:
        super().__init__("mine", split, [f"{split}/{index}" for index in range(n)])

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (2, 2))


def no_data_set(split: str) -> list[str]:
    return [split]


@pytest.fixture
def my_package(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if the names of this file were those of an installed, allowed package."""
    monkeypatch.setattr("mis_lab.core.build.locate", lambda target: globals()[target.rpartition(".")[2]])
    return "my_package"


def test_a_limit_is_spread_over_the_scenes():
    dataset = load_dataset(PhotoPatchesConfig(split=SplitConfig(limit=72)), "score")
    counts = Counter(dataset.groups)
    assert len(dataset) == 72
    assert len(counts) == 18
    assert {counts[scene] for scene in counts if scene != "microaneurysms"} <= {4, 5}


def test_a_limit_is_spread_over_the_classes_where_every_image_is_its_own_group():
    dataset = load_dataset(MnistConfig(split=SplitConfig(limit=72)), "train")
    assert set(Counter(dataset.labels).values()) == {7, 8}


def test_a_limit_beyond_the_images_changes_nothing():
    assert len(load_dataset(MnistConfig(n_score=3, split=SplitConfig(limit=500)), "score")) == 30


def test_a_class_filter_keeps_the_labels():
    dataset = load_dataset(MnistConfig(split=SplitConfig(classes=["7", "2"])), "score")
    assert Counter(dataset.labels) == {7: 100, 2: 100}
    assert dataset.class_names == list("0123456789")
    limited = load_dataset(MnistConfig(split=SplitConfig(classes=["7", "2"], limit=10)), "score")
    assert Counter(limited.labels) == {7: 5, 2: 5}


def test_an_unknown_class_is_refused_with_the_nearest_first():
    with pytest.raises(ConfigError, match=r"no class 77.*Nearest: 7") as raised:
        load_dataset(MnistConfig(split=SplitConfig(classes=["7", "77"])), "score")
    assert "\n" not in str(raised.value)


def test_classes_of_unlabelled_data_are_refused():
    with pytest.raises(ConfigError, match="photo_patches has no classes"):
        load_dataset(PhotoPatchesConfig(split=SplitConfig(classes=["cat"])), "score")


def test_a_class_without_images_in_this_split_is_told(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "score/cat/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    config = ImageFolderConfig(root=str(tmp_path), split=SplitConfig(classes=["dog"]))
    assert isinstance(load_dataset(ImageFolderConfig(root=str(tmp_path)), "score"), ImageFolder)
    assert load_dataset(config, "train").ids == ["train/dog/1.png"]
    with pytest.raises(DataError, match="score has no image of class dog"):
        load_dataset(config, "score")


def test_a_data_set_of_ones_own(my_package):
    config = ExternalDatasetConfig(
        _target_=f"{my_package}.Mine", name="mine", kwargs={"n": 6}, split=SplitConfig(limit=4)
    )
    dataset = load_dataset(config, "train")
    assert len(dataset) == 4
    assert set(dataset.ids) < {f"train/{index}" for index in range(6)}


def test_an_empty_data_set_is_refused(my_package):
    with pytest.raises(DataError, match="mine/train is empty"):
        load_dataset(ExternalDatasetConfig(_target_=f"{my_package}.Mine", name="mine", kwargs={"n": 0}), "train")


def test_an_unknown_option_of_ones_own_data_set_is_refused(my_package):
    with pytest.raises(ConfigError, match="size"):
        load_dataset(
            ExternalDatasetConfig(_target_=f"{my_package}.Mine", name="mine", kwargs={"n": 1, "size": 2}),
            "train",
        )


def test_something_else_than_a_data_set_is_refused(my_package):
    config = ExternalDatasetConfig(_target_=f"{my_package}.no_data_set", name="x")
    with pytest.raises(ConfigError, match=r"no_data_set gave list, not a data set\. Derive the class"):
        load_dataset(config, "train")


@pytest.mark.parametrize("split", ["test", "", "Train"])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ConfigError, match="Use train or score"):
        load_dataset(DatasetConfig(), split)

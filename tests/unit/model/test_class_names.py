from __future__ import annotations

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.class_names import class_names, imagenet_names
from mis_lab.model.config import ModelConfig

DIGITS = ImageDataset("digits", "score", ["a"], class_names=["zero", "one"])
UNLABELLED = ImageDataset("photos", "score", ["a"])


def names(which: str, dataset: ImageDataset) -> list[str]:
    return class_names(ModelConfig(name="net", sites=["x"], class_names=which), dataset)


def test_imagenet_has_a_thousand_different_names_in_the_usual_order():
    found = imagenet_names()
    assert len(found) == len(set(found)) == 1000
    # ILSVRC 2012: index 0, 282, 999, and the two cranes, the bird first.
    assert (found[0], found[282], found[999]) == ("tench", "tiger cat", "toilet tissue")
    assert (found[134], found[517]) == ("crane (n02012849)", "crane (n03126707)")


def test_each_source_of_names():
    assert names("imagenet", UNLABELLED) == list(imagenet_names())
    assert names("dataset", DIGITS) == ["zero", "one"]
    assert names("none", DIGITS) == []


def test_a_data_set_without_names():
    with pytest.raises(ConfigError, match=r"model.class_names=dataset: data set photos has no class names"):
        names("dataset", UNLABELLED)

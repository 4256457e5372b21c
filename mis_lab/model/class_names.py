"""What a network's outputs are called."""

from __future__ import annotations

from collections import Counter
from functools import cache

from timm.data import ImageNetInfo

from mis_lab.core.errors import ConfigError
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.config import ModelConfig


def class_names(config: ModelConfig, dataset: ImageDataset) -> list[str]:
    """A name an output, as ``config.class_names`` asks; empty for ``none``.

    Raises:
        ConfigError: when the data set shall name them and has no class names.
    """
    if config.class_names == "imagenet":
        return list(imagenet_names())
    if config.class_names == "none":
        return []
    if not dataset.class_names:
        raise ConfigError(
            f"model.class_names=dataset: data set {dataset.name} has no class names",
            fix="Use model.class_names=imagenet or none.",
        )
    return list(dataset.class_names)


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet (ILSVRC 2012), all different.

    The first synonym; where two classes share it (crane the bird, crane the machine) the WordNet id follows.
    """
    info = ImageNetInfo()
    short = [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
    count = Counter(short)
    return tuple(
        name if count[name] == 1 else f"{name} ({info.index_to_label_name(index)})" for index, name in enumerate(short)
    )

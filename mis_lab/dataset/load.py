"""From configuration to data set: build it, keep the classes asked for, limit it, check what is left."""

from __future__ import annotations

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError, nearest_first
from mis_lab.dataset.base import SPLITS, ImageDataset
from mis_lab.dataset.config import DatasetConfig
from mis_lab.dataset.splits import spread


def load_dataset(config: DatasetConfig, split: str) -> ImageDataset:
    """The images of `split` ("train" or "score") that ``config.split`` asks for.

    Class names and labels stay those of the whole data set: a network trained on it keeps its outputs.

    Raises:
        ConfigError: for an unknown split or class, or a class filter on unlabelled data.
        DataError: when no image is left.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split}", fix=f"Use {' or '.join(SPLITS)}.")
    dataset = build(config, split=split)
    if not isinstance(dataset, ImageDataset):
        raise ConfigError(
            f"{config._target_} gave {type(dataset).__name__}, not a data set",
            fix="Derive the class from mis_lab.dataset.base.ImageDataset.",
        )
    if config.split.classes:
        dataset = _of_classes(dataset, config.split.classes)
    if not len(dataset):
        raise DataError(f"data set {dataset.name}/{split} is empty", fix="Check its options.")
    limit = config.split.limit
    return dataset.subset(spread(_strata(dataset), limit)) if 0 < limit < len(dataset) else dataset


def _of_classes(dataset: ImageDataset, wanted: list[str]) -> ImageDataset:
    if not dataset.class_names:
        raise ConfigError(
            f"dataset.split.classes={','.join(wanted)}: data set {dataset.name} has no classes",
            fix="Leave dataset.split.classes empty.",
        )
    for name in wanted:
        if name not in dataset.class_names:
            near = ", ".join(nearest_first(name, dataset.class_names, 5))
            raise ConfigError(
                f"dataset.split.classes: data set {dataset.name} has no class {name}",
                looked=f"its {len(dataset.class_names)} classes",
                fix=f"Nearest: {near}.",
            )
    labels = {dataset.class_names.index(name) for name in wanted}
    kept = dataset.subset(index for index, label in enumerate(dataset.labels) if label in labels)
    if not len(kept):
        raise DataError(f"data set {dataset.name}/{dataset.split} has no image of class {', '.join(wanted)}")
    return kept


def _strata(dataset: ImageDataset) -> list[str]:
    """What to spread a few images over: the groups, or the classes where every image is its own group."""
    if len(set(dataset.groups)) == len(dataset):
        return [str(label) for label in dataset.labels]
    return dataset.groups

"""The images of a circuit: which of those allowed are used, and what the objective reads of each.

Circuits are found on one set and evaluated on another; both are spread over the groups of the data set, so that no
photograph decides alone.
"""

# n images  C classes

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mis_lab.circuit.config import CircuitConfig, Target
from mis_lab.circuit.targets import class_number, clean_logits, of_classes, rows_read, targets_of
from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches
from mis_lab.dataset.splits import spread
from mis_lab.model.load import LoadedModel


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a data set, read again each time they are gone through."""

    model: LoadedModel
    dataset: ImageDataset
    indices: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in batches(self.dataset, self.model.transform, self.batch_size, indices=self.indices):
            yield self.model.to_input(batch.images_bchw)

    @property
    def ids(self) -> list[str]:
        """Image ids, in order."""
        return [self.dataset.ids[index] for index in self.indices]

    @property
    def groups(self) -> list[str]:
        """The group of each image."""
        return [self.dataset.groups[index] for index in self.indices]

    def at(self, indices: Sequence[int]) -> ChosenImages:
        """Other images of the same data set, in batches of the same size."""
        return replace(self, indices=indices)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images for one purpose.

    Attributes:
        images: the images.
        allowed: indices of all images that may serve the purpose; partners are drawn from them.
        targets_n: (n,) int64, the class that is each image's target.
        rows_n: what the objective reads of each: its class (n,), or clean logits (n, C).
        masks: name of each of ``circuit.classes`` → (n,) bool, which images are of it; empty for a single class.
    """

    images: ChosenImages
    allowed: Sequence[int]
    targets_n: Tensor
    rows_n: Tensor
    masks: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images.indices)

    def take(self, places: Sequence[int]) -> ImageSet:
        """The images at these places of the set, in that order."""
        chosen = list(places)
        return ImageSet(
            self.images.at([self.images.indices[place] for place in chosen]),
            self.allowed,
            self.targets_n[chosen],
            self.rows_n[chosen],
            {name: mask[chosen] for name, mask in self.masks.items()},
        )

    def spread(self, n_images: int) -> list[int]:
        """Places of at most `n_images`, spread over the groups."""
        return spread(self.images.groups, min(n_images, len(self)))


def check_apart(dataset: ImageDataset, discovery: Sequence[int], evaluation: Sequence[int]) -> None:
    """Whether there are images of both purposes, and none serves both.

    Raises:
        DataError: when a set is empty or both hold an image.
    """
    for name, indices in (("discovery", discovery), ("evaluation", evaluation)):
        if not len(indices):
            raise DataError(
                f"no {name} images for circuits",
                looked=f"{dataset.name}/{dataset.split}",
                fix="Images of two groups or more are needed; dataset.split.hold_out shares them out.",
            )
    both = set(discovery) & set(evaluation)
    if both:
        raise DataError(
            f"{len(both)} images are for discovery and for evaluation, {dataset.ids[min(both)]} for one",
            fix="A circuit is evaluated on images that it was not found on.",
        )


def choose(
    model: LoadedModel,
    dataset: ImageDataset,
    allowed: Sequence[int],
    n_images: int,
    config: CircuitConfig,
    names: Sequence[str] = (),
) -> ImageSet:
    """The images of one purpose: those of ``config.classes``, spread over the groups.

    Args:
        allowed: indices that may be used.
        n_images: how many of them, 0 for all.
        names: of the network's classes.

    Raises:
        ConfigError: when a class of `config` is none of the network's.
        DataError: when no image is of the classes, or a target is a label that is missing.
    """
    images = ChosenImages(model, dataset, list(allowed), config.batch_size)
    classes_n: Tensor | None = None
    if config.classes:
        kept, classes_n = of_classes(config, model.n_classes, allowed, own_classes(images, config), names)
        images = images.at(kept)
    places = spread(images.groups, n_images or len(images.indices))
    images = images.at([images.indices[place] for place in places])
    targets_n = targets_of(config, model, dataset, images.indices, images, names)
    rows_n = rows_read(config, model, images, targets_n, names)
    masks = {}
    if classes_n is not None and len(config.classes) > 1:
        for told in config.classes:
            masks[told] = classes_n[places] == class_number(told, names, model.n_classes, "circuit.classes")
    return ImageSet(images, list(allowed), targets_n, rows_n, masks)


def own_classes(images: ChosenImages, config: CircuitConfig) -> Tensor:
    """(n,) int64: each image's label where labels are targets (−1 for none), else the network's top class.

    Unlike targets they tell images apart when one class is the target of all.
    """
    if config.target is Target.label:
        return torch.tensor([images.dataset.labels[index] for index in images.indices], dtype=torch.int64)
    return clean_logits(images.model, images).argmax(1)

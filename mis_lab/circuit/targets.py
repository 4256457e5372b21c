"""Which class of each image an objective reads, classes by number or by name, and images of some classes alone."""

# n images  C classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.config import CircuitConfig, Objective, Target
from mis_lab.circuit.objectives import OBJECTIVES, Images, ObjectiveFunction, logit_diff_to
from mis_lab.core.errors import ConfigError, DataError, nearest_first
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.capture import predictions
from mis_lab.model.load import LoadedModel


def predicted(model: LoadedModel, dataset: ImageDataset, indices: Sequence[int], images: Images) -> Tensor:
    """The network's own top class of each image, (n,) int64."""
    return clean_logits(model, images).argmax(1)


def labelled(model: LoadedModel, dataset: ImageDataset, indices: Sequence[int], images: Images) -> Tensor:
    """The label of each image, (n,) int64.

    Raises:
        DataError: naming an image without a label, or with one that is no class of the network.
    """
    for index in indices:
        label = dataset.labels[index]
        if not 0 <= label < model.n_classes:
            told = f"label {label}, but {model.name} has {model.n_classes} classes" if label >= 0 else "no label"
            raise DataError(
                f"image {dataset.ids[index]} of {dataset.name} has {told}",
                fix="Use circuit.target=prediction.",
            )
    return torch.tensor([dataset.labels[index] for index in indices], dtype=torch.int64)


TARGETS: dict[Target, Callable[[LoadedModel, ImageDataset, Sequence[int], Images], Tensor]] = {
    Target.prediction: predicted,
    Target.label: labelled,
}


def clean_logits(model: LoadedModel, images: Images) -> Tensor:
    """The undisturbed network's logits of each image, (n, C) on the CPU.

    Raises:
        DataError: without images.
    """
    found = [predictions(model, images_bchw).cpu() for images_bchw in images]
    if not found:
        raise DataError("no images to run the network on")
    return torch.cat(found)


def class_number(told: str, names: Sequence[str], n_classes: int, option: str) -> int:
    """The class that a number or a name tells; a name that is a number is read as one.

    Args:
        names: of all classes, empty when they have none.
        option: what the value was given for, for the error.

    Raises:
        ConfigError: when the number is out of range, or no class or several have the name.
    """
    if told.lstrip("-").isdigit():
        number = int(told)
        if 0 <= number < n_classes:
            return number
        raise ConfigError(f"{option}={told}: the network has {n_classes} classes", fix=f"Use 0 to {n_classes - 1}.")
    if not names:
        raise ConfigError(
            f"{option}={told}: the classes have no names", fix="Give its number, or set model.class_names."
        )
    having = [number for number, name in enumerate(names) if name == told]
    if len(having) > 1:
        raise ConfigError(f"{option}={told}: {len(having)} classes have this name", fix=f"Give a number: {having[:5]}.")
    if not having:
        near = ", ".join(nearest_first(told, names, limit=5))
        raise ConfigError(
            f"{option}={told}: no class has this name", looked=f"{len(names)} names", fix=f"Nearest: {near}."
        )
    return having[0]


def targets_of(
    config: CircuitConfig,
    model: LoadedModel,
    dataset: ImageDataset,
    indices: Sequence[int],
    images: Images,
    names: Sequence[str] = (),
) -> Tensor:
    """The class (n,) int64 of each image, as ``config.target`` asks.

    Args:
        indices: places of `images` in `dataset`.
        names: of the network's classes.

    Raises:
        ConfigError: when ``config.target_class`` is no class.
        DataError: when a label is asked for and missing.
    """
    if config.target is Target.chosen:
        number = class_number(config.target_class, names, model.n_classes, "circuit.target_class")
        return torch.full((len(indices),), number, dtype=torch.int64)
    return TARGETS[config.target](model, dataset, indices, images)


class OfClasses(NamedTuple):
    """Images whose target is one of the classes: their places in the data set and their targets (n,)."""

    indices: list[int]
    targets_n: Tensor


def of_classes(
    config: CircuitConfig, n_classes: int, indices: Sequence[int], targets_n: Tensor, names: Sequence[str] = ()
) -> OfClasses:
    """The images whose target is one of ``config.classes``, in their order; all of them when it is empty.

    Raises:
        ConfigError: when one of them is no class.
        DataError: when no image is left.
    """
    if not config.classes:
        return OfClasses(list(indices), targets_n)
    wanted = {class_number(told, names, n_classes, "circuit.classes") for told in config.classes}
    kept = [place for place, target in enumerate(targets_n.tolist()) if target in wanted]
    if not kept:
        raise DataError(
            f"no image has one of the classes {', '.join(config.classes)} as its target",
            looked=f"{len(targets_n)} images",
            fix="Use circuit.classes=[] for all, or another circuit.target.",
        )
    return OfClasses([indices[place] for place in kept], targets_n[kept])


def objective_of(config: CircuitConfig, n_classes: int, names: Sequence[str] = ()) -> ObjectiveFunction:
    """The objective that `config` asks for.

    Raises:
        ConfigError: when ``config.other_class`` is no class, or a difference of logits is asked of one class.
    """
    if config.objective is Objective.logit_diff:
        if n_classes < 2:
            raise ConfigError("circuit.objective=logit_diff needs two classes", fix="Use circuit.objective=logit.")
        if config.other_class:
            return logit_diff_to(class_number(config.other_class, names, n_classes, "circuit.other_class"))
    return OBJECTIVES[config.objective]


def rows_read(
    config: CircuitConfig, model: LoadedModel, images: Images, targets_n: Tensor, names: Sequence[str] = ()
) -> Tensor:
    """What the objective reads of each image: its class (n,), or for ``kl`` the clean logits (n, C).

    Raises:
        DataError: when the class that ``logit_diff`` subtracts is an image's own target: that is always 0.
    """
    if config.objective is Objective.kl:
        return clean_logits(model, images)
    if config.other_class:
        other = class_number(config.other_class, names, model.n_classes, "circuit.other_class")
        n_same = int((targets_n == other).sum())
        if n_same:
            raise DataError(
                f"the target of {n_same} of {len(targets_n)} images is circuit.other_class={config.other_class} itself",
                fix="Choose another class, or images of some with circuit.classes.",
            )
    return targets_n

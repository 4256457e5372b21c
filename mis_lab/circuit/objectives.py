"""The scalar a circuit is about: one number an image, so that nothing scales with the size of a batch."""

# B images  C classes  P positions  D site width

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mis_lab.circuit.config import Objective, Target
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.capture import predictions
from mis_lab.model.intervene import Replacement, intervene
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site

ObjectiveFunction = Callable[[Tensor, Tensor], Tensor]


class Images(Protocol):
    """Batches (B, C, H, W) on the network's device, gone through more than once: a list of tensors is one."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def __iter__(self) -> Iterator[Tensor]: ...


def logit(logits_bc: Tensor, targets_b: Tensor) -> Tensor:
    """The target class' logit, (B,)."""
    return logits_bc.gather(1, targets_b[:, None]).squeeze(1)


OBJECTIVES: dict[Objective, ObjectiveFunction] = {Objective.logit: logit}


class Observation(NamedTuple):
    """A clean forward pass: the objective (B,) and each site's vectors (B, P, D) by path."""

    objective_b: Tensor
    vectors: dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A network, the sites whose nodes are studied, and the objective.

    Raises:
        ConfigError: when there is no site, the network gives no class scores, or a module is in training
            mode: batch statistics would tie the images of a batch together, and effects are per image.
    """

    model: LoadedModel
    sites: tuple[Site, ...]
    objective: ObjectiveFunction

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError("a circuit needs at least one site")
        if not self.model.n_classes:
            raise ConfigError(f"the output of {self.model.name} is not (image, class): there is no objective")
        training = [name or "the network" for name, module in self.model.module.named_modules() if module.training]
        if training:
            raise ConfigError(
                f"{self.model.name} is in training mode ({training[0]})",
                fix="Call eval() on it before finding circuits.",
            )

    def values(
        self, images_bchw: Tensor, targets_b: Tensor, replace: Mapping[str, Replacement] | None = None
    ) -> Tensor:
        """Objective (B,); `replace` maps the path of a site to what makes new vectors of its x (B, P, D).

        Gradients are recorded when the caller records them.
        """
        functions = {site: replace[site.path] for site in self.sites if replace and site.path in replace}
        with intervene(self.model, functions):
            logits_bc = self.model.module(images_bchw)
        return self.objective(logits_bc, targets_b)

    @torch.inference_mode()
    def observe(self, images_bchw: Tensor, targets_b: Tensor) -> Observation:
        """Objective and the sites' vectors of the undisturbed network."""
        vectors: dict[str, Tensor] = {}

        def recorder(path: str) -> Replacement:
            def record(x_bpd: Tensor) -> Tensor:
                vectors[path] = x_bpd
                return x_bpd

            return record

        objective_b = self.values(images_bchw, targets_b, {site.path: recorder(site.path) for site in self.sites})
        return Observation(objective_b, vectors)


def with_targets(images: Images, targets_n: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a batch of `images` and its share of `targets_n`, on the images' device."""
    start = 0
    for images_bchw in images:
        stop = start + len(images_bchw)
        yield images_bchw, targets_n[start:stop].to(images_bchw.device)
        start = stop


def predicted(model: LoadedModel, dataset: ImageDataset, indices: Sequence[int], images: Images) -> Tensor:
    """The network's own top class of each image, (n,) int64."""
    return torch.cat([predictions(model, images_bchw).argmax(1).cpu() for images_bchw in images])


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

"""The scalar a circuit is about: one number an image, so that nothing scales with the size of a batch.

What an objective reads of each image beside its logits travels with it as its row of `targets`: the number of a
class, or the logits of the undisturbed network for `kl`.
"""

# B images  C classes  P positions  D site width

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mis_lab.circuit.config import Objective
from mis_lab.core.errors import ConfigError
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


def logit_diff(logits_bc: Tensor, targets_b: Tensor) -> Tensor:
    """The target class' logit minus the mean of all others, (B,)."""
    target_b = logit(logits_bc, targets_b)
    return target_b - (logits_bc.sum(1) - target_b) / (logits_bc.shape[1] - 1)


def logit_diff_to(other: int) -> ObjectiveFunction:
    """The objective that subtracts the logit of class `other` from the target's."""
    return lambda logits_bc, targets_b: logit(logits_bc, targets_b) - logits_bc[:, other]


def log_prob(logits_bc: Tensor, targets_b: Tensor) -> Tensor:
    """Log-probability of the target class, (B,): the negative cross-entropy of each image."""
    return logit(logits_bc.log_softmax(1), targets_b)


def kl(logits_bc: Tensor, clean_bc: Tensor) -> Tensor:
    """−KL(clean ‖ current), (B,): 0 for the undisturbed network, negative elsewhere.

    Args:
        logits_bc: of the network as it runs.
        clean_bc: of the undisturbed network (:func:`~mis_lab.circuit.targets.clean_logits`).

    Raises:
        ValueError: when `clean_bc` are no logits but classes, say.
    """
    if clean_bc.shape != logits_bc.shape:
        raise ValueError(f"kl reads clean logits {tuple(logits_bc.shape)}, not {tuple(clean_bc.shape)}")
    clean_log_p, log_p = clean_bc.log_softmax(1), logits_bc.log_softmax(1)
    return (clean_log_p.exp() * (log_p - clean_log_p)).sum(1)


OBJECTIVES: dict[Objective, ObjectiveFunction] = {
    Objective.logit: logit,
    Objective.logit_diff: logit_diff,
    Objective.log_prob: log_prob,
    Objective.kl: kl,
}


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
        """Objective (B,) of :meth:`logits`; `targets_b` has a row an image, (B,) or (B, C) as the objective reads."""
        return self.objective(self.logits(images_bchw, replace), targets_b)

    def logits(self, images_bchw: Tensor, replace: Mapping[str, Replacement] | None = None) -> Tensor:
        """Logits (B, C); `replace` maps the path of a site to what makes new vectors of its x (B, P, D).

        Gradients are recorded when the caller records them.
        """
        functions = {site: replace[site.path] for site in self.sites if replace and site.path in replace}
        with intervene(self.model, functions):
            return self.model.module(images_bchw)

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

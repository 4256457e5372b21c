"""Steering: what the network says when the codes of chosen nodes are set, scaled, removed or raised while it runs.

With f' the wanted code, x' = x + Σ_k (f'_k − f_k)·atom_k: nothing else of the site changes, the error least of all, and
later sites see what follows. To remove a node is to ablate it as circuits do; to add is to move along its atom, the
direction that an SAE's decoder writes it in.
"""

# n images  B images of a batch  P positions  D site width  F features  K steered nodes  C classes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_nodes
from mis_lab.core.errors import ConfigError, DataError, nearest_first
from mis_lab.core.progress import progress
from mis_lab.model.capture import Capture
from mis_lab.model.intervene import Replacement
from mis_lab.model.sites import Site


class How(Enum):
    """What becomes of a code f.

    set: the value.
    scale: the value times f.
    remove: the node's baseline, whatever the value.
    add: f plus the value: the vector moves along the atom by so much.
    """

    set = 0
    scale = 1
    remove = 2
    add = 3


@dataclass(frozen=True)
class Steer:
    """A change of one node.

    Attributes:
        site: path.
        feature: its number there.
        how: what is done to its code.
        value: see :class:`How`.
        only_active: only at positions where its code is not zero.
    """

    site: str
    feature: int
    how: How
    value: float = 0.0
    only_active: bool = False


@dataclass(frozen=True, eq=False)
class Steered:
    """The network's answers without and with a change.

    Attributes:
        before_nc, after_nc: (n, C) logits on the CPU.
    """

    before_nc: Tensor
    after_nc: Tensor

    @property
    def probabilities_before(self) -> Tensor:
        """(n, C) float64."""
        return self.before_nc.double().softmax(1)

    @property
    def probabilities_after(self) -> Tensor:
        """(n, C) float64."""
        return self.after_nc.double().softmax(1)

    @property
    def top_before(self) -> Tensor:
        """(n,) int64, the largest class of each image."""
        return self.before_nc.argmax(1)

    @property
    def top_after(self) -> Tensor:
        """(n,) int64."""
        return self.after_nc.argmax(1)

    @property
    def changed(self) -> Tensor:
        """(n,) bool, whether an image has another top class."""
        return self.top_before != self.top_after

    @property
    def kl(self) -> Tensor:
        """(n,) float64, KL(before ‖ after) of each image's classes in nats."""
        log_before, log_after = (logits_nc.double().log_softmax(1) for logits_nc in (self.before_nc, self.after_nc))
        return (log_before.exp() * (log_before - log_after)).sum(1)

    def probability_change(self, classes_n: Tensor | None = None) -> Tensor:
        """(n,) float64, by how much the probability of a class of each image rises; of its top class by default."""
        which = (self.top_before if classes_n is None else classes_n)[:, None]
        return (self.probabilities_after.gather(1, which) - self.probabilities_before.gather(1, which)).squeeze(1)


class Strength(NamedTuple):
    """A node's largest code, and the mean of its codes that are not zero (0 where it is silent)."""

    largest: float
    mean_if_active: float


def steered(problem: Problem, nodes: Nodes, steers: Sequence[Steer], images: Images) -> Steered:
    """Answers with all of `steers` at once; see :func:`steered_each`."""
    return steered_each(problem, nodes, [steers], images)[0]


def steered_each(
    problem: Problem, nodes: Nodes, changes: Sequence[Sequence[Steer]], images: Images
) -> tuple[Steered, ...]:
    """Answers with each of several changes, one forward pass a change and batch beside the undisturbed one.

    Args:
        problem: network and sites; its objective is not asked.
        nodes: of one kind, at every steered site; their baselines are what removed nodes become.
        changes: of each, the nodes that change together. At later sites codes are what earlier changes make them.
        images: batches (B, C, H, W).

    Raises:
        ConfigError: for a site or node that does not exist, one changed twice, or a value that is not finite.
        DataError: without images.
    """
    dictionaries = dictionaries_of(nodes)
    by_site = [_by_site(steers, dictionaries) for steers in changes]
    before: list[Tensor] = []
    after: list[list[Tensor]] = [[] for _ in changes]
    with torch.inference_mode():
        for images_bchw, of_batch in progress(
            with_nodes(images, {"": nodes}), "steering", total=len(images), unit="batch"
        ):
            before.append(problem.logits(images_bchw).cpu())
            for found, wanted in zip(after, by_site, strict=True):
                put = {path: steering(of_batch[""][path], steers) for path, steers in wanted.items()}
                found.append(problem.logits(images_bchw, put).cpu())
    if not before:
        raise DataError("no images to steer the network on", fix="Give at least one image.")
    return tuple(Steered(torch.cat(before), torch.cat(found)) for found in after)


def dose_response(
    problem: Problem, nodes: Nodes, steers: Sequence[Steer], values: Sequence[float], images: Images
) -> tuple[Steered, ...]:
    """Answers with the value of all `steers` put to each of `values` in turn."""
    return steered_each(problem, nodes, [[replace(one, value=value) for one in steers] for value in values], images)


def steering(nodes: SiteNodes, steers: Sequence[Steer]) -> Replacement:
    """Vectors (B, P, D) of a site → the same with some of its nodes changed; the very tensor where none moves."""
    dictionary = nodes.dictionary
    which_k = torch.tensor([one.feature for one in steers], device=nodes.state.device)

    def put(x_bpd: Tensor) -> Tensor:
        parts, moves = [], False
        for x, of_images in nodes.chunks(x_bpd):
            codes_bpk = dictionary.encode(x)[..., which_k]
            removed_bpk = of_images.features[..., which_k].expand_as(codes_bpk)
            moved = [_moved(one, codes_bpk[..., k], removed_bpk[..., k]) for k, one in enumerate(steers)]
            delta_bpk = torch.stack(moved, dim=-1)
            moves |= bool(delta_bpk.any())
            if dictionary.has_error:
                parts.append(x + dictionary.combine(delta_bpk, which_k))
            else:  # the nodes are the coordinates: what they become is written as it is
                parts.append(x.index_copy(-1, which_k, codes_bpk + delta_bpk))
        return torch.cat(parts) if moves else x_bpd

    return put


def strengths(problem: Problem, site: Site, dictionary: NodeDictionary, images: Images) -> list[Strength]:
    """How strong each node of a site is on `images`, one pass over them: what a change may be a multiple of.

    Raises:
        DataError: without images.
    """
    total, count = (torch.zeros(dictionary.n_features, dtype=torch.float64) for _ in range(2))
    largest = torch.full_like(total, -torch.inf)
    n_images = 0
    with Capture(problem.model, [site]) as capture, torch.inference_mode():
        for images_bchw in images:
            n_images += len(images_bchw)
            for x in capture.run(images_bchw)[site.path].split(n_images_at_once(dictionary, site.n_positions)):
                codes = dictionary.encode(x).flatten(0, 1).cpu()
                largest = torch.maximum(largest, codes.amax(0).double())
                total, count = total + codes.sum(0, dtype=torch.float64), count + (codes != 0).sum(0)
    if not n_images:
        raise DataError("no images to see codes on", fix="Give at least one image.")
    mean = torch.where(count > 0, total / count.clamp_min(1), 0)
    return [Strength(*pair) for pair in zip(largest.tolist(), mean.tolist(), strict=True)]


# Code, baseline, value → how far the code moves.
_MOVES: dict[How, Callable[[Tensor, Tensor, float], Tensor]] = {
    How.set: lambda code, baseline, value: value - code,
    How.scale: lambda code, baseline, value: (value - 1) * code,
    How.remove: lambda code, baseline, value: baseline - code,
    How.add: lambda code, baseline, value: torch.full_like(code, value),
}


def _moved(one: Steer, code_bp: Tensor, baseline_bp: Tensor) -> Tensor:
    move_bp = _MOVES[one.how](code_bp, baseline_bp, one.value)
    return torch.where(code_bp != 0, move_bp, 0) if one.only_active else move_bp


def _by_site(steers: Sequence[Steer], dictionaries: Mapping[str, NodeDictionary]) -> dict[str, list[Steer]]:
    """The changes of each site, checked."""
    found: dict[str, list[Steer]] = {}
    for one in steers:
        if one.site not in dictionaries:
            near = ", ".join(nearest_first(one.site, dictionaries))
            raise ConfigError(f"no nodes at site {one.site} to steer", fix=f"There are at {near}.")
        dictionary = dictionaries[one.site]
        if not 0 <= one.feature < dictionary.n_features:
            raise ConfigError(
                f"site {one.site} has no {dictionary.kind} {one.feature}",
                fix=f"They are 0 to {dictionary.n_features - 1}.",
            )
        if not abs(one.value) < float("inf"):
            raise ConfigError(f"{one.how.name} {one.value}: a finite number is needed")
        of_site = found.setdefault(one.site, [])
        if any(one.feature == other.feature for other in of_site):
            raise ConfigError(f"{dictionary.kind} {one.feature} of {one.site} is changed twice", fix="Name it once.")
        of_site.append(one)
    return found

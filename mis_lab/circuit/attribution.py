"""What methods of node effects share: the path of the input, gradients at sites, and how gradients become effects.

A dictionary is affine, so a gradient over vectors says all about its nodes. With ḡ the mean gradient ∂m/∂x along a path
(Marks et al. 2024):

    E_k = Σ_p (f − f_b)_pk·⟨atom_k, ḡ_p⟩        E_error = Σ_p ⟨(e − e_b)_p, ḡ_p⟩

One backward pass a step serves every node of every kind; codes are touched once, at the end.
"""

# B images of a batch  P positions  D site width  F features  N nodes: features, then the error node

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.quadrature import Rule
from mis_lab.core.errors import ConfigError
from mis_lab.model.intervene import watch


@dataclass(frozen=True)
class InputPath:
    """The straight path of the input from `start` (C, H, W) to the image, at the points of `rule`."""

    start: Tensor
    rule: Rule

    @property
    def n_steps(self) -> int:
        """Intervals of the rule; one that has both ends has a point more."""
        first, last = self.rule.alphas[0], self.rule.alphas[-1]
        return len(self.rule.alphas) - int((first, last) == (0, 1))

    def images(self, images_bchw: Tensor, alpha: float) -> Tensor:
        """The path of each image at `alpha`: `start` at 0, the image itself, to the bit, at 1."""
        return torch.lerp(self.start.to(images_bchw).expand_as(images_bchw), images_bchw, alpha)


@dataclass(frozen=True)
class CleanBatch:
    """Images, their targets and, of the undisturbed network, the objective (B,) and each site's vectors (B, P, D)."""

    images_bchw: Tensor
    targets_b: Tensor
    objective_b: Tensor
    vectors: Mapping[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> CleanBatch:
        return cls(images_bchw, targets_b, *problem.observe(images_bchw, targets_b))


# Site path → (B, N): what each node adds on each image; other shapes with other reductions.
Contributions = dict[str, Tensor]
# Path of a site, features' shares (B, P, F) and the error's (B, P) or None → (B, N, ...).
Reduction = Callable[[str, Tensor, Tensor | None], Tensor]
Method = Callable[[Problem, CleanBatch, Mapping[str, NodeSet], InputPath, Reduction], dict[str, Contributions]]


def summed(path: str, features_bpf: Tensor, error_bp: Tensor | None) -> Tensor:
    """Each node's shares summed over positions with their signs, (B, N)."""
    sums_bf = features_bpf.sum(1)
    return sums_bf if error_bp is None else torch.cat([sums_bf, error_bp.sum(1, keepdim=True)], dim=1)


class GradientPass(NamedTuple):
    """Each site's vectors x (B, P, D), and ∂(Σ_b m_b)/∂x."""

    vectors: dict[str, Tensor]
    gradients: dict[str, Tensor]


def gradient_pass(problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> GradientPass:
    """Vectors and gradients at every site, from one backward pass that ends at the first site.

    Raises:
        ConfigError: when the objective does not depend on a site.
    """
    paths = [site.path for site in problem.sites]
    found: Sequence[Tensor | None] = [None] * len(paths)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        watch(problem.model, problem.sites) as watched,
    ):
        objective_b = problem.values(images_bchw, targets_b)
        if objective_b.requires_grad:
            points = [watched[path] for path in paths]
            found = torch.autograd.grad(objective_b.sum(), points, allow_unused=True)
    gradients = {}
    for path, gradient in zip(paths, found, strict=True):
        if gradient is None:
            raise not_on_the_way(problem, path)
        gradients[path] = gradient
    return GradientPass({path: watched[path].detach() for path in paths}, gradients)


def site_gradients(problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> dict[str, Tensor]:
    """The gradients of :func:`gradient_pass`."""
    return gradient_pass(problem, images_bchw, targets_b).gradients


def input_path_gradients(
    problem: Problem, images_bchw: Tensor, targets_b: Tensor, path: InputPath
) -> dict[str, Tensor]:
    """Mean of :func:`site_gradients` along the input path, (B, P, D) at every site."""
    mean: dict[str, Tensor] = {}
    for alpha, weight in zip(*path.rule, strict=True):
        for site_path, gradient_bpd in site_gradients(problem, path.images(images_bchw, alpha), targets_b).items():
            mean.setdefault(site_path, torch.zeros_like(gradient_bpd)).add_(gradient_bpd, alpha=weight)
    return mean


def not_on_the_way(problem: Problem, path: str) -> ConfigError:
    """The error for a site that the objective does not depend on."""
    return ConfigError(
        f"site {path} is not on the way to the objective of {problem.model.name}",
        fix="Take it out of model.sites, or choose another module.",
    )


def contract(
    node_sets: Mapping[str, NodeSet],
    vectors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    reduce: Reduction = summed,
) -> dict[str, Contributions]:
    """Mean gradients over vectors (B, P, D) turned into contributions of nodes (B, N)."""
    return {
        kind: {
            path: contract_site(path, of_site, vectors[path], gradients[path], reduce) for path, of_site in n.items()
        }
        for kind, n in node_sets.items()
    }


@torch.no_grad()
def contract_site(path: str, nodes: SiteNodes, x_bpd: Tensor, g_bpd: Tensor, reduce: Reduction) -> Tensor:
    """Contributions (B, N) of one site's nodes from its mean gradient."""
    # Projecting costs what encoding costs, little beside the passes of one step: no sparse form is worth it.
    dictionary = nodes.dictionary
    n_at_once = n_images_at_once(dictionary, x_bpd.shape[1])
    parts = []
    for (x, of_images), g in zip(nodes.chunks(x_bpd), g_bpd.split(n_at_once), strict=True):
        codes = dictionary.encode(x)
        error = x - dictionary.combine(codes) - dictionary.offset - of_images.error if dictionary.has_error else None
        parts.append(reduce(path, *shares(dictionary, codes - of_images.features, error, g)))
    return torch.cat(parts)


def shares(
    dictionary: NodeDictionary, moved_bpf: Tensor, moved_error_bpd: Tensor | None, g_bpd: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What moves of features and error add at each position: moved_k·⟨atom_k, g⟩ (B, P, F) and ⟨moved, g⟩ (B, P)."""
    of_error = None if moved_error_bpd is None else (moved_error_bpd * g_bpd).sum(-1)
    return moved_bpf * dictionary.project(g_bpd), of_error

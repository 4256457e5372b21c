"""Integrated gradients at each site: its vectors move straight from the baseline to the image, all before it is clean.

Features and error move together (Marks et al. 2024), which is the straight path of the vectors: the gradient over
vectors is averaged along it, and codes are touched once, at the end. Effects sum to the change when the whole site is
ablated, up to the error of the rule.
"""

# B images  R rows: images at points of the path  P positions  D site width

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

import torch
from torch import Tensor

from mis_lab.circuit.attribution import (
    CleanBatch,
    Contributions,
    InputPath,
    Reduction,
    contract_site,
    not_on_the_way,
)
from mis_lab.circuit.baselines import NodeSet
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.quadrature import Rule
from mis_lab.circuit.suffix import Suffix


def ig(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """The gradient averaged along each site's own path; of `path` the rule counts, its start does not."""
    found: dict[str, Contributions] = {kind: {} for kind in node_sets}
    for site in problem.sites:
        suffix = Suffix.of(problem, site, batch.images_bchw, batch.targets_b)
        known: list[tuple[Tensor, Tensor]] = []  # kinds that end in one state share their path
        for kind, nodes in node_sets.items():
            if site.path not in nodes:
                continue
            state = nodes[site.path].state
            gradient_bpd = next((gradient for other, gradient in known if torch.equal(other, state)), None)
            if gradient_bpd is None:
                gradient_bpd = mean_gradient(suffix, batch, state, path.rule)
                known.append((state, gradient_bpd))
            x_bpd = batch.vectors[site.path]
            found[kind][site.path] = contract_site(site.path, nodes[site.path], x_bpd, gradient_bpd, reduce)
    return found


def mean_gradient(suffix: Suffix, batch: CleanBatch, state: Tensor, rule: Rule) -> Tensor:
    """∂m/∂x (B, P, D), averaged by `rule` from `state` (D,), (P, D) or (B, P, D) to each image's own vectors.

    No pass holds more rows than there are images in the batch.

    Raises:
        ConfigError: when the objective does not depend on the site.
    """
    n_images, n_points = len(batch.images_bchw), len(rule.alphas)
    n_at_once = max(1, n_images // n_points)
    n_points_at_once = min(n_points, n_images)
    alphas, weights = (torch.tensor(values, dtype=state.dtype, device=state.device) for values in rule)
    parts = []
    states = state.split(n_at_once) if state.ndim == 3 else repeat(state)
    for images, targets, of_images in zip(
        batch.images_bchw.split(n_at_once), batch.targets_b.split(n_at_once), states, strict=False
    ):
        sums: list[Tensor] = []
        for some, of_some in zip(alphas.split(n_points_at_once), weights.split(n_points_at_once), strict=True):
            gradient_rpd = _gradient(suffix, images, targets, of_images, some)
            sums.append(torch.einsum("bnpd,n->bpd", gradient_rpd.unflatten(0, (len(images), len(some))), of_some))
        parts.append(torch.stack(sums).sum(0))
    return torch.cat(parts)


def _gradient(suffix: Suffix, images_bchw: Tensor, targets_b: Tensor, state: Tensor, alphas_n: Tensor) -> Tensor:
    """∂m/∂x (B·N, P, D) of every image at every one of the points, image by image."""
    n_images = len(images_bchw)
    rows_r = torch.arange(n_images, device=images_bchw.device).repeat_interleave(len(alphas_n))
    alphas_r = alphas_n.repeat(n_images)[:, None, None]
    leaves: list[Tensor] = []

    def between(x_rpd: Tensor) -> Tensor:
        from_rpd = state[rows_r] if state.ndim == 3 else state.expand_as(x_rpd)
        leaves.append(torch.lerp(from_rpd, x_rpd, alphas_r).detach().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(False), torch.enable_grad():
        objective_r = suffix.values(images_bchw, targets_b, rows_r, between)
        found = (
            torch.autograd.grad(objective_r.sum(), leaves, allow_unused=True) if objective_r.requires_grad else (None,)
        )
    if found[0] is None:
        raise not_on_the_way(suffix.problem, suffix.site.path)
    return found[0]

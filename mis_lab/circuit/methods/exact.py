"""Exact effects: every node ablated on its own, at all positions of an image at once.

    E_k = m(x) − m(x + (f_b − f)_k·atom_k)        E_error = m(x) − m(x + e_b − e)

One row behind the site for each image and node that leaves its baseline there; what stands before the site runs once
for the rows of an image. A reference for the other methods (Wang et al. 2023 call it activation patching).
"""

# B images  R rows: pairs of an image and a node  V chosen nodes  P positions  D site width  F features  N nodes

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mis_lab.circuit.attribution import CleanBatch, Contributions, InputPath, Reduction
from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.dictionaries import n_nodes
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, with_targets_and_nodes
from mis_lab.circuit.suffix import Suffix
from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress

# Rows a pass at least: they need no gradients, so that more of them fit than images.
MIN_ROWS = 64


def exact(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """All nodes of all kinds, one by one; `path` and `reduce` have no part in it."""
    found: dict[str, Contributions] = {kind: {} for kind in node_sets}
    for site in problem.sites:
        suffix = Suffix.of(problem, site, batch.images_bchw, batch.targets_b)
        for kind, nodes in node_sets.items():
            if site.path in nodes:
                everything = torch.arange(n_nodes(nodes[site.path].dictionary))
                found[kind][site.path] = _ablate_each(suffix, batch, nodes[site.path], everything)
    return found


def exact_effects(
    problem: Problem, nodes: Nodes, images: Images, targets_n: Tensor, which: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Exact effects of some nodes: site path → (n, V).

    Args:
        images: batches (B, C, H, W).
        targets_n: the class of each image that the objective reads.
        which: site path → (V,) int64 places among the site's nodes; −1 is the last, which is the error where it is one.

    Raises:
        DataError: without images.
    """
    parts: dict[str, list[Tensor]] = {path: [] for path in which}
    for images_bchw, targets_b, of_batch in progress(
        with_targets_and_nodes(images, targets_n, {"": nodes}), "exact effects", total=len(images), unit="batch"
    ):
        batch = CleanBatch.of(problem, images_bchw, targets_b)
        for site in problem.sites:
            if site.path in which:
                suffix = Suffix.of(problem, site, images_bchw, targets_b)
                effects_bv = _ablate_each(suffix, batch, of_batch[""][site.path], which[site.path])
                parts[site.path].append(effects_bv.cpu())
    if not len(targets_n):
        raise DataError("no images to ablate nodes on", fix="Give at least one image.")
    return {path: torch.cat(of_site) for path, of_site in parts.items()}


@torch.inference_mode()
def _ablate_each(suffix: Suffix, batch: CleanBatch, nodes: SiteNodes, which_v: Tensor) -> Tensor:
    """(B, V): m(clean) − m(do(node = baseline)); zero, without a pass, where the node is at its baseline."""
    dictionary, x_bpd = nodes.dictionary, batch.vectors[suffix.site.path]
    which_v = which_v.to(x_bpd.device) % n_nodes(dictionary)
    effects_bv = batch.objective_b.new_zeros(len(x_bpd), len(which_v))
    n_rows = max(MIN_ROWS, len(x_bpd))
    start = 0
    for x, of_images in nodes.chunks(x_bpd):
        moves = _Moves(of_images, x)
        image_r, place_r = moves.leaving(which_v).nonzero(as_tuple=True)
        for image, place in zip(image_r.split(n_rows), place_r.split(n_rows), strict=True):
            if not len(image):
                continue
            first, last = start + int(image[0]), start + int(image[-1]) + 1
            values_r = suffix.values(
                batch.images_bchw[first:last],
                batch.targets_b[first:last],
                image + start - first,
                partial(torch.add, moves.of(image, which_v[place])),
            )
            effects_bv[image + start, place] = batch.objective_b[image + start] - values_r
        start += len(x)
    return effects_bv


class _Moves:
    """How far the nodes of some images are from their baseline."""

    def __init__(self, nodes: SiteNodes, x_bpd: Tensor) -> None:
        self.dictionary = nodes.dictionary
        codes_bpf = self.dictionary.encode(x_bpd)
        self.features_bpf = nodes.features - codes_bpf
        self.error_bpd: Tensor | None = None
        if self.dictionary.has_error:
            self.error_bpd = nodes.error - (x_bpd - self.dictionary.combine(codes_bpf) - self.dictionary.offset)

    def leaving(self, which_v: Tensor) -> Tensor:
        """(B, V) bool: whether a node is anywhere off its baseline."""
        off_bn = (self.features_bpf != 0).any(1)
        if self.error_bpd is not None:
            off_bn = torch.cat([off_bn, (self.error_bpd != 0).flatten(1).any(1, keepdim=True)], dim=1)
        return off_bn[:, which_v]

    def of(self, image_r: Tensor, node_r: Tensor) -> Tensor:
        """(R, P, D): what sets node `node_r[r]` of image `image_r[r]` to its baseline when it is added."""
        is_error_r = node_r == self.dictionary.n_features
        feature_r = torch.where(is_error_r, 0, node_r)
        some_k, place_r = feature_r.unique(return_inverse=True)
        one_each = torch.eye(len(some_k), dtype=self.features_bpf.dtype, device=self.features_bpf.device)
        atoms_kd = self.dictionary.combine(one_each, some_k)
        delta_rpd = self.features_bpf[image_r, :, feature_r].unsqueeze(-1) * atoms_kd[place_r].unsqueeze(1)
        if self.error_bpd is not None:
            delta_rpd[is_error_r] = self.error_bpd[image_r[is_error_r]]
        return delta_rpd

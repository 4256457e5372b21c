"""Where on each image a node adds to the objective: its effects before they are summed over positions."""

# n images  P positions  F features  N nodes: features, then the error node  V chosen nodes

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mis_lab.circuit.attribution import CleanBatch, InputPath
from mis_lab.circuit.config import EffectMethod
from mis_lab.circuit.effects import METHODS
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, with_targets_and_nodes
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.progress import progress


def effect_maps(
    problem: Problem,
    nodes: Nodes,
    images: Images,
    targets_n: Tensor,
    method: EffectMethod,
    path: InputPath,
    which: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Effects at each position: site path → (n, V, P), which summed over positions are the nodes' effects.

    ``Site.grid`` says how positions lie.

    Args:
        images: batches (B, C, H, W).
        targets_n: the class of each image that the objective reads.
        path: as in :func:`~mis_lab.circuit.effects.node_effects`.
        which: site path → (V,) int64 places among the site's nodes; −1 is the last, which is the error where it is one.

    Raises:
        ConfigError: for ``exact``, or when the objective does not depend on a site.
        DataError: without images.
    """
    if method is EffectMethod.exact:
        raise ConfigError(
            "exact effects have no maps: a node is ablated at all positions at once",
            fix="Use another method.",
        )

    def chosen(site_path: str, features_bpf: Tensor, error_bp: Tensor | None) -> Tensor:
        shares_bpn = features_bpf if error_bp is None else torch.cat([features_bpf, error_bp.unsqueeze(-1)], dim=-1)
        return shares_bpn[..., which[site_path].to(shares_bpn.device)].transpose(1, 2)

    parts: dict[str, list[Tensor]] = {site_path: [] for site_path in which}
    for images_bchw, targets_b, of_batch in progress(
        with_targets_and_nodes(images, targets_n, {"": nodes}), "effect maps", total=len(images), unit="batch"
    ):
        some = {site_path: of_batch[""][site_path] for site_path in which}
        batch = CleanBatch.of(problem, images_bchw, targets_b)
        maps = METHODS[method].method(problem, batch, {"chosen": some}, path, chosen)["chosen"]
        for site_path, maps_bvp in maps.items():
            parts[site_path].append(maps_bvp.cpu())
    if not len(targets_n):
        raise DataError("no images to draw maps of", fix="Give at least one image.")
    return {site_path: torch.cat(of_site) for site_path, of_site in parts.items()}

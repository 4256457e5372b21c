"""The pictured circuit: edges between its nodes, where on images they act, and how far their effects can be trusted.

Its nodes are the largest of all sites; edges also begin and end at every site's error, so that what features leave
of a node's way is told.
"""

# n images  V pictured nodes  k images a node  P positions

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mis_lab.circuit.agreement import ExactAgreement, agreement_with_exact
from mis_lab.circuit.attribution import InputPath, input_path_gradients, site_gradients
from mis_lab.circuit.circuit import ERROR, Circuit
from mis_lab.circuit.config import CircuitConfig, EdgeMethod, EffectMethod, Objective, Topology
from mis_lab.circuit.edges import Gradients, Link, LinkEdges, NotReachedError, all_pairs, chain, link_edges
from mis_lab.circuit.effect_maps import effect_maps
from mis_lab.circuit.effects import SiteEffects
from mis_lab.circuit.graph import Agreement, Edges, agreement, join
from mis_lab.circuit.images import ImageSet
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.states import States

logger = logging.getLogger(__name__)


def strongest_images(shown: Circuit, effects_vn: Tensor, n_images: int) -> Tensor:
    """(V, up to `n_images`) places of the images on which each node does most, in its mean's sign."""
    signs = torch.where(shown.effect < 0, -1.0, 1.0)
    order = (effects_vn.double() * signs[:, None]).argsort(dim=1, descending=True, stable=True)
    return order[:, :n_images]


def with_all_errors(shown: Circuit) -> dict[str, Tensor]:
    """Site path → (V,) the features of `shown` there, and the site's error node where sites have one."""
    chosen = {}
    for number, path in enumerate(shown.n_nodes):
        features = shown.feature[shown.site == number]
        if shown.has_error:
            features = torch.cat([features[features != ERROR], torch.tensor([ERROR])])
        chosen[path] = features
    return chosen


def pictured_edges(
    problem: Problem,
    states: States,
    shown: Circuit,
    effects: Mapping[str, SiteEffects],
    some: ImageSet,
    path: InputPath,
    config: CircuitConfig,
) -> Edges | None:
    """Edges between the nodes of `shown` and every site's error, and from the last site into the objective.

    Neighbouring sites are linked, under ``parallel`` all pairs past the sites in between. Gradients are those at the
    image; for ``kl``, whose is zero there, the mean along `path`. Edges into the objective are the nodes' effects.

    Args:
        effects: site path → effects of the nodes of this kind.
        some: images that edges are measured on.

    Returns:
        None when ``config.edges`` is ``none``.
    """
    if config.edges is EdgeMethod.none:
        return None
    chosen = with_all_errors(shown)
    links = [
        found
        for link in links_of(problem, chosen, config.topology)
        if (found := _edges(problem, states, shown.kind, link, chosen, some, path, config, config.edges)) is not None
    ]
    last = problem.sites[-1].path
    return join(shown.kind, list(effects), links, effects[last], chosen[last])


def links_of(problem: Problem, chosen: Mapping[str, Tensor], topology: Topology) -> list[Link]:
    """The links of sites that both have chosen nodes."""
    links: Sequence[Link] = (chain if topology is Topology.chain else all_pairs)(problem.sites)
    return [link for link in links if len(chosen[link.source.path]) and len(chosen[link.target.path])]


def linear_against_exact(
    problem: Problem, states: States, shown: Circuit, some: ImageSet, path: InputPath, config: CircuitConfig
) -> dict[str, Agreement]:
    """``source→target`` → how linear edges between the nodes of `shown` agree with exact ones on these images."""
    chosen, compared = with_all_errors(shown), {}
    for link in links_of(problem, chosen, config.topology):
        linear, exact = (
            _edges(problem, states, shown.kind, link, chosen, some, path, config, method)
            for method in (EdgeMethod.vjp, EdgeMethod.exact)
        )
        if linear is not None and exact is not None:
            compared[f"{linear.source}→{linear.target}"] = agreement(linear, exact)
    return compared


def _edges(
    problem: Problem,
    states: States,
    kind: str,
    link: Link,
    chosen: Mapping[str, Tensor],
    some: ImageSet,
    path: InputPath,
    config: CircuitConfig,
    method: EdgeMethod,
) -> LinkEdges | None:
    """Edges of one link; None for branches that lie side by side."""

    def along(problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> Mapping[str, Tensor]:
        return input_path_gradients(problem, images_bchw, targets_b, path)

    gradients: Gradients = along if config.objective is Objective.kl else site_gradients
    try:
        return link_edges(
            problem, states.on(some)[kind], link, chosen, some.images, some.rows_n, method, gradients=gradients
        )
    except NotReachedError as error:
        if config.topology is Topology.chain:
            raise
        logger.info("no edges: %s", error)
        return None


def pictured_maps(
    problem: Problem,
    states: States,
    shown: Circuit,
    effects_vn: Tensor,
    discovery: ImageSet,
    path: InputPath,
    config: CircuitConfig,
) -> tuple[Tensor, ...]:
    """For each node of `shown` its effects (k, H, W) at the positions of its :func:`strongest_images`.

    Args:
        effects_vn: effects of these nodes on each of the discovery images.

    Returns:
        Nothing for ``exact``, which ablates a node at all positions at once.
    """
    if not config.n_map_images or config.method is EffectMethod.exact or not len(shown):
        return ()
    images_vk = strongest_images(shown, effects_vn, config.n_map_images)
    places, row_vk = images_vk.unique(return_inverse=True)
    some = discovery.take(places.tolist())
    rows = {path: (shown.site == number).nonzero().squeeze(1) for number, path in enumerate(shown.n_nodes)}
    which = {site_path: shown.feature[row_v] for site_path, row_v in rows.items() if len(row_v)}
    maps = effect_maps(problem, states.on(some)[shown.kind], some.images, some.rows_n, config.method, path, which)
    grids = {site.path: site.grid for site in problem.sites}
    found: dict[int, Tensor] = {}
    for site_path, maps_nvp in maps.items():
        for place, node in enumerate(rows[site_path].tolist()):
            found[node] = maps_nvp[row_vk[node], place].unflatten(1, grids[site_path]).float()
    return tuple(found[node] for node in range(len(shown)))


def compare_with_exact(
    problem: Problem,
    states: States,
    kind: str,
    effects: Mapping[str, SiteEffects],
    discovery: ImageSet,
    places: Sequence[int],
    n_nodes: int,
    seed: int,
) -> ExactAgreement:
    """The `n_nodes` largest effects and as many random ones beside exact ones, on some of the discovery images.

    Args:
        places: which of the images.
    """
    some = discovery.take(places)
    on_these = {path: replace(of_site, per_image=of_site.per_image[list(places)]) for path, of_site in effects.items()}
    nodes = states.on(some)[kind]
    return agreement_with_exact(problem, nodes, on_these, some.images, some.rows_n, n_nodes, n_nodes, seed)

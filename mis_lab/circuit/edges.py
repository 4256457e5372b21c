"""How much of a node's contribution goes through each node of a later site.

With ḡ the gradient of the objective at the downstream site and Δu = u − u_b, one number an image:

    vjp:    w(u→d) = Σ_p ⟨∂/∂u (ḡ_d·d), Δu⟩ at the image
    exact:  w(u→d) = Σ_p ḡ_d·(d − d(do u = u_b))

in the sign of contributions: positive where u supports the target through d. Features of the downstream site and
its error sum up to the whole site, so that over all of them w(u→·) is what the site passes on of u: with the
gradient at the image and sites that cut the network in two, the attribution patching effect of u, whatever the
network. Marks et al. 2024; one pass a downstream node serves all positions and images, as neither know of each
other, and runs between the two sites alone.
"""

# n images  B images of a batch  P positions  D site width  U upstream nodes  T downstream nodes

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.attribution import site_gradients
from mis_lab.circuit.baselines import NodeSet
from mis_lab.circuit.config import EdgeMethod
from mis_lab.circuit.ends import SourceEnd, TargetEnd, check_chosen
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_targets_and_nodes
from mis_lab.circuit.quadrature import Rule
from mis_lab.circuit.seeds import Seeds
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.progress import progress
from mis_lab.model.intervene import Replacement, watch
from mis_lab.model.segment import Segment, Start
from mis_lab.model.sites import Site

# Images (B, C, H, W) and targets (B,) → site path → gradient over vectors (B, P, D).
Gradients = Callable[[Problem, Tensor, Tensor], Mapping[str, Tensor]]


class NotReachedError(ConfigError):
    """A site does not depend on another."""


class Link(NamedTuple):
    """Two sites, and those between them that edges may not go through."""

    source: Site
    target: Site
    stopped: tuple[Site, ...] = ()


def chain(sites: Sequence[Site]) -> tuple[Link, ...]:
    """Neighbours: all links there are when every site cuts the network in two."""
    return tuple(Link(*pair) for pair in pairwise(sites))


def all_pairs(sites: Sequence[Site]) -> tuple[Link, ...]:
    """Every pair, past the sites in between: for sites on parallel branches. Nothing is counted twice."""
    return tuple(
        Link(source, sites[last], tuple(sites[first + 1 : last]))
        for first, source in enumerate(sites)
        for last in range(first + 1, len(sites))
    )


@dataclass(frozen=True, eq=False)
class LinkEdges:
    """Edges between chosen nodes of two sites, means over images.

    Attributes:
        source, target: paths of the sites.
        sources: (U,) int64, features of the source; :data:`~mis_lab.circuit.circuit.ERROR` for its error node.
        targets: (T,) int64, of the target.
        weight: (U, T) float64.
        standard_error: (U, T) float64; NaN from a single image.
        total: (U,) float64, weight through the whole target site, chosen nodes or not.
        n_images: n.
        method: ``vjp`` or ``exact``.
        n_vjps, n_forwards: passes of a batch through the segment, of one backward and of one ablated node each.
    """

    source: str
    target: str
    sources: Tensor
    targets: Tensor
    weight: Tensor
    standard_error: Tensor
    total: Tensor
    n_images: int
    method: EdgeMethod
    n_vjps: int
    n_forwards: int

    @property
    def coverage(self) -> Tensor:
        """(U,) Σ_d w(u→d) / total: what share of each node the chosen downstream nodes tell; NaN at total 0."""
        return self.weight.sum(1) / torch.where(self.total == 0, torch.nan, self.total)


def link_edges(
    problem: Problem,
    nodes: Nodes,
    link: Link,
    chosen: Mapping[str, Tensor],
    images: Images,
    targets_n: Tensor,
    method: EdgeMethod = EdgeMethod.auto,
    gradients: Gradients = site_gradients,
    path: Rule | None = None,
    n_at_once: int = 64,
) -> LinkEdges:
    """Edges between chosen nodes of the two sites of `link`.

    Memory: B·U·T numbers beside the activations of the segment, and B·P·F for exact edges into an error node.

    Args:
        nodes: of one kind, at both sites at least.
        link: the sites, in the order of the network.
        chosen: site path → numbers of features, :data:`~mis_lab.circuit.circuit.ERROR` for the error node.
        images: batches (B, C, H, W).
        targets_n: the class of each image that the objective reads.
        method: see :func:`choose`.
        gradients: of the objective at the target: at the image, or the mean that effects were made of.
        path: for ``vjp``: average the derivative, and with it the gradient at the target (in place of `gradients`),
            over the straight path of the source's vectors from the baseline to the image.
        n_at_once: images a forward pass of ``exact``.

    Raises:
        ConfigError: when a node does not exist, no edges are asked for, or a path is given where edges are exact or
            sites stopped.
        NotReachedError: when the target does not depend on the source (seen by ``vjp`` alone).
        DataError: without images, or when a weight is not finite.
    """
    of_link = {site.path: chosen[site.path].cpu() for site in (link.source, link.target)}
    dictionaries = dictionaries_of(nodes)
    for site_path, numbers in of_link.items():
        check_chosen(site_path, dictionaries[site_path], numbers)
    sources, targets = of_link.values()
    method = EdgeMethod.vjp if path and method is EdgeMethod.auto else choose(method, len(sources), len(targets))
    if path and method is EdgeMethod.exact:
        raise ConfigError("exact edges have no path", fix="Use vjp, or leave the path out.")
    if path and link.stopped:
        raise ConfigError("edges past stopped sites are taken at the image, not along a path")
    work = _Work(problem, link, sources, targets)
    name = f"circuit edges {link.source.path} → {link.target.path}"
    with torch.inference_mode(False), Segment(problem.model, *link) as segment:
        tally = _Tally(len(sources), len(targets))
        batches = with_targets_and_nodes(images, targets_n, {"": nodes})
        for images_bchw, targets_b, of_batch in progress(batches, name, total=len(images), unit="batch"):
            batch = _Batch(segment, segment.begin(images_bchw), images_bchw, targets_b, of_batch[""])
            if method is EdgeMethod.exact:
                tally.update(work.exact(batch, gradients, n_at_once))
            else:
                points = work.along(batch, path) if path else work.at_the_image(batch, gradients)
                tally.update(work.linear(batch, points))
    return tally.result(link, sources, targets, method)


def choose(method: EdgeMethod, n_sources: int, n_targets: int) -> EdgeMethod:
    """``auto`` becomes ``vjp`` unless that takes more passes: one a downstream node against one an upstream node.

    A backward pass that ends at activations takes as many multiplications as a forward pass; that ``exact`` also
    encodes the target anew each time is why equal numbers go to ``vjp``.

    Raises:
        ConfigError: for ``none``.
    """
    if method is EdgeMethod.none:
        raise ConfigError("no edges were asked for: circuit.edges=none")
    if method is not EdgeMethod.auto:
        return method
    return EdgeMethod.vjp if n_targets <= n_sources else EdgeMethod.exact


class _Batch(NamedTuple):
    segment: Segment
    start: Start
    images_bchw: Tensor
    targets_b: Tensor
    nodes: NodeSet


class _Point(NamedTuple):
    """Where a derivative is taken: vectors of the source, gradient at the target, and weight in the mean."""

    source_bpd: Tensor
    gradient_bpd: Tensor
    weight: float


class _BatchEdges(NamedTuple):
    """Weights (B, T, U), those through the whole target site (B, U), and the passes they took."""

    weight_btu: Tensor
    total_bu: Tensor
    n_vjps: int
    n_forwards: int


@dataclass(frozen=True, eq=False)
class _Work:
    """What stays the same over batches."""

    problem: Problem
    link: Link
    sources: Tensor
    targets: Tensor

    def at_the_image(self, batch: _Batch, gradients: Gradients) -> Iterator[_Point]:
        """The image itself."""
        yield _Point(batch.start.source_bpd, self._at_target(batch, gradients), 1.0)

    def along(self, batch: _Batch, path: Rule) -> Iterator[_Point]:
        """Points from the source's baseline to the image, with the objective's gradient there."""
        x_bpd = batch.start.source_bpd
        state = batch.nodes[self.link.source.path].state.to(x_bpd)
        for alpha, weight in zip(*path, strict=True):
            point_bpd = torch.lerp(state.expand_as(x_bpd), x_bpd, alpha)
            yield _Point(point_bpd, self._gradient(batch, point_bpd), weight)

    def _at_target(self, batch: _Batch, gradients: Gradients) -> Tensor:
        """The gradient at the target alone: no graph is kept of what stands before it."""
        problem = replace(self.problem, sites=(self.link.target,))
        return gradients(problem, batch.images_bchw, batch.targets_b)[self.link.target.path]

    def _gradient(self, batch: _Batch, source_bpd: Tensor) -> Tensor:
        """∂(Σ_b m_b)/∂y at the target, the source at these vectors."""
        put: dict[str, Replacement] = {self.link.source.path: lambda _x: source_bpd}
        problem, target = self.problem, self.link.target
        with torch.enable_grad(), watch(problem.model, [target]) as watched:
            objective_b = problem.values(batch.images_bchw, batch.targets_b, put)
            return torch.autograd.grad(objective_b.sum(), watched[target.path])[0]

    def linear(self, batch: _Batch, points: Iterator[_Point]) -> _BatchEdges:
        """Means of derivatives over the points."""
        start = batch.start
        source = SourceEnd(batch.nodes[self.link.source.path], start.source_bpd, self.sources)
        weight_btu = start.source_bpd.new_zeros(len(batch.images_bchw), len(self.targets), len(self.sources))
        total_bu, n_vjps = weight_btu.new_zeros(len(weight_btu), len(self.sources)), 0
        with torch.enable_grad():
            for source_bpd, gradient_bpd, weight in points:
                leaf = source_bpd.clone().requires_grad_()
                y_bpd = batch.segment.run(start, leaf)
                self._is_reached(y_bpd)
                seeds = Seeds(batch.nodes[self.link.target.path], y_bpd.detach(), gradient_bpd, self.targets)
                for places_b in seeds.passes():
                    found_bu = source.contract(_vjp(y_bpd, leaf, seeds.at(places_b)))
                    images = (places_b >= 0).nonzero().squeeze(1)
                    weight_btu[images, places_b[images]] += weight * found_bu[images]
                    n_vjps += 1
                total_bu += weight * source.contract(_vjp(y_bpd, leaf, gradient_bpd))
                n_vjps += 1
        return _BatchEdges(weight_btu, total_bu, n_vjps, 0)

    def _is_reached(self, y_bpd: Tensor) -> None:
        if not y_bpd.requires_grad:
            raise NotReachedError(
                f"site {self.link.target.path} does not depend on {self.link.source.path}",
                fix="Take neighbouring sites, in the order of the network.",
            )

    def exact(self, batch: _Batch, gradients: Gradients, n_at_once: int) -> _BatchEdges:
        """What is lost downstream with each upstream node ablated at all positions."""
        gradient_bpd = self._at_target(batch, gradients)
        segment, start, n_images = batch.segment, batch.start, len(batch.images_bchw)
        source = SourceEnd(batch.nodes[self.link.source.path], start.source_bpd, self.sources)
        target = TargetEnd(batch.nodes[self.link.target.path], start.target_bpd, gradient_bpd, self.targets)
        weight_btu = start.source_bpd.new_zeros(n_images, len(self.targets), len(self.sources))
        total_bu = weight_btu.new_zeros(n_images, len(self.sources))
        with torch.no_grad():
            start = segment.with_one_image(start)
            for nodes in source.moving.split(max(1, n_at_once // n_images)):
                moved = torch.cat([start.source_bpd - source.share(node) for node in nodes.tolist()])
                lost, whole = target.lost(segment.run(start, moved))
                weight_btu[:, :, nodes] = lost.view(len(nodes), n_images, -1).permute(1, 2, 0)
                total_bu[:, nodes] = whole.view(len(nodes), n_images).T
        return _BatchEdges(weight_btu, total_bu, 0, len(source.moving))


def _vjp(y_bpd: Tensor, leaf: Tensor, seed_bpd: Tensor) -> Tensor:
    return torch.autograd.grad(y_bpd, leaf, seed_bpd, retain_graph=True)[0]


class _Tally:
    """Sums over images in float64."""

    def __init__(self, n_sources: int, n_targets: int) -> None:
        self.weight = torch.zeros(n_sources, n_targets, dtype=torch.float64)
        self.square, self.total = torch.zeros_like(self.weight), torch.zeros(n_sources, dtype=torch.float64)
        self.n_images, self.n_vjps, self.n_forwards = 0, 0, 0

    def update(self, found: _BatchEdges) -> None:
        weight_btu = found.weight_btu.cpu().double()
        self.weight += weight_btu.sum(0).T
        self.square += weight_btu.square().sum(0).T
        self.total += found.total_bu.cpu().double().sum(0)
        self.n_images += len(weight_btu)
        self.n_vjps, self.n_forwards = self.n_vjps + found.n_vjps, self.n_forwards + found.n_forwards

    def result(self, link: Link, sources: Tensor, targets: Tensor, method: EdgeMethod) -> LinkEdges:
        n, where = self.n_images, f"{link.source.path} → {link.target.path}"
        if not n:
            raise DataError("no images to find edges on", fix="Give at least one discovery image.")
        if not (self.weight.isfinite().all() and self.total.isfinite().all()):
            raise DataError(f"edges {where} are not finite", fix="Look for infinite activations or weights there.")
        mean = self.weight / n
        spread = (self.square / n - mean.square()).clamp_min(0)
        error = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(mean, torch.nan)
        return LinkEdges(
            link.source.path,
            link.target.path,
            sources,
            targets,
            mean,
            error,
            self.total / n,
            n,
            method,
            self.n_vjps,
            self.n_forwards,
        )

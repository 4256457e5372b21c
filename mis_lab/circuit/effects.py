"""How much each node adds to the objective.

The contribution of a node is m(clean) − m(do(node = baseline)), here estimated; positive supports the target.
A dictionary is affine, so a gradient over vectors says all about its nodes. With ḡ the mean gradient ∂m/∂x
along a path:

    E_k = Σ_p (f − f_b)_pk·⟨atom_k, ḡ_p⟩        E_error = Σ_p ⟨(e − e_b)_p, ḡ_p⟩

One backward pass a step serves every node of every kind at every site; codes are touched once, at the end.
Attribution patching: Nanda 2023; integrated gradients along the input: Hanna et al. 2024; features and errors
as nodes: Marks et al. 2024.
"""

# n images  B images of a batch  P positions  D site width  F features  N nodes: features, then the error node

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.config import EffectMethod
from mis_lab.circuit.dictionaries import n_images_at_once
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_targets_and_nodes
from mis_lab.circuit.quadrature import Rule
from mis_lab.circuit.splice import ablations, nothing_kept
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.progress import progress
from mis_lab.model.intervene import watch


@dataclass(frozen=True)
class InputPath:
    """The straight path of the input from `start` (C, H, W) to the image, at the points of `rule`."""

    start: Tensor
    rule: Rule


@dataclass(frozen=True)
class CleanBatch:
    """Images, their targets and each site's vectors (B, P, D) on them."""

    images_bchw: Tensor
    targets_b: Tensor
    vectors: Mapping[str, Tensor]


# Site path → (B, N): what each node adds on each image. And kind of nodes → that.
Contributions = dict[str, Tensor]
Method = Callable[[Problem, CleanBatch, Mapping[str, NodeSet], InputPath], dict[str, Contributions]]


def atp(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath
) -> dict[str, Contributions]:
    """Attribution patching: the gradient at the image itself."""
    return contract(node_sets, batch.vectors, site_gradients(problem, batch.images_bchw, batch.targets_b))


def ig_inputs(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath
) -> dict[str, Contributions]:
    """The gradient averaged along the input path: one pass a step for all sites at once."""
    start = path.start.to(batch.images_bchw)
    mean = {site_path: torch.zeros_like(x_bpd) for site_path, x_bpd in batch.vectors.items()}
    for alpha, weight in zip(*path.rule, strict=True):
        images_bchw = torch.lerp(start.expand_as(batch.images_bchw), batch.images_bchw, alpha)
        for site_path, gradient_bpd in site_gradients(problem, images_bchw, batch.targets_b).items():
            mean[site_path].add_(gradient_bpd, alpha=weight)
    return contract(node_sets, batch.vectors, mean)


METHODS: dict[EffectMethod, Method] = {EffectMethod.atp: atp, EffectMethod.ig_inputs: ig_inputs}


@dataclass(frozen=True, eq=False)
class SiteEffects:
    """Effects of all nodes of one kind at one site, over the discovery images.

    Attributes:
        per_image: (n, N) contribution of each node on each image, summed over positions with its sign.
        n_active: (N,) int64, images on which the node is not zero (all of them for the error node).
        live: (N,) bool, whether the node ever differs from its baseline; the error node always counts.
        change: mean m(clean) − mean m(do(site = baseline)), with the whole site replaced.
        has_error: whether the last node is the error.
    """

    per_image: Tensor
    n_active: Tensor
    live: Tensor
    change: float
    has_error: bool

    @property
    def mean(self) -> Tensor:
        """(N,) float64."""
        return self.per_image.mean(0, dtype=torch.float64)

    @property
    def standard_error(self) -> Tensor:
        """(N,) float64, of the mean over images; NaN from a single image."""
        n_images = len(self.per_image)
        if n_images < 2:
            return torch.full((self.per_image.shape[1],), torch.nan, dtype=torch.float64)
        return self.per_image.double().std(0) / n_images**0.5

    @property
    def effect_sum(self) -> float:
        """Σ over nodes, the error included, of the mean effect."""
        return float(self.mean.sum())

    @property
    def attribution_gap(self) -> float:
        """|effect_sum − change| / |change|: how far effects miss ablating the whole site; NaN at change 0."""
        return abs(self.effect_sum - self.change) / abs(self.change) if self.change else float("nan")

    @property
    def error_share(self) -> float:
        """|E_error| / Σ |E| over the mean effects; 0 without an error node."""
        size = self.mean.abs()
        return float(size[-1] / size.sum()) if self.has_error and size.sum() > 0 else 0.0


def node_effects(
    problem: Problem,
    node_sets: Mapping[str, Nodes],
    images: Images,
    targets_n: Tensor,
    method: EffectMethod,
    path: InputPath,
) -> dict[str, dict[str, SiteEffects]]:
    """Effects of every node: kind → site path → :class:`SiteEffects`.

    Args:
        node_sets: kind → nodes; all kinds share the backward passes.
        images: batches (B, C, H, W), the discovery images.
        targets_n: the class of each image that the objective reads.
        path: used by ``ig_inputs``.

    Raises:
        ConfigError: when the objective does not depend on a site.
        DataError: without images, or when an effect is not finite.
    """
    dictionaries = {kind: dictionaries_of(nodes) for kind, nodes in node_sets.items()}
    tallies = {kind: {site_path: _Tally() for site_path in of_kind} for kind, of_kind in dictionaries.items()}
    for images_bchw, targets_b, of_batch in progress(
        with_targets_and_nodes(images, targets_n, node_sets), "circuit effects", total=len(images), unit="batch"
    ):
        clean = problem.observe(images_bchw, targets_b)
        batch = CleanBatch(images_bchw, targets_b, clean.vectors)
        for kind, contributions in METHODS[method](problem, batch, of_batch, path).items():
            for site_path, effects_bn in contributions.items():
                nodes = of_batch[kind][site_path]
                without = ablations({site_path: nodes}, nothing_kept({site_path: nodes}))
                with torch.inference_mode():
                    change_b = clean.objective_b - problem.values(images_bchw, targets_b, without)
                    live_n, n_active_n = _activity(nodes, clean.vectors[site_path])
                tallies[kind][site_path].update(effects_bn, change_b, live_n, n_active_n)
    return {
        kind: {
            site_path: tally.result(f"{kind} effects at site {site_path}", dictionaries[kind][site_path].has_error)
            for site_path, tally in of_kind.items()
        }
        for kind, of_kind in tallies.items()
    }


def site_gradients(problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> dict[str, Tensor]:
    """∂(Σ_b m_b)/∂x (B, P, D) at every site, from one backward pass that ends at the first site.

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
            raise ConfigError(
                f"site {path} is not on the way to the objective of {problem.model.name}",
                fix="Take it out of model.sites, or choose another module.",
            )
        gradients[path] = gradient
    return gradients


def contract(
    node_sets: Mapping[str, NodeSet], vectors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Contributions]:
    """Mean gradients over vectors (B, P, D) turned into contributions of nodes (B, N)."""
    return {
        kind: {path: _contract_site(of_site, vectors[path], gradients[path]) for path, of_site in nodes.items()}
        for kind, nodes in node_sets.items()
    }


@torch.no_grad()
def _contract_site(nodes: SiteNodes, x_bpd: Tensor, g_bpd: Tensor) -> Tensor:
    # Projecting costs what encoding costs, little beside the passes of one step: no sparse form is worth it.
    dictionary = nodes.dictionary
    n_at_once = n_images_at_once(dictionary, x_bpd.shape[1])
    parts = []
    for (x, of_images), g in zip(nodes.chunks(x_bpd), g_bpd.split(n_at_once), strict=True):
        codes = dictionary.encode(x)
        effects = ((codes - of_images.features) * dictionary.project(g)).sum(1)
        if dictionary.has_error:
            error = x - dictionary.combine(codes) - dictionary.offset
            of_error = ((error - of_images.error) * g).sum((1, 2))
            effects = torch.cat([effects, of_error[:, None]], dim=1)
        parts.append(effects)
    return torch.cat(parts)


def _activity(nodes: SiteNodes, x_bpd: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) whether a node leaves its baseline on any image, and (N,) on how many images it is not zero."""
    dictionary = nodes.dictionary
    live, n_active = torch.zeros((), dtype=torch.bool), torch.zeros((), dtype=torch.int64)
    for x, of_images in nodes.chunks(x_bpd):
        codes = dictionary.encode(x)
        live = live | (codes != of_images.features).any(1).any(0).cpu()
        n_active = n_active + (codes != 0).any(1).sum(0).cpu()
    if dictionary.has_error:
        live = torch.cat([live, torch.ones(1, dtype=torch.bool)])
        n_active = torch.cat([n_active, torch.tensor([len(x_bpd)])])
    return live, n_active


class _Tally:
    """Collects a site's batches."""

    def __init__(self) -> None:
        self.effects: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.live, self.n_active = torch.zeros((), dtype=torch.bool), torch.zeros((), dtype=torch.int64)

    def update(self, effects_bn: Tensor, change_b: Tensor, live_n: Tensor, n_active_n: Tensor) -> None:
        self.effects.append(effects_bn.cpu())
        self.changes.append(change_b.cpu())
        self.live, self.n_active = self.live | live_n, self.n_active + n_active_n

    def result(self, what: str, has_error: bool) -> SiteEffects:
        if not self.effects:
            raise DataError("no images to find a circuit on", fix="Give at least one discovery image.")
        per_image = torch.cat(self.effects)
        finite = per_image.isfinite().all(1)
        if not finite.all():
            raise DataError(
                f"{what} are not finite on {int((~finite).sum())} of {len(finite)} images, "
                f"the first at place {int((~finite).nonzero()[0])}",
                fix="Look for infinite activations or weights there.",
            )
        change = float(torch.cat(self.changes).double().mean())
        return SiteEffects(per_image, self.n_active, self.live, change, has_error)

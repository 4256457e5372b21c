"""How much each node adds to the objective.

The contribution of a node is m(clean) − m(do(node = baseline)), estimated by one of the methods; positive supports the
target. Effects of all nodes of a site, the error included, are compared with the change when the whole site is ablated.
Features and errors as nodes: Marks et al. 2024.
"""

# n images  B images of a batch  P positions  N nodes: features, then the error node

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.attribution import CleanBatch, InputPath, Method, summed
from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.config import EffectMethod
from mis_lab.circuit.methods.conductance import conductance
from mis_lab.circuit.methods.exact import exact
from mis_lab.circuit.methods.gradients import atp, atp_absolute, ig_inputs
from mis_lab.circuit.methods.ig import ig
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_targets_and_nodes
from mis_lab.circuit.splice import ablations, nothing_kept
from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.model.intervene import Replacement


class Estimate(NamedTuple):
    """A method, and what its effects are against.

    Attributes:
        method: what makes contributions of a batch.
        signed: whether effects have signs and add up to the change of the whole site.
        from_start: whether nodes start where they are at the start of the input path, not at their baselines.
    """

    method: Method
    signed: bool = True
    from_start: bool = False


METHODS: dict[EffectMethod, Estimate] = {
    EffectMethod.atp: Estimate(atp),
    EffectMethod.ig_inputs: Estimate(ig_inputs),
    EffectMethod.ig: Estimate(ig),
    EffectMethod.conductance: Estimate(conductance, from_start=True),
    EffectMethod.exact: Estimate(exact),
    EffectMethod.atp_absolute: Estimate(atp_absolute, signed=False),
}


@dataclass(frozen=True, eq=False)
class SiteEffects:
    """Effects of all nodes of one kind at one site, over the discovery images.

    Attributes:
        per_image: (n, N) contribution of each node on each image, summed over positions with its sign; the mean of
            sizes over positions when not `signed`.
        n_active: (N,) int64, images on which the node is not zero (all of them for the error node).
        live: (N,) bool, whether the node ever differs from its baseline; the error node always counts.
        change: mean m(clean) − mean m(do(site = where its nodes start)), with the whole site replaced. Nodes start at
            their baselines; for ``conductance`` where they are on the image that the input path starts from, which at a
            site that all of the network passes through makes the change m(clean) − m(that image).
        has_error: whether the last node is the error.
        signed: whether effects have signs, so that their sum means something.
    """

    per_image: Tensor
    n_active: Tensor
    live: Tensor
    change: float
    has_error: bool
    signed: bool = True

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
        """|effect_sum − change| / |change|: how far effects miss ablating the whole site.

        NaN at change 0, and for effects without a sign.
        """
        if not self.signed or not self.change:
            return float("nan")
        return abs(self.effect_sum - self.change) / abs(self.change)

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
        node_sets: kind → nodes; all kinds share what passes they can.
        images: batches (B, C, H, W), the discovery images.
        targets_n: the class of each image that the objective reads.
        path: used by ``ig_inputs`` and ``conductance``, its rule by ``ig`` as well.

    Raises:
        ConfigError: when the objective does not depend on a site.
        DataError: without images, or when an effect is not finite.
    """
    estimate = METHODS[method]
    dictionaries = {kind: dictionaries_of(nodes) for kind, nodes in node_sets.items()}
    tallies = {kind: {site_path: _Tally() for site_path in of_kind} for kind, of_kind in dictionaries.items()}
    for images_bchw, targets_b, of_batch in progress(
        with_targets_and_nodes(images, targets_n, node_sets), "circuit effects", total=len(images), unit="batch"
    ):
        batch = CleanBatch.of(problem, images_bchw, targets_b)
        start = _at_start(problem, batch, path) if estimate.from_start else {}
        for kind, contributions in estimate.method(problem, batch, of_batch, path, summed).items():
            for site_path, effects_bn in contributions.items():
                nodes = of_batch[kind][site_path]
                only = {site_path: nodes}
                without = start if estimate.from_start else ablations(only, nothing_kept(only))
                with torch.inference_mode():
                    ablated_b = problem.values(images_bchw, targets_b, {site_path: without[site_path]})
                    live_n, n_active_n = _activity(nodes, batch.vectors[site_path])
                tallies[kind][site_path].update(effects_bn, batch.objective_b - ablated_b, live_n, n_active_n)
    return {
        kind: {
            site_path: tally.result(
                f"{kind} effects at site {site_path}", dictionaries[kind][site_path].has_error, estimate.signed
            )
            for site_path, tally in of_kind.items()
        }
        for kind, of_kind in tallies.items()
    }


def _at_start(problem: Problem, batch: CleanBatch, path: InputPath) -> dict[str, Replacement]:
    """Site path → what puts the vectors of the path's start in the place of any image's."""
    start_bchw = path.images(batch.images_bchw[:1], 0.0)
    vectors = problem.observe(start_bchw, batch.targets_b[:1]).vectors

    def putting(start_bpd: Tensor) -> Replacement:
        return lambda x_bpd: start_bpd.expand_as(x_bpd).clone()

    return {site_path: putting(start_bpd) for site_path, start_bpd in vectors.items()}


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

    def result(self, what: str, has_error: bool, signed: bool) -> SiteEffects:
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
        return SiteEffects(per_image, self.n_active, self.live, change, has_error, signed)

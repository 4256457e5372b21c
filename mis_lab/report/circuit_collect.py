"""From the result of the stage ``circuit`` to what the page shows: the pictured circuit, edges, curves, scores."""

# K live nodes of a kind  U scored units of a source

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.minimality import NEEDLESS
from mis_lab.circuit.result import CircuitResult, KindResult
from mis_lab.core.intervals import Interval
from mis_lab.dataset.base import ImageDataset
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.report.circuit_data import (
    CircuitDetails,
    CircuitEdge,
    CmdDifference,
    CompletenessCurve,
    Need,
    RankedNodes,
    SiteActivity,
)
from mis_lab.report.circuit_meaning import coverage_by_site
from mis_lab.report.data import CircuitNode, CircuitSite, CircuitView, FaithfulnessCurve, UnitImage

NODE_IMAGES = 4
TARGETS = {"prediction": "the network's own top class of each image", "label": "each image's label"}

# (site, kind) → scores of its units.
Scores = Mapping[tuple[str, str], UnitScores]
# Site, kind, units, number of images → the images that excite each unit most.
TopImages = Callable[[str, str, Sequence[int], int], Sequence[Sequence[UnitImage]]]


def circuit_view(result: CircuitResult, dataset: ImageDataset, scores: Scores, top_images: TopImages) -> CircuitView:
    """The pictured circuit: of features, of neurons where there are none.

    Args:
        dataset: that the circuit's images are from.
    """
    shown = _shown(result)
    group_of = dict(zip(dataset.ids, dataset.groups, strict=True))
    settings = result.settings
    coverage = coverage_by_site(shown.edges) if shown.edges is not None else {}
    return CircuitView(
        objective=settings["objective"],
        target=TARGETS.get(settings["target"], settings["target"]),
        method=settings["method"],
        baseline=settings["baseline"],
        n_discovery=len(result.discovery_ids),
        n_evaluation=len(result.evaluation_ids),
        n_discovery_groups=len({group_of[image] for image in result.discovery_ids}),
        n_evaluation_groups=len({group_of[image] for image in result.evaluation_ids}),
        sites=[
            CircuitSite(site.path, site.n_live, site.attribution_gap, site.error_share, coverage.get(site.path))
            for site in shown.sites
        ],
        nodes=_nodes(shown, scores, top_images),
    )


def circuit_details(result: CircuitResult, scores: Scores) -> CircuitDetails:
    """What stands beside it; of both kinds where a kind is named."""
    shown = _shown(result)
    return CircuitDetails(
        edges=_edges(shown),
        completeness=[_completeness(kind, of_kind) for kind, of_kind in result.kinds.items() if of_kind.complement],
        ranked=[_ranked(of_kind, scores) for of_kind in result.kinds.values()],
        activity=[
            SiteActivity(
                site,
                kind,
                beside.circuit.n_images,
                beside.everything.n_images,
                beside.circuit.density.numpy(),
                beside.everything.density.numpy(),
                beside.circuit.dead_share,
                beside.everything.dead_share,
                beside.silent_here,
            )
            for kind, of_kind in result.kinds.items()
            for site, beside in of_kind.activity.items()
        ],
        need=Need(shown.minimality.median, shown.minimality.needless(), NEEDLESS) if shown.minimality else None,
        agreement=[(kind, of_kind.agreement) for kind, of_kind in result.kinds.items() if of_kind.agreement],
        cmd_differences=[
            CmdDifference(kind, other, difference)
            for kind, of_kind in result.kinds.items()
            for other, difference in of_kind.cmd_differences.items()
        ],
    )


def faithfulness_curves(result: CircuitResult) -> list[FaithfulnessCurve]:
    """Of each kind: by effect, other circuits, random ones."""
    found = []
    for kind, of_kind in result.kinds.items():
        curve, random = of_kind.curve, of_kind.curve.random
        found.append(_faithfulness(kind, "effect", curve, curve.live_only))
        found += [_faithfulness(kind, name, other) for name, other in of_kind.others.items()]
        found.append(FaithfulnessCurve(kind, "random", curve.sizes, random.mean(0), random.min(0), random.max(0)))
    return found


def _shown(result: CircuitResult) -> KindResult:
    return result.features or result.neurons


def _faithfulness(kind: str, selection: str, curve: Curve, live_only: float | None = None) -> FaithfulnessCurve:
    estimate, low, high = (np.asarray(part) for part in curve.faithfulness)
    return FaithfulnessCurve(kind, selection, curve.sizes, estimate, low, high, curve.cpr, curve.cmd, live_only)


def _completeness(kind: str, of_kind: KindResult) -> CompletenessCurve:
    assert of_kind.complement is not None
    estimate, low, high = (np.asarray(part) for part in of_kind.complement.completeness)
    return CompletenessCurve(kind, of_kind.complement.sizes, estimate, low, high)


def _nodes(shown: KindResult, scores: Scores, top_images: TopImages) -> list[CircuitNode]:
    kind, nodes = shown.circuit.kind, shown.shown.nodes
    units: dict[str, list[int]] = {}
    for node in nodes:
        if node.feature != ERROR:
            units.setdefault(node.site, []).append(node.feature)
    images = {
        (site, unit): found
        for site, of_site in units.items()
        for unit, found in zip(of_site, top_images(site, kind, of_site, NODE_IMAGES), strict=True)
    }
    needed = {}
    if shown.minimality is not None:
        needed = dict(zip(shown.minimality.circuit.nodes, shown.minimality.per_node.tolist(), strict=True))
    rows = zip(nodes, shown.shown.effect.tolist(), shown.shown.standard_error.tolist(), strict=True)
    return [
        CircuitNode(
            site=node.site,
            kind="error" if node.feature == ERROR else kind,
            number=None if node.feature == ERROR else node.feature,
            effect=effect,
            effect_se=error,
            mis=None if node.feature == ERROR else _score(scores, node.site, kind, node.feature),
            images=images.get((node.site, node.feature), ()),
            minimality=needed.get(node),
        )
        for node, effect, error in rows
    ]


def _edges(shown: KindResult) -> list[CircuitEdge]:
    """Edges whose ends are pictured, the strongest first."""
    if shown.edges is None:
        return []
    place = {node: number for number, node in enumerate(shown.shown.nodes)}
    rows = zip(shown.edges.ends, shown.edges.weight.tolist(), shown.edges.standard_error.tolist(), strict=True)
    found = [
        CircuitEdge(place[source], None if target is None else place[target], weight, error)
        for (source, target), weight, error in rows
        if source in place and (target is None or target in place)
    ]
    return sorted(found, key=lambda edge: -abs(edge.weight))


def _ranked(of_kind: KindResult, scores: Scores) -> RankedNodes:
    circuit = of_kind.circuit
    site, feature = circuit.site.numpy(), circuit.feature.numpy()
    mis, everyone = np.full(len(circuit), np.nan), []
    for number, path in enumerate(circuit.n_nodes):
        if (path, circuit.kind) in scores:
            of_site = scores[path, circuit.kind]
            soft = np.asarray(_headline(of_site).estimate, dtype=np.float64)
            by_unit = np.full(circuit.n_nodes[path], np.nan)
            by_unit[of_site.units.numpy()] = soft
            here = (site == number) & (feature != ERROR)
            mis[here] = by_unit[feature[here]]
            everyone.append(soft[np.isfinite(soft)])
    scored = np.concatenate(everyone) if everyone else np.empty(0)
    level = float(scored.mean()) if scored.size else float("nan")
    return RankedNodes(circuit.kind, list(circuit.n_nodes), site, circuit.effect.numpy(), feature == ERROR, mis, level)


def _headline(scores: UnitScores) -> Interval:
    """(U,) the headline score of a source's units."""
    return next(iter(scores.by_negatives.values())).scores.soft


def _score(scores: Scores, site: str, kind: str, unit: int) -> Interval | None:
    if (site, kind) not in scores:
        return None
    row = (scores[site, kind].units == unit).nonzero().flatten().tolist()
    if not row:
        return None
    found = Interval(*(float(np.asarray(part)[row[0]]) for part in _headline(scores[site, kind])))
    return found if np.isfinite(found.estimate) else None

"""What the stage ``circuit`` leaves behind: circuits of features and neurons, their curves, numbers per site.

In its folder: ``circuit.json`` (the numbers for people), ``inputs.safetensors`` (mean image, targets), and for each
kind a folder: the ranked nodes, their edges, the objective of every evaluation image with every circuit that was run,
the shown nodes' effects on every discovery image and where on it, and the picture as Graphviz text.
"""

# n discovery images  V shown nodes  k images a node  H, W grid of a site

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mis_lab.circuit.activity import ActivityBeside
from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.completeness import ComplementCurve
from mis_lab.circuit.dot import circuit_dot
from mis_lab.circuit.effects import SiteEffects
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.graph import Agreement, Edges
from mis_lab.circuit.minimality import Minimality
from mis_lab.circuit.pictured import strongest_images
from mis_lab.circuit.stored import (
    read_activity,
    read_agreement,
    read_complement,
    read_curve,
    read_minimality,
    write_activity,
    write_agreement,
    write_curve,
    write_minimality,
)
from mis_lab.circuit.told import (
    interval_of,
    median_coverage,
    numbers,
    of_activity,
    of_agreement,
    of_areas,
    of_complement,
    of_curve,
    of_edges,
    of_minimality,
    of_other,
    of_shown,
)
from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json, write_json, write_text
from mis_lab.core.intervals import Interval
from mis_lab.core.tensors import read_tensors, write_tensors

VERSION = 3
KINDS = ("feature", "neuron")


@dataclass(frozen=True)
class SiteSummary:
    """One site's effects in numbers, as in :class:`~mis_lab.circuit.effects.SiteEffects`.

    Attributes:
        n_nodes, n_live: all nodes, and those that count (see ``SiteEffects.live``).
        effect_sum, change, attribution_gap: Σ of effects, what ablating the whole site does, how far they
            differ.
        error_share: |E_error| / Σ |E|.
    """

    path: str
    n_nodes: int
    n_live: int
    effect_sum: float
    change: float
    attribution_gap: float
    error_share: float

    @classmethod
    def of(cls, path: str, effects: SiteEffects) -> SiteSummary:
        return cls(
            path,
            effects.live.numel(),
            int(effects.live.sum()),
            effects.effect_sum,
            effects.change,
            effects.attribution_gap,
            effects.error_share,
        )


@dataclass(frozen=True, eq=False)
class KindResult:
    """Circuits of one kind of nodes.

    Attributes:
        circuit: all live nodes, the largest |effect| first.
        sites: a summary a site.
        curve: faithfulness on the evaluation images.
        shown_effects: (V, n) contribution of each of the first V nodes on each discovery image.
        shown_maps: a node of the pictured circuit: (k, H, W) its effect at each position of its k
            :meth:`strongest_images`; empty where none were asked for, or effects have no positions (``exact``).
        edges: between the nodes of the pictured circuit and every site's error, and into the objective; None when not
            asked for. The picture draws :meth:`~mis_lab.circuit.graph.Edges.strongest` of them.
        complement: completeness, on the evaluation images.
        minimality: of the pictured circuit, error nodes left out unless they are nodes like any; on the evaluation
            images.
        others: name → curve of other circuits of the same nodes, on the same images: ``by_change`` (nodes ordered by
            how much they change), ``class NAME`` (found on the images of one of several classes).
        cmd_differences: name → CMD of this circuit minus that of another, with its paired interval: every one of
            `others`, ``best_random``, ``neuron`` (beside features), ``class A against class B`` on the images of A.
        agreement: effects beside exact ones, of the largest nodes and of random ones.
        edge_agreement: ``source→target`` → linear edges beside exact ones; empty when not asked for.
        activity: site path → how active its nodes are on the discovery images, and on all scored images.
    """

    circuit: Circuit
    sites: tuple[SiteSummary, ...]
    curve: Curve
    shown_effects: Tensor
    shown_maps: tuple[Tensor, ...] = ()
    edges: Edges | None = None
    complement: ComplementCurve | None = None
    minimality: Minimality | None = None
    others: Mapping[str, Curve] = field(default_factory=dict)
    cmd_differences: Mapping[str, Interval] = field(default_factory=dict)
    agreement: ExactAgreement | None = None
    edge_agreement: Mapping[str, Agreement] = field(default_factory=dict)
    activity: Mapping[str, ActivityBeside] = field(default_factory=dict)

    @property
    def shown(self) -> Circuit:
        """The pictured circuit."""
        return self.circuit.top(len(self.shown_effects))

    def strongest_images(self, n_images: int) -> Tensor:
        """(V, up to `n_images`) places in the discovery set where a node does most, in its mean's sign."""
        return strongest_images(self.shown, self.shown_effects, n_images)

    @property
    def completeness_shown(self) -> float:
        """Completeness of the measured size nearest to the pictured circuit's; NaN without a curve."""
        if self.complement is None:
            return float("nan")
        nearest = np.abs(self.complement.sizes - len(self.shown)).argmin()
        return float(np.asarray(self.complement.completeness.estimate)[nearest])

    def headline(self) -> dict[str, float]:
        """The numbers to look at first, flat; those of what was not measured are left out."""
        found = of_areas(self.curve)
        if self.complement is not None:
            found["completeness_shown"] = self.completeness_shown
        if self.minimality is not None:
            found |= {"minimality": self.minimality.median, "needless_share": self.minimality.needless()}
        for name, interval in self.cmd_differences.items():
            limits = zip(("", "/low", "/high"), numbers(interval), strict=True)
            found |= {f"cmd_difference/{name}{limit}": number for limit, number in limits}
        if self.edges is not None:
            found |= {"n_edges": len(self.edges), "n_vjps": self.edges.n_vjps, "n_forwards": self.edges.n_forwards}
            found["median_coverage"] = median_coverage(self.edges)
        if self.agreement is not None:
            for name, correlation in (("top", self.agreement.top), ("random", self.agreement.random)):
                found |= {f"exact/{name}/pearson": correlation.pearson, f"exact/{name}/spearman": correlation.spearman}
        for link, compared in self.edge_agreement.items():
            found[f"edges/{link}/pearson"] = compared.pearson
        for site in self.sites:
            found[f"{site.path}/attribution_gap"] = site.attribution_gap
            found[f"{site.path}/error_share"] = site.error_share
        for path, beside in self.activity.items():
            found[f"{path}/dead_share"] = beside.circuit.dead_share
        return found

    def _write(self, folder: Path, edges_per_node: int) -> None:
        self.circuit.save(folder)
        maps = {f"map_{place}": of_node for place, of_node in enumerate(self.shown_maps)}
        write_tensors(folder / "shown.safetensors", {"effects": self.shown_effects} | maps)
        write_curve(folder / "curve.safetensors", self.curve)
        for place, other in enumerate(self.others.values()):
            write_curve(folder / f"other_{place}.safetensors", other)
        if self.complement is not None:
            write_curve(folder / "complement.safetensors", self.complement)
        if self.minimality is not None:
            write_minimality(folder, self.minimality)
        if self.edges is not None:
            self.edges.save(folder)
        sites = list(self.circuit.n_nodes)
        if self.agreement is not None:
            write_agreement(folder / "agreement.safetensors", self.agreement, sites)
        if self.activity:
            write_activity(folder / "activity.safetensors", self.activity)
        drawn = None if self.edges is None else self.edges.strongest(edges_per_node)
        write_text(folder / "circuit.dot", circuit_dot(self.shown, edges=drawn))

    @classmethod
    def _read(cls, folder: Path, kind: str, told: Mapping[str, Any]) -> KindResult:
        circuit, shown = Circuit.load(folder), read_tensors(folder / "shown.safetensors")
        sites = list(circuit.n_nodes)
        others = {
            name: read_curve(folder / f"other_{place}.safetensors", kind) for place, name in enumerate(told["others"])
        }
        complement, agreement = folder / "complement.safetensors", folder / "agreement.safetensors"
        return cls(
            circuit,
            tuple(SiteSummary(**site) for site in told["sites"]),
            read_curve(folder / "curve.safetensors", kind),
            shown["effects"],
            tuple(shown[f"map_{place}"] for place in range(len(shown) - 1)),
            Edges.load(folder) if told["edges"] else None,
            read_complement(complement, kind) if told["completeness"] else None,
            read_minimality(folder) if told["minimality"] else None,
            others,
            {name: interval_of(limits) for name, limits in told["cmd_differences"].items()},
            read_agreement(agreement, sites) if told["agreement"] else None,
            {name: Agreement(**of_link) for name, of_link in told["edge_agreement"].items()},
            read_activity(folder / "activity.safetensors", sites) if told["activity"] else {},
        )

    def _told(self) -> dict[str, Any]:
        return {
            "sites": [asdict(site) for site in self.sites],
            **of_curve(self.curve),
            "completeness": of_complement(self.complement) if self.complement else None,
            "minimality": of_minimality(self.minimality) if self.minimality else None,
            "others": {name: of_other(curve) for name, curve in self.others.items()},
            "cmd_differences": {name: numbers(limits) for name, limits in self.cmd_differences.items()},
            "edges": of_edges(self.edges) if self.edges is not None else None,
            "edge_agreement": {name: of_link._asdict() for name, of_link in self.edge_agreement.items()},
            "agreement": of_agreement(self.agreement) if self.agreement else None,
            "activity": of_activity(self.activity),
            "shown": of_shown(self.shown),
        }


@dataclass(frozen=True, eq=False)
class CircuitResult:
    """Circuits of a network on a data set.

    Attributes:
        features: circuits of SAE features and error nodes; None without SAEs.
        neurons: circuits of the same sites' neurons.
        discovery_ids, evaluation_ids: the images circuits were found on, and evaluated on.
        discovery_targets, evaluation_targets: (n,) int64, the class each objective reads.
        mean_image: (C, H, W) float64, mean of the discovery images as the network gets them: where
            ``ig_inputs`` starts.
        passes_by: site path → share of the objective's change that passes by the site; about 0 for cut sets.
        missed_by_sae: site path → share of the variance on a few discovery images that its SAE misses.
        settings: the options, for reading along.
    """

    features: KindResult | None
    neurons: KindResult
    discovery_ids: tuple[str, ...]
    evaluation_ids: tuple[str, ...]
    discovery_targets: Tensor
    evaluation_targets: Tensor
    mean_image: Tensor
    settings: Mapping[str, Any]
    passes_by: Mapping[str, float] = field(default_factory=dict)
    missed_by_sae: Mapping[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, KindResult]:
        """Kind of nodes → its circuits; features first."""
        both = zip(KINDS, (self.features, self.neurons), strict=True)
        return {kind: result for kind, result in both if result is not None}

    def headline(self) -> dict[str, float]:
        """The numbers to look at first, flat: ``feature/cmd`` and so on."""
        return {
            f"{kind}/{name}": number
            for kind, result in self.kinds.items()
            for name, number in result.headline().items()
        }

    def write(self, folder: Path) -> None:
        """Write everything into `folder`; ``circuit.json`` comes last."""
        tensors = {name: getattr(self, name) for name in ("mean_image", "discovery_targets", "evaluation_targets")}
        write_tensors(folder / "inputs.safetensors", tensors)
        for kind, result in self.kinds.items():
            result._write(folder / kind, self.settings["edges_per_node"])
        write_json(
            folder / "circuit.json",
            {
                "version": VERSION,
                "settings": dict(self.settings),
                "passes_by": dict(self.passes_by),
                "missed_by_sae": dict(self.missed_by_sae),
                "discovery_ids": list(self.discovery_ids),
                "evaluation_ids": list(self.evaluation_ids),
                "kinds": {kind: result._told() for kind, result in self.kinds.items()},
            },
        )

    @classmethod
    def read(cls, folder: Path) -> CircuitResult:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: when there is no result there, or it has another version.
        """
        path = folder / "circuit.json"
        if not path.exists():
            raise StoreError(f"no circuits in {folder}", looked=path, fix="Run the stage circuit.")
        told = read_json(path)
        if told["version"] != VERSION:
            raise StoreError(
                f"{path} has version {told['version']}, this mis_lab reads {VERSION}",
                fix="Find circuits again.",
            )
        kinds = {kind: KindResult._read(folder / kind, kind, of_kind) for kind, of_kind in told["kinds"].items()}
        tensors = read_tensors(folder / "inputs.safetensors")
        return cls(
            features=kinds.get("feature"),
            neurons=kinds["neuron"],
            discovery_ids=tuple(told["discovery_ids"]),
            evaluation_ids=tuple(told["evaluation_ids"]),
            settings=told["settings"],
            passes_by=told["passes_by"],
            missed_by_sae=told["missed_by_sae"],
            **tensors,
        )

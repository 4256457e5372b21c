"""What the stage ``circuit`` leaves behind: circuits of features and neurons, their curves, numbers per site.

In its folder: ``circuit.json`` (the numbers for people), ``inputs.safetensors`` (mean image, targets), and
for each kind a folder: the ranked nodes, the objective of every evaluation image at every size, the shown
nodes' effects on every discovery image, and the picture as Graphviz text.
"""

# n discovery images  S sizes  R random draws  V shown nodes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.activity import ActivityBeside
from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.completeness import ComplementCurve
from mis_lab.circuit.dot import circuit_dot
from mis_lab.circuit.effects import SiteEffects
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.graph import Edges
from mis_lab.circuit.minimality import Minimality
from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json, write_json, write_text
from mis_lab.core.tensors import read_tensors, write_tensors

VERSION = 1
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
        edges: between shown nodes, and to the objective.
        complement: what is left without the circuit, on the evaluation images.
        minimality: what each shown node does for the circuit.
        others: name of another order of the nodes, or another circuit → its curve.
        activity: site path → nodes on the circuit's images and on all.
        agreement: effects beside exact ones, of some nodes.
    """

    circuit: Circuit
    sites: tuple[SiteSummary, ...]
    curve: Curve
    shown_effects: Tensor
    edges: Edges | None = None
    complement: ComplementCurve | None = None
    minimality: Minimality | None = None
    others: Mapping[str, Curve] | None = None
    activity: Mapping[str, ActivityBeside] | None = None
    agreement: ExactAgreement | None = None

    @property
    def shown(self) -> Circuit:
        """The pictured circuit."""
        return self.circuit.top(len(self.shown_effects))

    def strongest_images(self, n_images: int) -> Tensor:
        """(V, up to `n_images`) places in the discovery set where a node does most, in its mean's sign."""
        signs = torch.where(self.shown.effect < 0, -1.0, 1.0)
        order = (self.shown_effects.double() * signs[:, None]).argsort(dim=1, descending=True, stable=True)
        return order[:, :n_images]

    def _write(self, folder: Path) -> None:
        self.circuit.save(folder)
        write_tensors(folder / "shown.safetensors", {"effects": self.shown_effects})
        curve = self.curve
        arrays = {name: getattr(curve, name) for name in ("sizes", "values", "random_values", "live_values")}
        write_tensors(folder / "curve.safetensors", {name: torch.tensor(array) for name, array in arrays.items()})
        write_text(folder / "circuit.dot", circuit_dot(self.shown, edges=self.edges))

    @classmethod
    def _read(cls, folder: Path, kind: str, told: Mapping[str, Any]) -> KindResult:
        arrays = {name: values.numpy() for name, values in read_tensors(folder / "curve.safetensors").items()}
        return cls(
            Circuit.load(folder),
            tuple(SiteSummary(**site) for site in told["sites"]),
            Curve(kind, **arrays, n_bootstrap=told["n_bootstrap"], seed=told["seed"]),
            read_tensors(folder / "shown.safetensors")["effects"],
        )

    def _told(self) -> dict[str, Any]:
        curve, shown = self.curve, self.shown
        faithfulness, random = curve.faithfulness, curve.random
        rows = zip(shown.nodes, shown.effect, shown.standard_error, shown.n_active, strict=True)
        return {
            "sites": [asdict(site) for site in self.sites],
            "sizes": curve.sizes.tolist(),
            "fractions": curve.fractions.tolist(),
            "faithfulness": _listed(faithfulness.estimate),
            "low": _listed(faithfulness.low),
            "high": _listed(faithfulness.high),
            "random": {
                "mean": _listed(random.mean(0)),
                "lowest": _listed(random.min(0)),
                "highest": _listed(random.max(0)),
            },
            "live_only": curve.live_only,
            "cpr": [float(number) for number in curve.cpr],
            "cmd": [float(number) for number in curve.cmd],
            "random_cpr": _listed(curve.random_cpr),
            "random_cmd": _listed(curve.random_cmd),
            "n_bootstrap": curve.n_bootstrap,
            "seed": curve.seed,
            "shown": [
                {
                    "site": node.site,
                    "feature": node.feature,
                    "effect": float(effect),
                    "standard_error": float(error),
                    "n_active": int(n_active),
                }
                for node, effect, error, n_active in rows
            ],
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

    @property
    def kinds(self) -> dict[str, KindResult]:
        """Kind of nodes → its circuits; features first."""
        both = zip(KINDS, (self.features, self.neurons), strict=True)
        return {kind: result for kind, result in both if result is not None}

    def write(self, folder: Path) -> None:
        """Write everything into `folder`; ``circuit.json`` comes last."""
        tensors = {name: getattr(self, name) for name in ("mean_image", "discovery_targets", "evaluation_targets")}
        write_tensors(folder / "inputs.safetensors", tensors)
        for kind, result in self.kinds.items():
            result._write(folder / kind)
        write_json(
            folder / "circuit.json",
            {
                "version": VERSION,
                "settings": dict(self.settings),
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
            **tensors,
        )


def _listed(values: Any) -> list[float]:
    return np.asarray(values, dtype=np.float64).tolist()

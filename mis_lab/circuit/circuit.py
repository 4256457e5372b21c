"""A circuit: nodes in the order of the size of their effects; its first n are the circuit of size n."""

# K nodes of the circuit  N nodes of a site: its features, then the error node where there is one

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.circuit.effects import SiteEffects
from mis_lab.core.files import read_json, write_json
from mis_lab.core.tensors import read_tensors, write_tensors

ERROR = -1  # the number of a site's error node, where features have theirs


class Node(NamedTuple):
    """Feature (or neuron) `feature` of a site, or its error node when that is :data:`ERROR`."""

    site: str
    feature: int


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes, the one with the largest |effect| first.

    Attributes:
        kind: ``feature`` or ``neuron``.
        n_nodes: site path → number of all its nodes, in the order of the network.
        has_error: whether the last node of each site is its error node.
        site: (K,) int64, which site.
        feature: (K,) int64, which feature; :data:`ERROR` for the error node.
        effect: (K,) float64, mean contribution over the discovery images; positive supports the target.
        standard_error: (K,) float64.
        n_active: (K,) int64, discovery images on which the node is not zero.
    """

    kind: str
    n_nodes: Mapping[str, int]
    has_error: bool
    site: Tensor
    feature: Tensor
    effect: Tensor
    standard_error: Tensor
    n_active: Tensor

    def __len__(self) -> int:
        return len(self.site)

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in order."""
        paths = list(self.n_nodes)
        return [Node(paths[s], f) for s, f in zip(self.site.tolist(), self.feature.tolist(), strict=True)]

    def take(self, order: Tensor) -> Circuit:
        """The nodes at `order`, in that order."""
        rows = {name: getattr(self, name)[order] for name in _ROWS}
        return replace(self, **rows)

    def top(self, n: int) -> Circuit:
        """The circuit of the first `n` nodes."""
        return self.take(torch.arange(min(n, len(self))))

    def shuffled(self, generator: torch.Generator) -> Circuit:
        """The same nodes in random order: its tops are random circuits, each within the next."""
        return self.take(torch.randperm(len(self), generator=generator))

    def kept(self) -> dict[str, Tensor]:
        """Site path → (N,) bool, what :mod:`mis_lab.circuit.splice` keeps."""
        masks = {}
        for number, (path, n_nodes) in enumerate(self.n_nodes.items()):
            masks[path] = torch.zeros(n_nodes, dtype=torch.bool)
            masks[path][self.feature[self.site == number]] = True  # ERROR = -1 is the last node
        return masks

    def save(self, folder: Path, name: str = "circuit") -> None:
        """Write ``<name>.json`` (what it is) and ``<name>.safetensors`` (its rows)."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f"{name}.safetensors", {row: getattr(self, row) for row in _ROWS})
        write_json(
            folder / f"{name}.json",
            {
                "kind": self.kind,
                "n_nodes": dict(self.n_nodes),
                "has_error": self.has_error,
                "size": len(self),
            },
        )

    @classmethod
    def load(cls, folder: Path, name: str = "circuit") -> Circuit:
        """Read what :meth:`save` wrote."""
        about = read_json(folder / f"{name}.json")
        rows = read_tensors(folder / f"{name}.safetensors")
        return cls(about["kind"], about["n_nodes"], about["has_error"], **rows)


_ROWS = ("site", "feature", "effect", "standard_error", "n_active")


def rank(kind: str, effects: Mapping[str, SiteEffects]) -> Circuit:
    """All live nodes by |mean effect|, largest first; equal ones stay in the order of site and feature."""
    rows: dict[str, list[Tensor]] = {name: [] for name in _ROWS}
    for number, of_site in enumerate(effects.values()):
        feature = torch.arange(of_site.live.numel())
        if of_site.has_error:
            feature[-1] = ERROR
        live = of_site.live
        rows["site"].append(torch.full_like(feature, number)[live])
        rows["feature"].append(feature[live])
        rows["effect"].append(of_site.mean[live])
        rows["standard_error"].append(of_site.standard_error[live])
        rows["n_active"].append(of_site.n_active[live])
    columns = {name: torch.cat(parts) for name, parts in rows.items()}
    circuit = Circuit(
        kind,
        {path: of_site.live.numel() for path, of_site in effects.items()},
        any(of_site.has_error for of_site in effects.values()),
        **columns,
    )
    return circuit.take(circuit.effect.abs().argsort(descending=True, stable=True))


class Overlap(NamedTuple):
    """Nodes that two circuits share: their number, and their share of all nodes in either (Jaccard)."""

    n_shared: int
    jaccard: float


def overlap(a: Circuit, b: Circuit) -> Overlap:
    """How much two circuits of one kind have in common; two empty circuits have everything in common.

    Raises:
        ValueError: when one holds features and the other neurons.
    """
    if a.kind != b.kind:
        raise ValueError(f"a circuit of {a.kind}s has no overlap with one of {b.kind}s")
    nodes_a, nodes_b = set(a.nodes), set(b.nodes)
    either = len(nodes_a | nodes_b)
    shared = len(nodes_a & nodes_b)
    return Overlap(shared, shared / either if either else 1.0)

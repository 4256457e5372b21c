"""The edges of a circuit as a list, from nodes to nodes and to the objective, and how linear ones agree with exact.

Only edges between chosen nodes are there, and of those none that is zero.
"""

# E edges  S pairs of an upstream node and a downstream site

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mis_lab.circuit.circuit import Node
from mis_lab.circuit.config import EdgeMethod
from mis_lab.circuit.edges import LinkEdges
from mis_lab.circuit.effects import SiteEffects
from mis_lab.core.errors import ConfigError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.tensors import read_tensors, write_tensors

OBJECTIVE = -1  # where sites have their numbers


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of nodes of one kind.

    Attributes:
        kind: ``feature`` or ``neuron``.
        sites: paths, in the order of the network; others are numbers into them.
        methods: of each link (``source→target``), ``vjp`` or ``exact``.
        n_vjps, n_forwards: passes that all links took.
        source_site, source_feature: (E,) int64, where an edge begins; feature
            :data:`~mis_lab.circuit.circuit.ERROR` is the error node.
        target_site, target_feature: (E,) int64, where it ends; site :data:`OBJECTIVE` is the objective.
        weight: (E,) float64, mean over images of what the source adds to the objective through the target.
        standard_error: (E,) float64.
        total_site, total_feature, total_target: (S,) int64, a node and a later site.
        total: (S,) float64, weight of that node through the whole of that site.
    """

    kind: str
    sites: tuple[str, ...]
    methods: dict[str, str]
    n_vjps: int
    n_forwards: int
    source_site: Tensor
    source_feature: Tensor
    target_site: Tensor
    target_feature: Tensor
    weight: Tensor
    standard_error: Tensor
    total_site: Tensor
    total_feature: Tensor
    total_target: Tensor
    total: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def ends(self) -> list[tuple[Node, Node | None]]:
        """Both nodes of each edge; None is the objective."""
        columns = (self.source_site, self.source_feature, self.target_site, self.target_feature)
        return [
            (Node(self.sites[site], feature), None if target == OBJECTIVE else Node(self.sites[target], into))
            for site, feature, target, into in zip(*(column.tolist() for column in columns), strict=True)
        ]

    @property
    def coverage(self) -> Tensor:
        """(S,) float64: Σ of a node's edges into a site / their total; NaN at total 0."""
        place = {
            key: row
            for row, key in enumerate(
                zip(self.total_site.tolist(), self.total_feature.tolist(), self.total_target.tolist(), strict=True)
            )
        }
        inner = self.target_site != OBJECTIVE
        columns = (self.source_site, self.source_feature, self.target_site)
        keys = zip(*(column[inner].tolist() for column in columns), strict=True)
        rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
        told = torch.zeros_like(self.total).index_add_(0, rows, self.weight[inner])
        return told / torch.where(self.total == 0, torch.nan, self.total)

    def take(self, which: Tensor) -> Edges:
        """The edges at `which` (numbers or a mask), in that order; totals stay."""
        return replace(self, **{name: getattr(self, name)[which] for name in _ROWS})

    def strongest(self, n_per_target: int) -> Edges:
        """For every target node, the objective too, the `n_per_target` edges of largest |weight| into it."""
        by_size = self.weight.abs().argsort(descending=True, stable=True)
        seen: dict[tuple[int, int], int] = {}
        kept = []
        for edge in by_size.tolist():
            target = (int(self.target_site[edge]), int(self.target_feature[edge]))
            seen[target] = seen.get(target, 0) + 1
            if seen[target] <= n_per_target:
                kept.append(edge)
        return self.take(torch.tensor(sorted(kept), dtype=torch.int64))

    def save(self, folder: Path, name: str = "edges") -> None:
        """Write ``<name>.json`` (what they are) and ``<name>.safetensors`` (rows)."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f"{name}.safetensors", {row: getattr(self, row) for row in (*_ROWS, *_TOTALS)})
        told = {about: getattr(self, about) for about in ("kind", "sites", "methods", "n_vjps", "n_forwards")}
        write_json(folder / f"{name}.json", told | {"sites": list(self.sites), "size": len(self)})

    @classmethod
    def load(cls, folder: Path, name: str = "edges") -> Edges:
        """Read what :meth:`save` wrote."""
        about = read_json(folder / f"{name}.json")
        return cls(
            about["kind"],
            tuple(about["sites"]),
            about["methods"],
            about["n_vjps"],
            about["n_forwards"],
            **read_tensors(folder / f"{name}.safetensors"),
        )


_ROWS = ("source_site", "source_feature", "target_site", "target_feature", "weight", "standard_error")
_TOTALS = ("total_site", "total_feature", "total_target", "total")


def join(kind: str, sites: Sequence[str], links: Sequence[LinkEdges], last: SiteEffects, chosen_last: Tensor) -> Edges:
    """All links, and the edges of the last site into the objective: effects of its nodes.

    Args:
        sites: paths in the order of the network.
        links: between any of them.
        last: effects of the nodes of the last site.
        chosen_last: which of them, features or :data:`~mis_lab.circuit.circuit.ERROR`.

    Raises:
        ConfigError: when a link is of other sites, or given twice.
    """
    names = [f"{link.source}→{link.target}" for link in links]
    strange = {path for link in links for path in (link.source, link.target)} - {*sites}
    if strange or len({*names}) < len(names):
        raise ConfigError(
            f"edges of site {min(strange)} do not belong here" if strange else "edges of a link were given twice",
            looked=", ".join(names),
        )
    number = {path: place for place, path in enumerate(sites)}
    rows: dict[str, list[Tensor]] = {name: [] for name in (*_ROWS, *_TOTALS)}

    def add(of: Sequence[str], *columns: Tensor) -> None:
        for name, column in zip(of, columns, strict=True):
            rows[name].append(column)

    for link in links:
        u, t = link.weight.nonzero().T
        source, target = number[link.source], number[link.target]
        ends = (torch.full_like(u, source), link.sources[u], torch.full_like(t, target), link.targets[t])
        add(_ROWS, *ends, link.weight[u, t], link.standard_error[u, t])
        to = (torch.full_like(link.sources, source), link.sources, torch.full_like(link.sources, target))
        add(_TOTALS, *to, link.total)
    end = torch.full_like(chosen_last, OBJECTIVE)
    nodes = (torch.full_like(chosen_last, len(sites) - 1), chosen_last, end, torch.zeros_like(chosen_last))
    add(_ROWS, *nodes, last.mean[chosen_last], last.standard_error[chosen_last])  # ERROR = -1 is the last node
    add(_TOTALS, *(torch.zeros(0, dtype=torch.int64),) * 3, torch.zeros(0, dtype=torch.float64))
    return Edges(
        kind,
        tuple(sites),
        {name: link.method.name for name, link in zip(names, links, strict=True)},
        sum(link.n_vjps for link in links),
        sum(link.n_forwards for link in links),
        **{name: torch.cat(parts) for name, parts in rows.items()},
    )


class Agreement(NamedTuple):
    """Linear against exact weights: correlations (NaN where one does not vary), and share of equal signs.

    `n_edges` are compared, all between nodes that both have; `n_signed` of them are not zero in both.
    """

    pearson: float
    spearman: float
    same_sign: float
    n_edges: int
    n_signed: int


def agreement(linear: LinkEdges, exact: LinkEdges) -> Agreement:
    """How well linear edges tell exact ones: a sample of nodes is enough for one of the two.

    Raises:
        ConfigError: when they are of two links, of other methods, or share no nodes.
    """
    if (linear.source, linear.target) != (exact.source, exact.target):
        raise ConfigError(f"edges {linear.source} → {linear.target} and {exact.source} → {exact.target} are others")
    if (linear.method, exact.method) != (EdgeMethod.vjp, EdgeMethod.exact):
        raise ConfigError(f"edges made by {linear.method.name} and {exact.method.name} were to be vjp and exact")
    pairs = [
        _shared(linear.sources, exact.sources),
        _shared(linear.targets, exact.targets),
    ]
    a, b = (
        link.weight[pairs[0][side]][:, pairs[1][side]].flatten().numpy() for side, link in enumerate((linear, exact))
    )
    if not len(a):
        raise ConfigError(f"no edges {linear.source} → {linear.target} are in both")
    signed = (a != 0) & (b != 0)
    varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Agreement(
        pearson=float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"),
        spearman=float(spearmanr(a, b).statistic) if varies else float("nan"),
        same_sign=float((np.sign(a) == np.sign(b))[signed].mean()) if signed.any() else float("nan"),
        n_edges=len(a),
        n_signed=int(signed.sum()),
    )


def _shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Places in `a` and in `b` of the numbers in both."""
    place = {number: where for where, number in enumerate(b.tolist())}
    found = [(where, place[number]) for where, number in enumerate(a.tolist()) if number in place]
    both = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]

"""Error nodes apart from the ranking: always kept, always at the baseline, or removed (Marks et al. 2024)."""

# N nodes of a site: F features, then the error node where there is one

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.circuit import ERROR, Circuit
from mis_lab.circuit.config import ErrorHandling
from mis_lab.circuit.dictionaries import NodeDictionary
from mis_lab.circuit.patching import BatchNodes, Nodes, dictionaries_of
from mis_lab.circuit.splice import Kept


def ranked(circuit: Circuit, errors: ErrorHandling) -> Circuit:
    """The nodes that the circuit's size counts: without error nodes unless they are nodes like any."""
    if errors is ErrorHandling.as_node:
        return circuit
    return circuit.take((circuit.feature != ERROR).nonzero().squeeze(1))


def kept_with_errors(kept: Kept, nodes: Nodes, errors: ErrorHandling) -> Kept:
    """The masks with the error node of every site kept or not, as `errors` says."""
    if errors is ErrorHandling.as_node:
        return kept
    masks = {path: mask.clone() for path, mask in kept.items()}
    for path, dictionary in dictionaries_of(nodes).items():
        if dictionary.has_error:
            masks[path][-1] = errors is ErrorHandling.keep
    return masks


def with_error_states(nodes: Nodes, errors: ErrorHandling) -> Nodes:
    """The nodes as they are ablated under `errors`: under ``zero`` an ablated error is 0, not its baseline."""
    if errors is not ErrorHandling.zero:
        return nodes
    return _without_errors(nodes) if isinstance(nodes, Mapping) else _ErrorsRemoved(nodes)


def _without_errors(nodes: NodeSet) -> dict[str, SiteNodes]:
    # Neurons have no error, and their state is to stay the very numbers it is.
    return {
        path: SiteNodes.of(of_site.dictionary, of_site.features, torch.zeros_like(of_site.dictionary.offset))
        if of_site.dictionary.has_error
        else of_site
        for path, of_site in nodes.items()
    }


@dataclass(frozen=True, eq=False)
class _ErrorsRemoved:
    """Nodes that differ from image to image, their errors removed."""

    nodes: BatchNodes

    @property
    def dictionaries(self) -> Mapping[str, NodeDictionary]:
        return self.nodes.dictionaries

    def __iter__(self) -> Iterator[NodeSet]:
        for of_batch in self.nodes:
            yield _without_errors(of_batch)

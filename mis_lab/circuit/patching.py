"""Nodes whose ablated state is that of another image, the partner: interchange ablation and resampling.

The states of a batch (B, P, F) come from a forward pass over the partners of its images, one batch at a time and
never all at once; its features at every site stay in memory while the batch lasts. Interchange: Vig et al. 2020
and Marks et al. 2024; resampling: Chan et al. 2022.
"""

# n images  B images of a batch  P positions  D site width  F features

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.model.capture import Capture


@runtime_checkable
class BatchNodes(Protocol):
    """Nodes of one kind that differ from image to image: gone through, it gives the nodes of each batch in turn.

    Attributes:
        dictionaries: site path → which nodes, in the order of the network.
    """

    @property
    def dictionaries(self) -> Mapping[str, NodeDictionary]: ...

    def __iter__(self) -> Iterator[NodeSet]: ...


# What a circuit's nodes are and become: the same for all images, or batch by batch.
Nodes = NodeSet | BatchNodes


@dataclass(frozen=True, eq=False)
class PatchedNodes:
    """Nodes of one kind that become, when ablated, what they are on each image's partner.

    Attributes:
        problem: its sites are read.
        dictionaries: site path → nodes, for every site.
        partners: the partner of each image, in batches of the same sizes as the images'.
    """

    problem: Problem
    dictionaries: Mapping[str, NodeDictionary]
    partners: Images

    def __iter__(self) -> Iterator[NodeSet]:
        for partners_bchw in self.partners:
            with Capture(self.problem.model, self.problem.sites) as capture:
                vectors = capture.run(partners_bchw)
            # clone() outside of Capture: states may take part in a backward pass.
            yield {path: state_of(d, vectors[path].clone()) for path, d in self.dictionaries.items()}


@torch.no_grad()
def state_of(dictionary: NodeDictionary, x_bpd: Tensor) -> SiteNodes:
    """Nodes that become what they are in the vectors `x_bpd`, whose very numbers are the state."""
    n_at_once = n_images_at_once(dictionary, x_bpd.shape[1])  # encoding takes more memory than codes alone
    features = torch.cat([dictionary.encode(x) for x in x_bpd.split(n_at_once)])
    if not dictionary.has_error:
        return SiteNodes(dictionary, features, torch.zeros_like(dictionary.offset), x_bpd)
    return SiteNodes(dictionary, features, x_bpd - dictionary.combine(features) - dictionary.offset, x_bpd)


def dictionaries_of(nodes: Nodes) -> Mapping[str, NodeDictionary]:
    """Site path → which nodes, in the order of the network."""
    if isinstance(nodes, Mapping):
        return {path: of_site.dictionary for path, of_site in nodes.items()}
    return nodes.dictionaries


def with_nodes(images: Images, node_sets: Mapping[str, Nodes]) -> Iterator[tuple[Tensor, dict[str, NodeSet]]]:
    """Each batch of `images` and its nodes of every kind.

    Raises:
        ValueError: when a kind has nodes for fewer batches, or for a batch of another size.
    """
    of_kinds = {kind: repeat(nodes) if isinstance(nodes, Mapping) else iter(nodes) for kind, nodes in node_sets.items()}
    for images_bchw in images:
        of_batch = {}
        for kind, of_kind in of_kinds.items():
            nodes = next(of_kind, None)
            if nodes is None:
                raise ValueError(f"there are fewer batches of {kind} partners than of images")
            for path, of_site in nodes.items():
                if of_site.state.ndim == 3 and len(of_site.state) != len(images_bchw):
                    raise ValueError(f"{len(images_bchw)} images have {len(of_site.state)} partners at site {path}")
            of_batch[kind] = nodes
        yield images_bchw, of_batch


def with_targets_and_nodes(
    images: Images, targets_n: Tensor, node_sets: Mapping[str, Nodes]
) -> Iterator[tuple[Tensor, Tensor, dict[str, NodeSet]]]:
    """Each batch of `images`, its share of `targets_n`, and its nodes of every kind (see :func:`with_nodes`)."""
    start = 0
    for images_bchw, of_batch in with_nodes(images, node_sets):
        stop = start + len(images_bchw)
        yield images_bchw, targets_n[start:stop].to(images_bchw.device), of_batch
        start = stop

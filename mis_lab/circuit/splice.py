"""Ablate nodes at sites while the network runs, the rest recomputed from the running activations.

With e = x − Σ_k f_k·atom_k − offset, keeping C and setting the others to (f_b, e_b) has two equal forms:

    error node kept:     x' = x + Σ_{k∉C} (f_b − f)_k·atom_k
    error node ablated:  x' = state + Σ_{k∈C} (f − f_b)_k·atom_k,    state = Σ_k f_b,k·atom_k + offset + e_b

Neither needs the reconstruction x̂, so nothing is added and subtracted again: with every node kept x is handed
on untouched, with every node ablated the state takes its place, both to the bit.
"""

# B images  P positions  D site width  F features  N nodes: F features, then the error node where there is one

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mis_lab.circuit.baselines import NodeSet, SiteNodes
from mis_lab.circuit.dictionaries import n_nodes
from mis_lab.circuit.patching import Nodes, dictionaries_of
from mis_lab.model.intervene import Replacement

# Site path → (N,) bool: the nodes that are kept.
Kept = Mapping[str, Tensor]


def ablation(nodes: SiteNodes, kept_n: Tensor) -> Replacement:
    """Vectors (B, P, D) of a site → the same with every node outside `kept_n` at its baseline.

    With every node kept the function returns the very tensor it gets. A baseline that does not fit the vectors is a
    DataError when it is run.
    """
    dictionary, state = nodes.dictionary, nodes.state
    if bool(kept_n.all()):
        return lambda x_bpd: x_bpd
    nothing_kept = not bool(kept_n.any())
    if nothing_kept or not dictionary.has_error:  # without an error the nodes are the coordinates

        def put(x_bpd: Tensor) -> Tensor:
            nodes.check_fits(x_bpd)
            return state.expand_as(x_bpd).clone() if nothing_kept else torch.where(kept_n, x_bpd, state)

        return put

    keeps_error = bool(kept_n[-1])
    moved_k = (~kept_n[:-1] if keeps_error else kept_n[:-1]).nonzero().squeeze(1)

    def replace(x_bpd: Tensor) -> Tensor:
        parts = []
        for x, of_images in nodes.chunks(x_bpd):
            above = dictionary.encode(x)[..., moved_k] - of_images.features[..., moved_k]
            if keeps_error:
                parts.append(x - dictionary.combine(above, moved_k))
            else:
                parts.append(of_images.state + dictionary.combine(above, moved_k))
        return torch.cat(parts)

    return replace


def ablations(nodes: NodeSet, kept: Kept) -> dict[str, Replacement]:
    """Site path → :func:`ablation`, for :meth:`Problem.values`; untouched sites are left out."""
    return {
        path: ablation(of_site, kept[path].to(of_site.state.device))
        for path, of_site in nodes.items()
        if not bool(kept[path].all())
    }


def nothing_kept(nodes: Nodes) -> dict[str, Tensor]:
    """The empty circuit: every node of every site ablated."""
    return {path: torch.zeros(n_nodes(d), dtype=torch.bool) for path, d in dictionaries_of(nodes).items()}


def all_but(kept: Kept) -> dict[str, Tensor]:
    """The complement of a circuit: its nodes ablated, all others kept."""
    return {path: ~mask for path, mask in kept.items()}

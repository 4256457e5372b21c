"""Conductance: what flows through each node while the input moves along its path (Dhamdhere et al. 2018).

With v_n a node's value and g_n the objective's derivative by it, at N + 1 even points of the path of the input:

    E_v = Σ_n ½(g_n + g_{n+1})·(v_{n+1} − v_n)

The nodes of a site together move as its vectors do, so that at every site that all of the network passes through their
effects sum to m(image) − m(start), up to the error of the trapezoid rule: no baseline of nodes enters, each node starts
where it is at the start of the path. A feature that is on in the middle of the path only counts as well.
"""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mis_lab.circuit.attribution import CleanBatch, Contributions, InputPath, Reduction, gradient_pass, shares
from mis_lab.circuit.baselines import NodeSet
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Problem


def conductance(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """Conductance of every node of every kind in N + 1 passes; of ``path.rule`` only N, its number of steps, counts."""
    total: dict[str, Contributions] = {kind: {} for kind in node_sets}
    before = None
    for step in range(path.n_steps + 1):
        now = gradient_pass(problem, path.images(batch.images_bchw, step / path.n_steps), batch.targets_b)
        if before is not None:
            for kind, nodes in node_sets.items():
                for site_path, of_site in nodes.items():
                    flow = _flow(
                        site_path,
                        of_site.dictionary,
                        before.vectors[site_path],
                        now.vectors[site_path],
                        (before.gradients[site_path] + now.gradients[site_path]) / 2,
                        reduce,
                    )
                    sofar = total[kind].get(site_path)
                    total[kind][site_path] = flow if sofar is None else sofar.add_(flow)
        before = now
    return total


@torch.no_grad()
def _flow(
    path: str, dictionary: NodeDictionary, before_bpd: Tensor, now_bpd: Tensor, g_bpd: Tensor, reduce: Reduction
) -> Tensor:
    """(B, N): ⟨g, move of the vectors⟩ of one step, shared out over the nodes."""
    # Vectors are encoded at both ends of each step: cheaper to hold than codes of all positions.
    n_at_once = n_images_at_once(dictionary, before_bpd.shape[1])
    parts = []
    for before, now, g in zip(*(x.split(n_at_once) for x in (before_bpd, now_bpd, g_bpd)), strict=True):
        moved = dictionary.encode(now) - dictionary.encode(before)
        error = now - before - dictionary.combine(moved) if dictionary.has_error else None
        parts.append(reduce(path, *shares(dictionary, moved, error, g)))
    return torch.cat(parts)

"""What a circuit has to beat: nodes ordered by how much they change, circuits of other classes, and by how much.

A node's change is the length of what ablating it takes out of the site's vector, mean |f − f_b|·‖atom‖, and
‖e − e_b‖ for the error node. Without ‖atom‖ it would hang on how a dictionary shares scale between code and atom;
so features, neurons and errors of all sites are lengths in their site's space.
"""

# n images  B images of a batch  P positions  D site width  F features  N nodes  S sizes

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.dictionaries import NodeDictionary
from mis_lab.circuit.error_nodes import ranked
from mis_lab.circuit.faithfulness import Area, Curve, log_area
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_nodes
from mis_lab.circuit.running import Ends, objective_of_circuits
from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval, jackknife_interval
from mis_lab.core.progress import progress
from mis_lab.model.capture import Capture

ATOMS_AT_ONCE = 1024


def node_changes(problem: Problem, nodes: Nodes, images: Images) -> dict[str, Tensor]:
    """Site path → (N,) float64 change of each node, the mean over images of its sum over positions.

    Raises:
        DataError: without images.
    """
    dictionaries = dictionaries_of(nodes)
    totals = {path: torch.zeros((), dtype=torch.float64) for path in dictionaries}
    n_images = 0
    kind = next(iter(dictionaries.values())).kind
    with torch.inference_mode():
        lengths = {path: atom_lengths(dictionary) for path, dictionary in dictionaries.items()}
        for images_bchw, of_batch in progress(
            with_nodes(images, {kind: nodes}), f"change of {kind}s", total=len(images), unit="batch"
        ):
            with Capture(problem.model, problem.sites) as capture:
                vectors = capture.run(images_bchw)
            for path, of_site in of_batch[kind].items():
                totals[path] = totals[path] + _change(of_site, vectors[path], lengths[path])
            n_images += len(images_bchw)
    if not n_images:
        raise DataError("no images to see nodes change on", fix="Give at least one discovery image.")
    return {path: total / n_images for path, total in totals.items()}


def atom_lengths(dictionary: NodeDictionary) -> Tensor:
    """‖atom_k‖ of every feature, (F,); some atoms at a time."""
    parts = []
    for which_k in torch.arange(dictionary.n_features, device=dictionary.offset.device).split(ATOMS_AT_ONCE):
        one_hot = torch.eye(len(which_k), dtype=dictionary.offset.dtype, device=dictionary.offset.device)
        parts.append(dictionary.combine(one_hot, which_k).norm(dim=-1))
    return torch.cat(parts)


def by_change(circuit: Circuit, changes: Mapping[str, Tensor]) -> Circuit:
    """The circuit's nodes, the one with the largest change first; equal ones keep their order."""
    change = torch.stack([changes[node.site][node.feature] for node in circuit.nodes])  # ERROR = -1 is the last
    return circuit.take(change.argsort(descending=True, stable=True))


def evaluate_others(
    problem: Problem,
    nodes: Nodes,
    curve: Curve,
    others: Mapping[str, Circuit],
    images: Images,
    targets_n: Tensor,
    config: CircuitConfig,
) -> dict[str, Curve]:
    """The curves of other circuits (another order, another class') at the sizes of `curve`, name → curve.

    Args:
        nodes: what the circuits' nodes are and become.
        curve: of the circuit they are beside; its ends and its random circuits are theirs, too.
        others: circuits of the same nodes; one with fewer nodes than a size keeps all it has there.
        images, targets_n: those that `curve` was measured on.
        config: that of `curve`.

    Raises:
        DataError: without images.
        ValueError: when a circuit is of another kind, or the images are not as many as the curve's.
    """
    if curve.values.shape[1] != len(targets_n):
        raise ValueError(f"the curve has {curve.values.shape[1]} images, not {len(targets_n)}")
    ends = Ends.of(nodes, config)
    masks = []
    for name, circuit in others.items():
        if circuit.kind != curve.kind:
            raise ValueError(f"circuit {name} holds {circuit.kind}s, the curve {curve.kind}s")
        own = ranked(circuit, config.errors)
        masks += [ends.handled(own.top(int(size)).kept()) for size in curve.sizes[1:]]
    values_cn = objective_of_circuits(problem, ends.nodes, masks, images, targets_n)
    found = {}
    for name, values_sn in zip(others, np.split(values_cn, len(others)), strict=True):
        values = np.concatenate([curve.values[:1], values_sn[:-1], curve.values[-1:]])
        found[name] = Curve(curve.kind, curve.sizes, values, curve.random_values, values_sn[-1], curve.groups_n)
    return found


def cmd_difference(a: Curve, b: Curve, log: bool = False) -> Interval:
    """CMD of `a` minus that of `b`, with its interval over the groups of images, each left out of both.

    Args:
        a, b: curves on the same images, in the same order.
        log: over the logarithm of the share of nodes kept.

    Raises:
        ValueError: when they were measured on different groups of images, or begin at different shares with `log`.
    """
    if not np.array_equal(a.groups_n, b.groups_n):
        raise ValueError(f"the curves have other images or groups: {len(a.groups_n)} and {len(b.groups_n)} images")
    if log and a.fractions[1] != b.fractions[1]:
        raise ValueError(f"logarithmic axes from {a.fractions[1]:g} and from {b.fractions[1]:g} are not compared")
    areas: dict[bool, Area] = {False: np.trapezoid, True: log_area}
    cmd_a, cmd_b = (areas[log](np.abs(1 - curve.leaving_out), curve.fractions) for curve in (a, b))
    return jackknife_interval(cmd_a - cmd_b, a.groups_n)


def _change(nodes: SiteNodes, x_bpd: Tensor, lengths_f: Tensor) -> Tensor:
    """(N,) float64, summed over images and positions."""
    dictionary = nodes.dictionary
    total = torch.zeros((), dtype=torch.float64)
    for x, of_images in nodes.chunks(x_bpd):
        codes = dictionary.encode(x)
        changes = (codes - of_images.features).abs().sum(1) * lengths_f
        if dictionary.has_error:
            error = x - dictionary.combine(codes) - dictionary.offset
            changes = torch.cat([changes, (error - of_images.error).norm(dim=-1).sum(1, keepdim=True)], dim=1)
        total = total + changes.cpu().sum(0, dtype=torch.float64)
    return total

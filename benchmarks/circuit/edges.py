"""Edges: the numbers of one backward pass a position for less work, and how linear edges agree with ablation.

    python benchmarks/circuit/edges.py [--small] [--out FILE]

A CNN and a ViT are trained on digits here, with TopK SAEs.

1. On the CNN, in float64: edges between features (and errors) of its second and third site beside the obvious loop, a
   backward pass for every image, position and active node downstream. The largest difference, passes, FLOPs as torch
   counts them, and CPU time.
2. On both: linear edges against exact ones, every upstream node ablated and the network run on to the next site.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# B images  P positions  D site width  F features  U upstream nodes  T downstream nodes

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mis_lab.circuit.attribution import InputPath, site_gradients
from mis_lab.circuit.baselines import NodeSet, mean_image
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.config import EdgeMethod, EffectMethod
from mis_lab.circuit.edges import Link, chain, link_edges
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.graph import agreement
from mis_lab.circuit.quadrature import midpoint

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from digits import Digits, make
from measure import Gate, gate_table, gates_as_json, progress, table, tell, timed, write_json

MOST_DIFFERENCE, MOST_PASSES, N_STEPS = 1e-9, 0.5, 10


class Cost(NamedTuple):
    passes: int
    gflop: float
    seconds: float


def largest_nodes(digits: Digits, nodes: NodeSet, images: list[Tensor], n_nodes: int) -> dict[str, Tensor]:
    """The nodes of each site with the largest effects, by `ig_inputs`."""
    path = InputPath(mean_image(images), midpoint(N_STEPS))
    targets = digits.targets(torch.cat(images))
    effects = node_effects(digits.problem, {"": nodes}, images, targets, EffectMethod.ig_inputs, path)[""]
    found = {}
    for site_path, of_site in effects.items():
        top = of_site.mean.abs().topk(min(n_nodes, len(of_site.mean))).indices
        has_error = nodes[site_path].dictionary.has_error
        found[site_path] = torch.where(top == nodes[site_path].dictionary.n_features, ERROR, top) if has_error else top
    return found


class Slow:
    """Edges by one backward pass an image, position and active downstream node, each through the whole encoder.

    Attributes:
        n_passes: made so far.
    """

    def __init__(self, digits: Digits, nodes: NodeSet, link: Link, chosen: dict[str, Tensor], images: Tensor) -> None:
        self.digits, self.nodes, self.link, self.chosen, self.images = digits, nodes, link, chosen, images
        names = [name for name, _ in digits.problem.model.module.named_children()]
        first, last = (names.index(site.path) for site in (link.source, link.target))
        self.between, self.n_passes = digits.problem.model.module[first + 1 : last + 1], 0

    def weights(self) -> Tensor:
        """(U, T), means over images."""
        problem, source, target = self.digits.problem, self.link.source, self.link.target
        targets = self.digits.targets(self.images)
        clean = problem.observe(self.images, targets).vectors
        gradient_bpd = site_gradients(problem, self.images, targets)[target.path]
        x_bpd = clean[source.path].clone()
        upstream, sae = self.nodes[source.path], self.digits.saes[target.path]
        codes = upstream.dictionary.encode(x_bpd)
        error = x_bpd - upstream.dictionary.combine(codes) - upstream.dictionary.offset - upstream.error
        delta_bpf, atoms_fd = (
            codes - upstream.features,
            upstream.dictionary.combine(torch.eye(codes.shape[2]).to(codes)),
        )
        side, self.n_passes = source.grid[0], 0
        sources, targets_t = self.chosen[source.path], self.chosen[target.path]
        total_ut = x_bpd.new_zeros(len(sources), len(targets_t))
        for image in range(len(x_bpd)):
            leaf = x_bpd[image : image + 1].clone().requires_grad_()
            y_bpd = self.between(leaf.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
            code_bpf = sae.encode(y_bpd)
            rest_bpd = y_bpd - sae.decode(code_bpf)
            weight_pf = gradient_bpd[image] @ sae.dictionary.T
            for place, node in enumerate(targets_t.tolist()):
                for position in range(y_bpd.shape[1]):
                    if node == ERROR:
                        scalar = rest_bpd[0, position] @ gradient_bpd[image, position]
                    elif code_bpf[0, position, node].detach() != 0:
                        scalar = code_bpf[0, position, node] * weight_pf[position, node]
                    else:
                        continue
                    found = torch.autograd.grad(scalar, leaf, retain_graph=True)[0][0]
                    self.n_passes += 1
                    by_feature_f = ((found @ atoms_fd.T) * delta_bpf[image]).sum(0)
                    by_error = (found * error[image]).sum()
                    total_ut[:, place] += torch.cat([by_feature_f, by_error[None]])[sources]  # ERROR is the last
        return total_ut / len(x_bpd)


def compare(digits: Digits, n_images: int, n_nodes: int) -> list[Gate]:
    """Part 1."""
    images = digits.images(n_images)
    nodes = digits.nodes([images])["feature"]
    link = chain(digits.problem.sites)[-1]
    chosen = largest_nodes(digits, nodes, [images], n_nodes)
    for path in (link.source.path, link.target.path):  # the error takes part, whatever its effect
        chosen[path] = torch.cat([chosen[path][chosen[path] != ERROR], torch.tensor([ERROR])])
    slow, targets = Slow(digits, nodes, link, chosen, images), digits.targets(images)

    def ours() -> Tensor:
        found = link_edges(digits.problem, nodes, link, chosen, [images], targets, EdgeMethod.vjp)
        passes.append(found.n_vjps)
        return found.weight

    passes: list[int] = []
    costs, weights = {}, {}
    for name, work in (("mis_lab", ours), ("slow", slow.weights)):
        gflop, seconds, weights[name] = counted(work)
        costs[name] = Cost(passes[-1] if name == "mis_lab" else slow.n_passes, gflop, seconds)
    difference = float((weights["mis_lab"] - weights["slow"]).abs().max())
    largest, shape = float(weights["slow"].abs().max()), tuple(weights["slow"].shape)
    told = f"{n_images} digits, {shape[0]} × {shape[1]} nodes {link.source.path} → {link.target.path}, float64"
    tell(f"\n{told}; largest edge {largest:.3g}, largest difference {difference:.1e}\n")
    rows = [[name, cost.passes, f"{cost.gflop:.3f}", f"{cost.seconds:.2f}"] for name, cost in costs.items()]
    tell(table(["by", "backward passes", "GFLOP", "CPU s"], rows) + "\n")
    fast, loop = costs["mis_lab"], costs["slow"]
    return [
        Gate("largest difference from the loop", difference, "<=", MOST_DIFFERENCE),
        Gate("backward passes over the loop's", fast.passes / loop.passes, "<=", MOST_PASSES),
    ]


def counted(work: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    """GFLOP, CPU seconds and result."""
    with FlopCounterMode(display=False) as flops:
        found = work()
    return flops.get_total_flops() / 1e9, timed(work).cpu, found


def agreements(name: str, digits: Digits, n_images: int, n_nodes: int) -> None:
    """Part 2."""
    images = [*digits.images(n_images).split(32)]
    targets = digits.targets(torch.cat(images))
    rows = []
    for kind, nodes in digits.nodes(images).items():
        chosen = largest_nodes(digits, nodes, images, n_nodes)
        for link in chain(digits.problem.sites):
            linear, exact = (
                link_edges(digits.problem, nodes, link, chosen, images, targets, method)
                for method in (EdgeMethod.vjp, EdgeMethod.exact)
            )
            found = agreement(linear, exact)
            numbers = [f"{value:.3f}" for value in (found.pearson, found.spearman, found.same_sign)]
            covered = float(linear.weight.abs().sum()), float(exact.weight.abs().sum())
            rows.append([f"{link.source.path} → {link.target.path}", kind, found.n_edges, *numbers])
            rows[-1].append(f"{covered[0] / covered[1]:.2f}")
    tell(f"\n{name}: linear against exact edges, {n_images} digits, the {n_nodes} largest nodes of each site\n")
    columns = ["edges", "nodes", "compared", "Pearson", "Spearman", "same sign", "summed sizes, linear over exact"]
    tell(table(columns, rows) + "\n")


def main(arguments: list[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few images and nodes, a network hardly trained")
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    trained = {"epochs": 1, "n_vectors": 4096} if a.small else {}
    n_images, n_nodes, n_compared = (4, 8, 2) if a.small else (32, 50, 8)
    gates: list[Gate] = []
    for name in ("cnn",) if a.small else ("cnn", "vit"):
        progress(f"train {name}")
        digits = make(name, **trained)
        agreements(name, digits, n_images, n_nodes)
        if name == "cnn":
            gates += compare(digits.double(), n_compared, n_nodes)
    tell(gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))

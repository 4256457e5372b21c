"""Effects of nodes: the numbers of Captum for less work, how fast attribution gaps close, and agreement with ablation.

    python benchmarks/circuit/effects.py [--small] [--out FILE]

A CNN and a ViT are trained on digits here.

1. The attribution gap against the number of steps for five rules, in float32.
2. Correlation of each method with exact ablation of single nodes.
3. Each method beside Captum and beside a slow but obvious loop, on the CNN: the largest difference in float64, rows
   through the network, FLOPs as torch counts them, CPU time, and memory of torch's allocator.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerConductance, LayerGradientXActivation
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mis_lab.circuit.agreement import agreement_with_exact
from mis_lab.circuit.attribution import CleanBatch, InputPath, gradient_pass, summed
from mis_lab.circuit.baselines import NodeSet, mean_image, zero
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effects import METHODS, node_effects
from mis_lab.circuit.quadrature import RULES, midpoint

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from digits import Digits, make
from measure import Gate, allocator_peak, gate_table, gates_as_json, progress, table, tell, timed, write_json

PATH = "act2"  # the CNN's site of the comparison
N_STEPS = 8  # a power of two: Captum's steps are then exact
STEPS = (1, 2, 4, 10, 32)
MOST_DIFFERENCE, MOST_GAP, GAP_STEPS = 1e-9, 0.02, 10


class Cost(NamedTuple):
    """What a computation took: images or rows through the read-out forward and backward, FLOPs, CPU s, MiB."""

    forward: int
    backward: int
    flops: int
    seconds: float
    mib: float


class Tail:
    """The CNN behind the site, as a function of features and error there.

    No module: torch's FLOP counter takes no leaf of the graph as the input or output of one.
    """

    def __init__(self, digits: Digits) -> None:
        names = [name for name, _ in digits.problem.model.module.named_children()]
        self.behind, self.sae = digits.problem.model.module[names.index(PATH) + 1 :], digits.saes[PATH]

    def __call__(self, codes_bpf: Tensor, error_bpd: Tensor) -> Tensor:
        x_bpd = self.sae.decode(codes_bpf) + error_bpd
        side = round(x_bpd.shape[1] ** 0.5)
        return self.behind(x_bpd.transpose(1, 2).unflatten(2, (side, side)))


class Spliced(nn.Module):
    """The CNN with the site written as features and error, each behind a module of its own."""

    def __init__(self, digits: Digits) -> None:
        super().__init__()
        names = [name for name, _ in digits.problem.model.module.named_children()]
        self.before, self.tail = digits.problem.model.module[: names.index(PATH) + 1], Tail(digits)
        self.features, self.error = nn.Identity(), nn.Identity()

    def forward(self, images_bchw: Tensor) -> Tensor:
        x_bpd = self.before(images_bchw).flatten(2).transpose(1, 2)
        codes = self.tail.sae.encode(x_bpd)
        error = x_bpd - self.tail.sae.decode(codes)
        codes, error = (values.detach().requires_grad_().clone() for values in (codes, error))
        return self.tail(self.features(codes), self.error(error))


class Comparison:
    """The effects of all nodes at one site on some images, by us, by Captum and by loops; against zero."""

    def __init__(self, digits: Digits, n_images: int) -> None:
        self.digits, self.images = digits, digits.images(n_images)
        self.targets = digits.targets(self.images)
        one_site = [site for site in digits.problem.sites if site.path == PATH]
        self.problem = type(digits.problem)(digits.problem.model, tuple(one_site), digits.problem.objective)
        nodes = digits.nodes([self.images], zero)["feature"][PATH]
        self.nodes: dict[str, NodeSet] = {"feature": {PATH: nodes}}
        self.start = mean_image([self.images])
        self.path = InputPath(self.start, midpoint(N_STEPS))

    def clean(self) -> tuple[Tensor, Tensor]:
        """Features and error on the images: where everybody starts from."""
        x_bpd = self.problem.observe(self.images, self.targets).vectors[PATH].clone()
        codes = self.digits.saes[PATH].encode(x_bpd)
        return codes, x_bpd - self.digits.saes[PATH].decode(codes)

    def ours(self, method: EffectMethod) -> Tensor:
        batch = CleanBatch.of(self.problem, self.images, self.targets)
        return METHODS[method].method(self.problem, batch, self.nodes, self.path, summed)["feature"][PATH]

    def captum(self, method: EffectMethod) -> Tensor:
        options = {"target": self.targets, "n_steps": N_STEPS}
        if method is EffectMethod.ig:
            found = IntegratedGradients(Tail(self.digits)).attribute(self.clean(), method="riemann_middle", **options)
            return _as_nodes(*found)
        if method is EffectMethod.atp:
            spliced = Spliced(self.digits)
            captum = LayerGradientXActivation(spliced, [spliced.features, spliced.error])
            return _as_nodes(*captum.attribute(self.images, target=self.targets))
        if method is EffectMethod.exact:
            clean = codes, error = self.clean()
            masks = (
                torch.arange(codes.shape[2]).expand(1, *codes.shape[1:]),
                torch.full((1, *error.shape[1:]), codes.shape[2]),
            )
            found = FeatureAblation(Tail(self.digits)).attribute(clean, target=self.targets, feature_mask=masks)
            return torch.cat([found[0][:, 0], found[1][:, 0, :1]], dim=1)
        # Captum takes gradients at the beginning of each step; there and back, their mean is at both ends.
        spliced, start = Spliced(self.digits), self.start.to(self.images).expand_as(self.images)
        options |= {"method": "riemann_trapezoid"}
        flows = []
        for layer in (spliced.features, spliced.error):
            captum = LayerConductance(spliced, layer)
            there, back = (
                captum.attribute(self.images, start, **options),
                captum.attribute(start, self.images, **options),
            )
            flows.append((there - back) / 2)
        return _as_nodes(*flows)

    def slow(self, method: EffectMethod) -> Tensor:
        """Nodes as leaves of the graph, and a whole pass for each step or node."""
        if method is EffectMethod.exact:
            return self._ablated_one_by_one()
        if method is EffectMethod.conductance:
            return self._conductance()
        tail, clean = Tail(self.digits), self.clean()
        sums = [torch.zeros_like(value) for value in clean]
        alphas = [1.0] if method is EffectMethod.atp else self.path.rule.alphas
        for alpha in alphas:
            leaves = [(alpha * value).detach().requires_grad_() for value in clean]
            objective = tail(*leaves).gather(1, self.targets[:, None]).sum()
            for total, gradient in zip(sums, torch.autograd.grad(objective, leaves), strict=True):
                total += gradient / len(alphas)
        return _as_nodes(*(value * total for value, total in zip(clean, sums, strict=True)))

    def _ablated_one_by_one(self) -> Tensor:
        tail, (codes, error) = Tail(self.digits), self.clean()
        found = []
        with torch.no_grad():
            clean = tail(codes, error).gather(1, self.targets[:, None])[:, 0]
            for node in range(codes.shape[2] + 1):
                one_out = codes.clone()
                if node < codes.shape[2]:
                    one_out[..., node] = 0
                without = tail(one_out, error if node < codes.shape[2] else torch.zeros_like(error))
                found.append(clean - without.gather(1, self.targets[:, None])[:, 0])
        return torch.stack(found, dim=1)

    def _conductance(self) -> Tensor:
        sae, values, gradients = self.digits.saes[PATH], [], []
        for step in range(N_STEPS + 1):
            images = self.path.images(self.images, step / N_STEPS)
            x_bpd, g_bpd = (of_pass[PATH] for of_pass in gradient_pass(self.problem, images, self.targets))
            codes = sae.encode(x_bpd)
            values.append((codes, x_bpd - sae.decode(codes)))
            gradients.append((g_bpd @ sae.dictionary.T, g_bpd))
        flows = [torch.zeros_like(value) for value in values[0]]
        for n in range(N_STEPS):
            for kind, flow in enumerate(flows):
                flow += (gradients[n][kind] + gradients[n + 1][kind]) / 2 * (values[n + 1][kind] - values[n][kind])
        return _as_nodes(*flows)


def _as_nodes(of_codes: Tensor, of_error: Tensor) -> Tensor:
    return torch.cat([of_codes.sum(1), of_error.sum((1, 2))[:, None]], dim=1).detach()


@contextmanager
def counted(head: nn.Module) -> Any:
    """Counts rows through `head` in both directions."""
    rows = {"forward": 0, "backward": 0}

    def forward(_module: nn.Module, _args: object, output: Tensor) -> None:
        rows["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        rows["backward"] += len(gradient)

    handle = head.register_forward_hook(forward)
    try:
        yield rows
    finally:
        handle.remove()


def cost(work: Callable[[], Tensor], head: nn.Module) -> Cost:
    work()  # what is built once shall not count
    with counted(head) as rows, FlopCounterMode(display=False) as flops:
        work()
    return Cost(rows["forward"], rows["backward"], flops.get_total_flops(), timed(work).cpu, allocator_peak(work))


def compare(digits: Digits, n_images: int) -> list[Gate]:
    """Part 3."""
    comparison, head = Comparison(digits, n_images), digits.problem.model.module.head
    rows, gates = [], []
    for method in (EffectMethod.atp, EffectMethod.ig, EffectMethod.conductance, EffectMethod.exact):
        ours = comparison.ours(method)
        costs, differences = {"mis_lab": cost(lambda m=method: comparison.ours(m), head)}, {}
        for name in ("captum", "slow"):
            work = getattr(comparison, name)
            differences[name] = float((work(method) - ours).abs().max())
            costs[name] = cost(lambda m=method, w=work: w(m), head)
            gates.append(
                Gate(f"{method.name}: largest difference from {name}", differences[name], "<=", MOST_DIFFERENCE)
            )
        for name, of_one in costs.items():
            flops, seconds, mib = of_one.flops / 1e9, of_one.seconds, of_one.mib
            numbers = [of_one.forward, of_one.backward, f"{flops:.3f}", f"{seconds:.3f}", f"{mib:.1f}"]
            told = f"{differences[name]:.1e}" if name in differences else ""
            rows.append([method.name, name, *numbers, told])
        if method is not EffectMethod.atp:
            saved = costs["mis_lab"].flops / costs["captum"].flops
            gates.append(Gate(f"{method.name}: FLOPs over captum's", saved, "<=", 1.0))
    largest = float(comparison.ours(EffectMethod.exact).abs().max())
    tell(f"\n{n_images} digits, features and error at {PATH}, {N_STEPS} steps, float64; largest effect {largest:.3g}\n")
    columns = ["method", "by", "rows forward", "rows backward", "GFLOP", "CPU s", "MiB", "difference"]
    tell(table(columns, rows) + "\n")
    return gates


def gaps(name: str, digits: Digits, n_images: int, steps: tuple[int, ...]) -> list[Gate]:
    """Part 1: the largest gap of any site."""
    images = [*digits.images(n_images).split(32)]
    targets, nodes, start = digits.targets(torch.cat(images)), digits.nodes(images), mean_image(images)
    rows, gates = [], []
    whole = {"feature": nodes["feature"]}

    def gap(method: EffectMethod, rule: Quadrature, n_steps: int) -> float:
        path = InputPath(start, RULES[rule](n_steps))
        found = node_effects(digits.problem, whole, images, targets, method, path)["feature"]
        return max(of_site.attribution_gap for of_site in found.values())

    for rule in Quadrature:
        row = {n_steps: gap(EffectMethod.ig, rule, n_steps) for n_steps in steps}
        rows.append([f"ig, {rule.name}", *(f"{value:.2e}" for value in row.values())])
        if rule is Quadrature.midpoint:
            gates.append(Gate(f"{name}: gap of ig, midpoint, {GAP_STEPS} steps", row[GAP_STEPS], "<=", MOST_GAP))
    for method in (EffectMethod.conductance, EffectMethod.ig_inputs):
        values = [gap(method, Quadrature.midpoint, n_steps) for n_steps in steps]
        rows.append([method.name, *(f"{value:.2e}" for value in values)])
    tell(f"\n{name}: attribution gap, largest of {len(digits.problem.sites)} sites, mean baseline, {n_images} digits\n")
    tell(table(["steps", *map(str, steps)], rows) + "\n")
    return gates


def agreements(name: str, digits: Digits, n_images: int, n_nodes: int) -> None:
    """Part 2."""
    images = [*digits.images(n_images).split(32)]
    targets, node_sets = digits.targets(torch.cat(images)), digits.nodes(images)
    path = InputPath(mean_image(images), midpoint(GAP_STEPS))
    rows = []
    for method in EffectMethod:
        if method is EffectMethod.exact:
            continue
        effects = node_effects(digits.problem, node_sets, images, targets, method, path)
        for kind, nodes in node_sets.items():
            found = agreement_with_exact(
                digits.problem, nodes, effects[kind], images, targets, n_top=n_nodes, n_random=n_nodes
            )
            numbers = [f"{x:.3f}" for some in (found.top, found.random) for x in some[1:]]
            rows.append([method.name, kind, len(found.nodes), *numbers])
    tell(f"\n{name}: agreement with exact ablation, {n_images} digits, mean baseline, {GAP_STEPS} steps\n")
    which = [f"{number}, {some}" for some in ("largest", "random") for number in ("Pearson", "Spearman", "same sign")]
    tell(table(["method", "nodes", "compared", *which], rows) + "\n")


def main(arguments: list[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few images, and networks hardly trained")
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    warnings.filterwarnings(
        "ignore", "Multiple layers provided"
    )  # of Captum: features and error do not depend on each other
    trained = {"epochs": 1, "n_vectors": 4096} if a.small else {}
    n_images, n_nodes, steps = (4, 5, (1, GAP_STEPS)) if a.small else (32, 50, STEPS)
    gates: list[Gate] = []
    for name in ("cnn",) if a.small else ("cnn", "vit"):
        progress(f"train {name}")
        digits = make(name, **trained)
        tell(f"\n{name}: accuracy {digits.accuracy:.3f}")
        found = gaps(name, digits, n_images, steps)
        gates += found if name == "cnn" else []
        agreements(name, digits, n_images, n_nodes)
        if name == "cnn":
            gates += compare(digits.double(), 2 if a.small else 8)
    tell("\n" + gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))

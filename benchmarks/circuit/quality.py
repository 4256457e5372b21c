"""How faithful circuits are on images they were not found on, by what orders their nodes.

    python benchmarks/circuit/quality.py [--small] [--seeds N] [--out FILE]

A CNN and a ViT are trained on digits here, with TopK SAEs, once a seed. For each of five pairs of digits the objective
is the logit of an image's class less that of the other; circuits are found on training images of the two classes and
run on held-out ones, nodes outside a circuit at their mean over the training images (errors are nodes as well). Orders
of nodes: random (three draws), change (mean |Δ|, no gradient), and each method of effects; for features and
for neurons. CPR is the area below faithfulness over the share of nodes kept, CMD the area between it and 1.

Intervals are 95 % percentiles of a bootstrap that draws seeds, pairs and the images of each pair independently of each
other (the pigeonhole bootstrap, Owen 2007, which errs on the wide side), the same draws for all orders: differences are
paired. The gate is that CMD falls from random to change to ig_inputs, for features of both networks, and that the
intervals of both differences leave out 0.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# n images  S sizes  R resamples  O orders

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import rank
from mis_lab.circuit.comparisons import by_change, evaluate_others, node_changes
from mis_lab.circuit.config import CircuitConfig, EffectMethod
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.faithfulness import MIB_FRACTIONS, Curve, evaluate, log_area, share_of_way
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import midpoint
from mis_lab.core.intervals import Interval, percentile_interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from digits import Digits, make
from measure import Gate, gate_table, gates_as_json, progress, table, tell, write_json

PAIRS = ((3, 5), (4, 9), (7, 1), (0, 6), (2, 8))
RANDOM, CHANGE = "random", "change"
METHODS = [EffectMethod[name] for name in ("atp", "ig_inputs", "ig", "conductance", "exact")]
ORDERS = (RANDOM, CHANGE, *(method.name for method in METHODS))
GATED = ((RANDOM, CHANGE), (CHANGE, "ig_inputs"))
N_STEPS, N_RANDOM, BATCH = 10, 3, 64
MEASURES = ("CPR", "CMD", "CPR, log", "CMD, log")


class Size(NamedTuple):
    """How much work: seeds, pairs of digits, images of either set, resamples."""

    n_seeds: int
    n_pairs: int
    n_discovery: int
    n_evaluation: int
    n_bootstrap: int


FULL, SMALL = Size(3, 5, 32, 64, 2000), Size(1, 2, 6, 8, 50)


class Pair:
    """Images of two digits and the difference of their logits.

    Attributes:
        images: batches of the training images.
        test_images: batches of held-out images.
        targets, test_targets: their labels.
    """

    def __init__(self, digits: Digits, classes: tuple[int, int], n_discovery: int, n_evaluation: int) -> None:
        def objective(logits_bc: Tensor, targets_b: Tensor) -> Tensor:
            return logit(logits_bc, targets_b) - logit(logits_bc, sum(classes) - targets_b)

        self.problem = Problem(digits.problem.model, digits.problem.sites, objective)
        self.images, self.targets = self._some(digits.dataset, classes, n_discovery)
        self.test_images, self.test_targets = self._some(digits.score, classes, n_evaluation)
        self.node_sets = digits.nodes(self.images)

    def _some(self, dataset: ImageDataset, classes: tuple[int, int], n: int) -> tuple[list[Tensor], Tensor]:
        """`n` images, half of either class."""
        chosen = [
            index for number in classes for index in np.flatnonzero(np.equal(dataset.labels, number))[: n // 2].tolist()
        ]
        model = self.problem.model
        found = [
            model.to_input(batch.images_bchw) for batch in batches(dataset, model.transform, BATCH, indices=chosen)
        ]
        return found, torch.tensor([dataset.labels[index] for index in chosen])

    def curves(self, seed: int) -> dict[str, dict[str, list[Curve]]]:
        """Kind → order → curves on the held-out images, several for random orders."""
        config = CircuitConfig(n_random=N_RANDOM)
        path = InputPath(mean_image(self.images), midpoint(N_STEPS))
        effects = {
            method.name: node_effects(self.problem, self.node_sets, self.images, self.targets, method, path)
            for method in METHODS
        }
        found: dict[str, dict[str, list[Curve]]] = {}
        for kind, nodes in self.node_sets.items():
            circuits = {name: rank(kind, of_kinds[kind]) for name, of_kinds in effects.items()}
            first = METHODS[0].name
            circuits[CHANGE] = by_change(circuits[first], node_changes(self.problem, nodes, self.images))
            held_out = (self.test_images, self.test_targets, config)
            curve = evaluate(self.problem, nodes, circuits[first], *held_out, seed, MIB_FRACTIONS)
            others = evaluate_others(self.problem, nodes, curve, circuits, *held_out)
            found[kind] = {name: [of_order] for name, of_order in others.items()}
            found[kind][RANDOM] = [replace(curve, values=draw) for draw in curve.random_values]
        return found


class Measured:
    """A measure of every order, on all images and on resampled ones: [seed, pair] → (1 + R,), the whole first."""

    def __init__(self, n_seeds: int, n_pairs: int, n_bootstrap: int, net: str) -> None:
        self.shape, self.n_bootstrap = (n_seeds, n_pairs), n_bootstrap
        random = numpy_generator(0, "quality", "bootstrap", net)
        drawn = [resample_counts(random, n, n_bootstrap) for n in self.shape]
        seeds_rs, pairs_rp = (np.concatenate([np.ones((1, rows.shape[1])), rows]) for rows in drawn)
        self.weight_rsp = seeds_rs[:, :, None] * pairs_rp[:, None] / (n_seeds * n_pairs)
        self.random, self.counts = random, dict[int, np.ndarray]()
        self.values: dict[tuple[str, str, str], np.ndarray] = {}

    def add(self, seed: int, pair: int, curves: dict[str, dict[str, list[Curve]]]) -> None:
        for kind, of_kind in curves.items():
            for order, some in of_kind.items():
                n_images = some[0].values.shape[1]
                if pair not in self.counts:  # a pair's held-out images are the same for all seeds
                    drawn = resample_counts(self.random, n_images, self.n_bootstrap)
                    self.counts[pair] = np.concatenate([np.ones((1, n_images)), drawn])
                areas = np.mean([_areas(curve, self.counts[pair]) for curve in some], axis=0)
                for measure, area_r in zip(MEASURES, areas, strict=True):
                    of_all = self.values.setdefault(
                        (kind, order, measure), np.full((*self.shape, 1 + self.n_bootstrap), np.nan)
                    )
                    of_all[seed, pair] = area_r

    def mean(self, kind: str, order: str, measure: str = "CMD") -> np.ndarray:
        """(1 + R,) means over seeds and pairs as drawn."""
        return np.einsum("rsp,spr->r", self.weight_rsp, self.values[kind, order, measure])

    def interval(self, kind: str, order: str, measure: str) -> Interval:
        found = self.mean(kind, order, measure)
        return percentile_interval(float(found[0]), found[1:])

    def difference(self, kind: str, order: str, other: str, other_kind: str = "") -> Interval:
        """CMD of `order` less that of `other`."""
        found = self.mean(kind, order) - self.mean(other_kind or kind, other)
        return percentile_interval(float(found[0]), found[1:])


def resample_counts(random: np.random.Generator, n: int, n_bootstrap: int) -> np.ndarray:
    """(R, n) how often each of n is drawn when as many are drawn with replacement."""
    return random.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)


def _areas(curve: Curve, counts_rn: np.ndarray) -> np.ndarray:
    """(measures, R)."""
    sums_rs, shares = counts_rn @ curve.values.T, curve.fractions
    heights = share_of_way(sums_rs, sums_rs[:, :1], sums_rs[:, -1:])
    missed = np.abs(1 - heights)
    return np.stack(
        [
            np.trapezoid(heights, shares),
            np.trapezoid(missed, shares),
            log_area(heights, shares),
            log_area(missed, shares),
        ]
    )


def measure(net: str, size: Size, **trained: int) -> Measured:
    found = Measured(size.n_seeds, size.n_pairs, size.n_bootstrap, net)
    for seed in range(size.n_seeds):
        progress(f"train {net}, seed {seed}")
        digits = make(net, seed=seed, **trained)
        tell(f"{net}, seed {seed}: accuracy {digits.accuracy:.3f}")
        for number, classes in enumerate(PAIRS[: size.n_pairs]):
            progress(f"{net}, seed {seed}, digits {classes}")
            pair = Pair(digits, classes, size.n_discovery, size.n_evaluation)
            found.add(seed, number, pair.curves(seed))
    return found


def told(interval: Interval) -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def report(net: str, found: Measured) -> list[Gate]:
    """The table of a network, and its gates."""
    rows = [
        [kind, order, *(told(found.interval(kind, order, name)) for name in MEASURES)]
        for kind in ("feature", "neuron")
        for order in ORDERS
    ]
    tell(f"\n{net}: means over {found.shape[0]} seeds and {found.shape[1]} pairs of digits, held-out images\n")
    tell(table(["nodes", "order", *MEASURES], rows) + "\n")
    differences = [
        [f"{kind}: {more} less {less}", told(found.difference(kind, more, less))]
        for kind in ("feature", "neuron")
        for more, less in (*GATED, ("atp", "ig_inputs"), ("exact", "ig_inputs"), ("ig", "ig_inputs"))
    ]
    between = found.difference("neuron", "ig_inputs", "ig_inputs", "feature")
    tell(table(["difference of CMD", net], [*differences, ["ig_inputs: neuron less feature", told(between)]]) + "\n")
    gates = []
    for more, less in GATED:
        difference = found.difference("feature", more, less)
        name = f"{net}: CMD of {more} less that of {less}, lower limit"
        gates.append(Gate(name, float(difference.low), ">=", 0.0))
        if difference.low < 0:
            tell(_explained(net, more, less, found))
    return gates


def _explained(net: str, more: str, less: str, found: Measured) -> str:
    """What a difference that may be 0 looks like from pair to pair."""
    by_unit = found.values["feature", more, "CMD"][..., 0] - found.values["feature", less, "CMD"][..., 0]
    own = [f"{classes[0]}/{classes[1]} {value:+.3f}" for classes, value in zip(PAIRS, by_unit.mean(0), strict=False)]
    n_above = int((by_unit > 0).sum())
    return (
        f"{net}: CMD of {more} less that of {less} is above 0 for {n_above} of {by_unit.size} pairs × seeds; "
        f"means over seeds: {', '.join(own)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one seed, two pairs, few images, hardly trained networks")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds (default 3)")
    parser.add_argument("--net", choices=("cnn", "vit"), action="append", default=[], help="only this one")
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    size = SMALL if a.small else FULL
    size = size._replace(n_seeds=a.seeds or size.n_seeds)
    trained = {"epochs": 1, "n_vectors": 4096} if a.small else {}
    gates: list[Gate] = []
    for net in a.net or (("cnn",) if a.small else ("cnn", "vit")):
        gates += report(net, measure(net, size, **trained))
    tell(gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))

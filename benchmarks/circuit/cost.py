"""What a circuit of a large network costs: ResNet-50 at 224 px with SAEs of 8,192 features at its four stages.

    python benchmarks/circuit/cost.py [--part N] [--small] [--out FILE]

Weights are random (BatchNorm saw some of the images) and SAEs as they start out, as neither changes the cost: effects
of all nodes at all stages by `ig_inputs` with 10 steps, on 64 images, then edges between the 100 largest nodes of
neighbouring stages on 16 of them. Per part: FLOPs as torch counts them, CPU and wall time; of the whole process the
peak resident set; and backward passes against one for every image, position and active node. With `--part N` only one
image in N is worked on: every image takes the same FLOPs, so that N times as many are reported; times and memory are
those of the part.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# B images  P positions  D site width  F features

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import NodeSet, mean, mean_image
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.config import EffectMethod
from mis_lab.circuit.cut import check_saes
from mis_lab.circuit.dictionaries import SaeFeatures
from mis_lab.circuit.edges import Link, LinkEdges, chain, link_edges
from mis_lab.circuit.effects import SiteEffects, node_effects
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import midpoint
from mis_lab.core.seeding import generator
from mis_lab.dataset.config import TransformConfig
from mis_lab.model.capture import Capture, predictions
from mis_lab.model.load import wrap_module
from mis_lab.model.sites import Site, resolve_sites
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import TopKConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from measure import Gate, Seconds, gate_table, gates_as_json, progress, table, tell, timed, write_json

STAGES, N_STEPS, K = ("layer1", "layer2", "layer3", "layer4"), 10, 32
MOST_TFLOP, MOST_GB, LEAST_SAVED, SAVED_GRID = 45.0, 8.0, 50.0, (14, 14)


T = TypeVar("T")


class Size(NamedTuple):
    """How much work.

    Attributes:
        n_images, n_edge_images: of effects and of edges; `part` times fewer are worked on.
        batch_size: images a pass of effects; edges take all of theirs at once.
        n_features: of each SAE.
        n_nodes: of each stage that have edges.
        pixels: side of an image.
    """

    n_images: int
    n_edge_images: int
    batch_size: int
    n_features: int
    n_nodes: int
    pixels: int
    part: int = 1

    @property
    def n_passes(self) -> int:
        """Backward passes of a link at most: one a downstream node and one for the whole site."""
        return self.n_nodes + 1


FULL, SMALL = Size(64, 16, 8, 8192, 100, 224), Size(4, 2, 2, 256, 10, 64)


class Part(NamedTuple):
    """What a part of the work took, and the peak resident set of the process by its end."""

    what: str
    tflop: float
    seconds: Seconds
    gigabytes: float


def images_of(size: Size) -> Tensor:
    """Smooth noise."""
    coarse = torch.randn(size.n_images, 3, 14, 14, generator=generator(0, "cost", "images"))
    return nn.functional.interpolate(coarse, size=(size.pixels, size.pixels), mode="bicubic", antialias=True)


def problem_of(images_nchw: Tensor) -> Problem:
    """The network, whose BatchNorms are set by some images: otherwise activations grow from block to block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = resnet50(weights=None)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        module.train()(images_nchw[:8])
    side = images_nchw.shape[-1]
    model = wrap_module(module, "resnet50", TransformConfig(size=side))
    return Problem(model, resolve_sites(model, STAGES), logit)


def dictionaries_of(problem: Problem, images_bchw: Tensor, n_features: int) -> dict[str, SaeFeatures]:
    """TopK SAEs as they start from the vectors of some images."""
    with Capture(problem.model, problem.sites) as capture:
        vectors = capture.run(images_bchw)
    found = {}
    for site in problem.sites:
        sae = TopKSae(TopKConfig(n_features=n_features, k=min(K, n_features // 8), name="topk"), site.width)
        sae.initialise(vectors[site.path].flatten(0, 1).clone(), generator(0, "cost", site.path))
        found[site.path] = SaeFeatures.at(site, sae.eval().requires_grad_(False))
    return found


class Flops(FlopCounterMode):
    """torch's counter without its tracker of modules, which holds on to memory of every pass until the counter closes:
    5 GB here, where the work itself takes 2."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = Untracked()


class Untracked:
    """All FLOPs belong to the whole."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class Work:
    """The parts one after the other, each counted."""

    def __init__(self, size: Size) -> None:
        images_nchw = images_of(size)
        self.size, self.problem, self.parts = size, problem_of(images_nchw), list[Part]()
        worked_on = images_nchw[: size.n_images // size.part]
        self.images = [*map(self.problem.model.to_input, worked_on.split(size.batch_size))]
        self.edge_images = self.problem.model.to_input(images_nchw[: size.n_edge_images])
        self.few = self.edge_images[: size.n_edge_images // size.part]
        self.targets = torch.cat([predictions(self.problem.model, batch).argmax(1).clone() for batch in self.images])
        self.dictionaries = dictionaries_of(self.problem, self.images[0], size.n_features)
        check_saes(self.problem, {path: one.sae for path, one in self.dictionaries.items()}, self.images[0])

    def counted(self, what: str, work: Callable[[], T]) -> T:
        progress(what)
        found: list[T] = []
        with Flops() as flops:
            seconds = timed(lambda: found.append(work()))
        self.parts.append(Part(what, self.size.part * flops.get_total_flops() / 1e12, seconds, _peak_gigabytes()))
        return found[0]

    def baseline(self) -> NodeSet:
        return mean(self.problem, {"feature": self.dictionaries}, self.images)["feature"]

    def effects(self, nodes: NodeSet) -> dict[str, SiteEffects]:
        path = InputPath(mean_image(self.images), midpoint(N_STEPS))
        method = EffectMethod.ig_inputs
        return node_effects(self.problem, {"feature": nodes}, self.images, self.targets, method, path)["feature"]

    def chosen(self, effects: dict[str, SiteEffects]) -> dict[str, Tensor]:
        """The largest nodes of each stage."""
        found = {}
        for path, of_site in effects.items():
            top = of_site.mean.abs().topk(self.size.n_nodes).indices
            found[path] = torch.where(top == self.dictionaries[path].n_features, ERROR, top)
        return found

    def edges(self, nodes: NodeSet, link: Link, chosen: dict[str, Tensor]) -> LinkEdges:
        targets = self.targets[: len(self.few)]
        return link_edges(self.problem, nodes, link, chosen, [self.few], targets)

    def n_places(self, site: Site, chosen: Tensor) -> int:
        """Images × positions × chosen nodes that are active there, over all images: passes if each had its own."""
        with Capture(self.problem.model, [site]) as capture:
            x_bpd = capture.run(self.edge_images)[site.path]
        features = chosen[chosen != ERROR]
        codes = (self.dictionaries[site.path].encode(one)[..., features] for one in x_bpd.split(1))
        n_errors = (len(chosen) - len(features)) * x_bpd.shape[0] * x_bpd.shape[1]
        return n_errors + sum(int((of_one != 0).sum()) for of_one in codes)


def measure(size: Size) -> list[Gate]:
    work = Work(size)
    nodes = work.counted("baseline", work.baseline)
    effects = work.counted("node effects", lambda: work.effects(nodes))
    chosen, rows, gates = work.chosen(effects), [], []
    for link in chain(work.problem.sites):
        name = f"edges {link.source.path} → {link.target.path}"
        found = work.counted(name, lambda link=link: work.edges(nodes, link, chosen))
        n_places, grid = work.n_places(link.target, chosen[link.target.path]), link.target.grid
        fewer = n_places / size.n_passes
        told = f"{link.source.path} → {link.target.path}, {grid[0]}×{grid[1]}"
        rows.append([told, found.method.name, found.n_vjps, size.n_passes, n_places, f"{fewer:.0f}"])
        if grid == SAVED_GRID:
            gates.append(Gate(f"times fewer passes into {grid[0]}×{grid[1]}", fewer, ">=", LEAST_SAVED))
    gigabytes = _peak_gigabytes()
    total = sum(part.tflop for part in work.parts)
    told = f"{size.n_images} images, {size.n_edge_images} for edges (one in {size.part} worked on)"
    tell(f"\nresnet50 at {size.pixels} px, {told}; {size.n_features} features and {size.n_nodes} nodes a stage\n")
    columns = ["part", "TFLOP", "CPU s", "wall s", "peak GB by then"]
    parts = [
        [part.what, f"{part.tflop:.3f}", *(f"{s:.0f}" for s in part.seconds), f"{part.gigabytes:.2f}"]
        for part in work.parts
    ]
    tell(table(columns, [*parts, ["together", f"{total:.3f}", *_sums(work.parts), f"{gigabytes:.2f}"]]) + "\n")
    tell(table(["edges", "by", "VJPs", "at most", "one a place", "times fewer"], rows) + "\n")
    return [Gate("TFLOP", total, "<=", MOST_TFLOP), Gate("peak resident set, GB", gigabytes, "<=", MOST_GB), *gates]


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _sums(parts: list[Part]) -> list[str]:
    return [f"{sum(column):.0f}" for column in zip(*(part.seconds for part in parts), strict=True)]


def main(arguments: list[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few small images, 256 features, 10 nodes")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="one image in N (a divisor of 8)")
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    gates = measure((SMALL if a.small else FULL)._replace(part=a.part))
    tell(gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))

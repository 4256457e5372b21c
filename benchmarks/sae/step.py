"""What a training step costs: every architecture of ours beside the steps of other SAE libraries.

Each variant does its whole step (ours: loss, AuxK's bookkeeping, clip, projection, Adam, renormalisation, dead count)
on the same batches, in one process, in interleaved rounds; what counts is ratios within a round. One thread is timed
by its CPU time, several by wall time on an idle machine. The measured matrix product is the limit: 1 of it for sparse
TopK, 5 for a dense architecture. Other libraries: README.md of this folder.

    python benchmarks/sae/step.py [--threads 1] [--seeds 0 1 2] [--rounds 5] [--only topk] [--out step.json]
"""

# B vectors  D width  F features

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import ours
import peer
import peers
import torch
from measure import Gate, Spread
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.sae.train import Training

N_BATCHES = 8
PRODUCT = "matrix product"
MOST_MEMORY = 1.5  # dense (B, F) matrices
Step = Callable[[Tensor], object]


def structured(width: int, batch: int, seed: int) -> list[Tensor]:
    """Batches of sparse mixtures of random directions with a mean, as activations are."""
    random = generator(seed, "benchmark")
    atoms_fd = torch.nn.functional.normalize(torch.randn(4 * width, width, generator=random), dim=1)
    mean_d = torch.randn(width, generator=random)
    batches = []
    for _ in range(N_BATCHES):
        fires = torch.rand(batch, 4 * width, generator=random) < 8 / (4 * width)
        batches.append((fires * torch.rand(batch, 4 * width, generator=random)) @ atoms_fd + mean_d)
    return batches


def our_training(name: str, arguments: argparse.Namespace, batches: list[Tensor], seed: int, *more: str) -> Training:
    """A training of architecture `name` from its preset, at the sizes of the benchmark."""
    overrides = ours.sizes(name, arguments.features, arguments.k)
    overrides += [f"trainer.batch_size={arguments.batch}", f"trainer.n_vectors={arguments.batch * 10_000}"]
    overrides += ["trainer.dead_after=1000000000", "trainer.log_steps=1", *more]
    run = ours.recipe(name, *overrides)
    sae = build(run.sae, width=arguments.width)
    sae.initialise(torch.cat(batches), generator(seed, "atoms"))
    return Training(sae.train(), run.trainer)


def wanted(name: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or any(part in name for part in arguments.only)


def our_steps(arguments: argparse.Namespace, batches: list[Tensor], seed: int) -> dict[str, Step]:
    options: dict[str, tuple[str, ...]] = {name: () for name in ours.available()}
    options["topk:dense"] = ("sae.sparse=false",)
    training = {
        f"mis_lab/{name}": our_training(name.split(":")[0], arguments, batches, seed, *more)
        for name, more in options.items()
        if wanted(f"mis_lab/{name}", arguments)
    }
    n_dead = int(arguments.dead * arguments.features)

    def advance(now: Training, x_bd: Tensor) -> None:
        now.silent_f[:n_dead] = now.config.dead_after  # the same features in every round, for AuxK's cost
        now.advance(x_bd)

    return {name: partial(advance, now) for name, now in training.items()}


def measured(
    steps: dict[str, Step], product: Callable[[], object], batches: list[Tensor], n_rounds: int, clock: str
) -> dict[str, list[float]]:
    """Seconds of every step and of the matrix product, a round each, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in (PRODUCT, *steps)}
    for number in range(n_rounds + 2):
        seconds[PRODUCT].append(getattr(measure.timed(product), clock))
        for name, step in steps.items():
            seconds[name].append(getattr(measure.timed(partial(step, batches[number % N_BATCHES])), clock))
    return {name: rounds[2:] for name, rounds in seconds.items()}


class Results:
    """Seconds by variant over all seeds, rounds in the same order, and the memory of the last seed."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.allocated: dict[str, float] = {}
        self.resident: dict[str, float | None] = {}

    def ratio(self, name: str, to: str) -> Spread:
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return Spread.of([one / other for one, other in pairs])

    def fastest(self, names: list[str]) -> str | None:
        here = [name for name in names if name in self.seconds]
        return min(here, key=lambda name: Spread.of(self.seconds[name]).median) if here else None

    def gates(self, dense_mib: float) -> list[Gate]:
        def times_faster(ours_name: str, others: list[str]) -> float | None:
            other = self.fastest(others)
            return None if other is None or ours_name not in self.seconds else self.ratio(other, ours_name).median

        def of(architecture: str, *libraries: str) -> list[str]:
            return [
                name for name in peers.PEERS if name.split(":")[0] in {f"{lib}/{architecture}" for lib in libraries}
            ]

        dense = of("topk", "overcomplete", "dictionary_learning", "sae_lens")
        relu = self.ratio("mis_lab/relu", PRODUCT).median / 5 if "mis_lab/relu" in self.seconds else None
        gates = [
            Gate(f"topk: × faster than {self.fastest(dense)}", times_faster("mis_lab/topk", dense), ">=", 2.5, 3.0),
            Gate("topk: × faster than sparsify", times_faster("mis_lab/topk", of("topk", "sparsify")), ">=", 1.3, 1.6),
            Gate(
                "batch_topk: × faster than dictionary_learning",
                times_faster("mis_lab/batch_topk", of("batch_topk", "dictionary_learning")),
                ">=",
                1.5,
                2.0,
            ),
            Gate("relu: × five matrix products", relu, "<=", 1.55, 1.35),
        ]
        for name in ("mis_lab/topk", "mis_lab/batch_topk"):
            mib = self.allocated.get(name)
            share = None if mib is None else mib / dense_mib
            gates.append(Gate(f"{name.split('/')[1]}: extra memory ÷ dense B×F", share, "<=", MOST_MEMORY))
        return gates

    def rows(self, dense_mib: float) -> list[list[str]]:
        rows = []
        for name, rounds in self.seconds.items():
            resident = self.resident.get(name)
            rows.append(
                [
                    name,
                    f"{1e3 * Spread.of(rounds).median:.0f}",
                    str(self.ratio(name, "mis_lab/topk")) if "mis_lab/topk" in self.seconds else "",
                    str(self.ratio(name, PRODUCT)),
                    f"{self.allocated[name] / dense_mib:.2f}" if name in self.allocated else "",
                    "" if resident is None else f"{resident / dense_mib:.2f}",
                ]
            )
        return rows


def loss_difference(arguments: argparse.Namespace, batches: list[Tensor]) -> float:
    """Largest relative difference of the losses of sparse and dense TopK over one pass of the batches."""
    sparse, dense = (
        our_training("topk", arguments, batches, 0, f"sae.sparse={sparse}") for sparse in ("true", "false")
    )
    for x_bd in batches:
        sparse.advance(x_bd)
        dense.advance(x_bd)
    pairs = zip(sparse.history["loss"], dense.history["loss"], strict=True)
    return max(abs(one - other) / abs(other) for one, other in pairs)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 384), ("features", 3072), ("batch", 4096), ("k", 32), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5, help="a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dead", type=float, default=0.0, help="share of our features counted dead, for AuxK's cost")
    parser.add_argument("--resident", action="store_true", help="measure the resident set too (see measure.py)")
    parser.add_argument("--only", nargs="+", help="only variants whose name contains one of these")
    parser.add_argument("--ours", action="store_true", help="without other libraries")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Gate]:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    clock = "cpu" if arguments.threads == 1 else "wall"
    dense_mib = arguments.batch * arguments.features * 4 / measure.MIB
    results = Results()
    others = {} if arguments.ours else peers.usable()
    for seed in arguments.seeds:
        batches = structured(arguments.width, arguments.batch, seed)
        steps = our_steps(arguments, batches, seed)
        job = peer.Job(arguments.width, arguments.features, arguments.k, 10_000, arguments.batch, seed)
        steps |= {name: each(job).step for name, each in others.items() if wanted(name, arguments)}
        weight_fd = torch.randn(arguments.features, arguments.width, generator=generator(seed, "product"))
        rounds = measured(steps, lambda w=weight_fd, x=batches[0]: x @ w.T, batches, arguments.rounds, clock)
        for name, seconds in rounds.items():
            results.seconds.setdefault(name, []).extend(seconds)
        measure.progress(f"seed {seed} measured")
    for name, step in steps.items():
        if arguments.resident:
            results.resident[name] = measure.resident_peak(partial(step, batches[0]))
        results.allocated[name] = measure.allocator_peak(partial(step, batches[0]))
        gc.collect()

    sizes = ", ".join(f"{name} {getattr(arguments, name)}" for name in ("width", "features", "batch", "k", "threads"))
    measure.tell(
        f"{sizes}; {len(arguments.seeds)} seeds of {arguments.rounds} rounds, {clock} time; dead {arguments.dead:g}"
    )
    columns = ["step", "ms", "× our topk", "× product", "allocated ÷ dense B×F", "resident ÷ dense B×F"]
    measure.tell(measure.table(columns, results.rows(dense_mib)))
    measure.tell(f"\nloss of sparse and dense TopK: differs by at most {loss_difference(arguments, batches):.1e}")
    if not arguments.ours:
        measure.tell("".join(f"missing: {library} ({why})\n" for library, why in peer.missing().items()))
    gates = results.gates(dense_mib)
    measure.tell(measure.gate_table(gates))
    content = {"arguments": {name: str(value) for name, value in vars(arguments).items()}, "seconds": results.seconds}
    content |= {"allocated_mib": results.allocated, "resident_mib": results.resident}
    measure.write_json(arguments.out, content | {"gates": measure.gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    main()

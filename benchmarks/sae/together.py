"""Ten SAEs in one pass over a network's activations, against ten passes.

With E the time that a batch of activations takes to compute and S that of one SAE's step, ten runs one after the other
cost 10E + 10S a step and one pass with all of them at best E + 10S. Measured is the gain, ten times the time of one run
over the time of ten together, as a share of the ideal (10E + 10S) / (E + 10S). E is spent in a real forward pass whose
depth is chosen for each ratio E/S; both are measured in this process. The SAEs differ in k and seed.

    python benchmarks/sae/together.py [--ratios 0.2 1 5] [--saes 10] [--rounds 3] [--threads 1] [--out together.json]
"""

# B vectors  D width  F features

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import measure
import ours
import torch
from measure import Gate, Spread
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.sae.train import Job, train_together
from mis_lab.sae.training import Training

LEAST_SHARE = 0.9


class Network:
    """A residual network of `depth` layers over the vectors of a batch, with the interface of a vector loader: every
    batch is computed when it is asked for."""

    def __init__(self, width: int, depth: int, batch_size: int, n_steps: int) -> None:
        random = generator(0, "network")
        self.layers_dd = [torch.randn(width, width, generator=random) / width**0.5 for _ in range(depth)]
        self.width, self.batch_size, self.n_vectors = width, batch_size, batch_size * n_steps

    @torch.inference_mode()
    def run(self, x_bd: Tensor) -> Tensor:
        for layer_dd in self.layers_dd:
            x_bd = 0.7 * x_bd + 0.7 * (x_bd @ layer_dd).relu()
        return x_bd

    def batch(self, step: int) -> Tensor:
        x_bd = torch.randn(self.batch_size, self.width, generator=generator(0, "batch", str(step)))
        return self.run(x_bd).clone()  # outside of inference mode: to be trained on

    def sample(self, n: int) -> Tensor:
        return self.batch(0)


class Times(NamedTuple):
    """Seconds of a batch (E), of a step (S), of one run, and of all SAEs in one pass."""

    batch: float
    step: float
    one: float
    together: float


def jobs(n_saes: int, arguments: argparse.Namespace, folder: Path) -> list[Job]:
    made = []
    for number in range(n_saes):
        overrides = ours.sizes("topk", arguments.features, arguments.k + number)
        overrides += [f"trainer.batch_size={arguments.batch}", f"trainer.n_vectors={arguments.batch * arguments.steps}"]
        run = ours.recipe("topk", *overrides, "trainer.checkpoint_steps=0", "trainer.log_steps=100000")
        sae = build(run.sae, width=arguments.width)
        made.append(Job(sae, run.trainer, number, folder / str(number), lambda numbers, step: None))
    return made


def seconds_of_parts(network: Network, arguments: argparse.Namespace, clock: str) -> tuple[float, float]:
    """E and S: medians over steps, taken in turn."""
    (job,) = jobs(1, arguments, Path())
    job.sae.initialise(network.sample(1), generator(0, "atoms"), job.config.normalisation)
    training = Training(job.sae.train(), job.config)
    computed, stepped = [], []
    for step in range(max(4, arguments.steps)):
        computed.append(getattr(measure.timed(partial(network.batch, step)), clock))
        x_bd = network.batch(step)
        stepped.append(getattr(measure.timed(partial(training.advance, x_bd)), clock))
    return Spread.of(computed[2:]).median, Spread.of(stepped[2:]).median


def seconds_of_run(n_saes: int, network: Network, arguments: argparse.Namespace, clock: str) -> float:
    """Time of the training loop; what is written at its end, and the start from a sample, are the same for each SAE."""
    with tempfile.TemporaryDirectory() as folder:
        todo = jobs(n_saes, arguments, Path(folder))
        return float(getattr(measure.timed(lambda: train_together(todo, network)), clock))


def depth_for(ratio: float, arguments: argparse.Namespace, clock: str) -> int:
    """Layers that make E about `ratio` times S, which depends on what runs between two steps."""
    depth = 16
    for _ in range(3):
        network = Network(arguments.width, depth, arguments.batch, arguments.steps)
        batch, step = seconds_of_parts(network, arguments, clock)
        depth = min(1000, max(1, round(depth * ratio * step / batch)))
    return depth


def measured(network: Network, arguments: argparse.Namespace, clock: str) -> Times:
    return Times(
        *seconds_of_parts(network, arguments, clock),
        seconds_of_run(1, network, arguments, clock),
        seconds_of_run(arguments.saes, network, arguments, clock),
    )


def share(times: Times, n_saes: int) -> float:
    """Gain as a share of the ideal."""
    ideal = n_saes * (times.batch + times.step) / (times.batch + n_saes * times.step)
    return n_saes * times.one / times.together / ideal


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 256, "features": 2048, "batch": 1024, "k": 16, "steps": 20, "saes": 10, "rounds": 3, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 1.0, 5.0], help="E/S")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Gate]:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    clock = "cpu" if arguments.threads == 1 else "wall"
    rows, gates, content = [], [], {}
    for ratio in arguments.ratios:
        depth = depth_for(ratio, arguments, clock)
        network = Network(arguments.width, depth, arguments.batch, arguments.steps)
        rounds = [measured(network, arguments, clock) for _ in range(arguments.rounds)]
        shares = Spread.of([share(times, arguments.saes) for times in rounds])
        batch, step = (Spread.of([getattr(times, name) for times in rounds]).median for name in ("batch", "step"))
        gain = Spread.of([arguments.saes * times.one / times.together for times in rounds])
        rows.append(
            [f"{ratio:g}", f"{batch / step:.2f}", f"{1e3 * batch:.0f}", f"{1e3 * step:.0f}", str(gain), str(shares)]
        )
        gates.append(Gate(f"E/S = {ratio:g}: gain ÷ ideal", shares.median, ">=", LEAST_SHARE))
        content[f"{ratio:g}"] = [times._asdict() for times in rounds]
        measure.progress(f"E/S = {ratio:g} measured")
    sizes = ", ".join(
        f"{name} {getattr(arguments, name)}" for name in ("saes", "width", "features", "batch", "threads")
    )
    measure.tell(f"{sizes}; {arguments.rounds} rounds of {arguments.steps} steps, {clock} time")
    columns = ["E/S asked for", "measured", "E ms", "S ms", "gain of one pass", "÷ ideal"]
    measure.tell(measure.table(columns, rows) + "\n")
    measure.tell(measure.gate_table(gates))
    measure.write_json(arguments.out, {"seconds": content, "gates": measure.gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    main()

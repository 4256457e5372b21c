"""What extraction costs: Capture and writing to disk against a bare forward pass cut off after the same site.

    python benchmarks/extract.py [--sites blocks.4] [--precision float32] [--batch 64] [--rounds 40] [--folder DIR]

With several sites (comma between) the bare pass ends at the deepest and the others are captured on the way. Both
run in one process on the same images, in alternating order. Printed are the median ratio of a round and its
quartiles; 1.15 is what extraction of one site may cost. What was written is read back and compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from capture import network, seconds, truncated
from torch import Tensor

from mis_lab.activations.config import Precision
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.core.seeding import generator
from mis_lab.model.capture import Capture
from mis_lab.model.sites import resolve_sites

LIMIT = 1.15
WARM_UP = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sites", default="blocks.4", help="some of blocks.0 to blocks.6, the deepest last")
    options.add_argument("--precision", default="float32", choices=[precision.name for precision in Precision])
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--folder", help="where to write (a temporary folder there); the system's own by default")
    chosen = options.parse_args()

    paths = chosen.sites.split(",")
    model = network(paths[-1])
    sites = resolve_sites(model, paths)
    bare = truncated(model, int(paths[-1].removeprefix("blocks.")) + 1)
    images = model.to_input(torch.randn(chosen.batch, *model.input_shape, generator=generator(0, "benchmark")))
    n_rounds = chosen.rounds + WARM_UP
    ids = [str(index) for index in range(n_rounds * chosen.batch)]
    times: dict[str, list[float]] = {"bare": [], "extract": []}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, ExitStack() as stack:
        writers = {
            site.path: stack.enter_context(
                ActivationWriter(Path(folder) / site.path, site, ids, ids, [-1] * len(ids), Precision[chosen.precision])
            )
            for site in sites
        }
        capture = stack.enter_context(Capture(model, sites))
        written = 0

        def extract(images_bchw: Tensor) -> None:
            nonlocal written
            indices = range(written, written + chosen.batch)
            for path, x_bpd in capture.run(images_bchw).items():
                writers[path].append(x_bpd, indices)
            written = indices.stop

        contestants: list[tuple[str, Callable[[Tensor], object]]] = [("bare", bare), ("extract", extract)]
        for round_number in range(n_rounds):
            for name, work in contestants if round_number % 2 else reversed(contestants):
                took = seconds(work, images)
                if round_number >= WARM_UP:
                    times[name].append(took)
        expected = {path: x_bpd.cpu() for path, x_bpd in capture.run(images).items()}
        stack.close()
        stored = {site.path: StoredActivations(Path(folder) / site.path) for site in sites}
        last = range(len(ids) - chosen.batch, len(ids))
        same = all(
            torch.equal(stored[path].read(last.start, last.stop), x_bpd.to(stored[path].dtype).float())
            for path, x_bpd in expected.items()
        )
    ratios = [extracted / plain for extracted, plain in zip(times["extract"], times["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    sizes = ", ".join(f"{site.path} {site.n_positions} x {site.width}" for site in sites)
    print(f"{model.name} {sizes}, batch {chosen.batch}, {torch.get_num_threads()} threads, {chosen.precision}")
    print(f"bare     {1e3 * statistics.median(times['bare']):8.2f} ms")
    print(f"extract  {1e3 * statistics.median(times['extract']):8.2f} ms, reads back as captured: {same}")
    print(f"ratio    {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {chosen.rounds} rounds), limit {LIMIT}")


if __name__ == "__main__":
    main()

"""What reading a site costs: Capture against a bare forward pass of the same network cut off after that site.

    python benchmarks/capture.py [--site blocks.4] [--batch 64] [--rounds 40]

Both run in one process on the same images, one after the other in each round and in alternating order, so that
whatever else the machine does meets both. Printed are the median ratio of a round and its quartiles; 1.05 is what
`mis_lab.model.capture` may cost. The vectors of both are compared as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.dataset.config import TransformConfig
from mis_lab.model.capture import Capture
from mis_lab.model.config import ModelConfig
from mis_lab.model.load import LoadedModel, load_model
from mis_lab.model.sites import resolve_sites

LIMIT = 1.05


def network(site: str) -> LoadedModel:
    return load_model(
        ModelConfig(
            name="tf_efficientnet_lite0",
            network={"_target_": "timm.create_model", "model_name": "tf_efficientnet_lite0"},
            weights="package:efficientnet_lite0",
            sites=[site],
            input=TransformConfig(size=96, mean=[0.5] * 3, std=[0.5] * 3),
        )
    )


def truncated(model: LoadedModel, n_stages: int) -> Callable[[Tensor], Tensor]:
    """The network's own forward pass (timm's EfficientNet.forward_features) up to stage `n_stages`."""
    module = model.module
    stages = list(module.blocks)[:n_stages]

    def run(images_bchw: Tensor) -> Tensor:
        with torch.inference_mode():
            x = module.bn1(module.conv_stem(images_bchw))
            for stage in stages:
                x = stage(x)
        return x

    return run


def seconds(work: Callable[[Tensor], object], images_bchw: Tensor) -> float:
    started = time.perf_counter()
    work(images_bchw)
    return time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--site", default="blocks.4", help="blocks.0 to blocks.6")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=40)
    chosen = options.parse_args()

    model = network(chosen.site)
    site = resolve_sites(model, [chosen.site])[0]
    bare = truncated(model, int(chosen.site.removeprefix("blocks.")) + 1)
    images = model.to_input(torch.randn(chosen.batch, *model.input_shape, generator=generator(0, "benchmark")))
    times: dict[str, list[float]] = {"bare": [], "capture": []}
    with Capture(model, [site]) as capture:
        same = torch.equal(capture.run(images)[site.path], site.to_vectors(bare(images)))
        contestants: list[tuple[str, Callable[[Tensor], object]]] = [("bare", bare), ("capture", capture.run)]
        for round_number in range(chosen.rounds + 3):
            for name, work in contestants if round_number % 2 else reversed(contestants):
                took = seconds(work, images)
                if round_number >= 3:  # the first rounds warm up
                    times[name].append(took)
    ratios = [captured / plain for captured, plain in zip(times["capture"], times["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    setting = f"{site.n_positions} x {site.width}, batch {chosen.batch}, {torch.get_num_threads()} threads"
    print(f"{model.name} {site.path} {setting}")
    print(f"bare     {1e3 * statistics.median(times['bare']):8.2f} ms")
    print(f"capture  {1e3 * statistics.median(times['capture']):8.2f} ms, same vectors to the bit: {same}")
    print(f"ratio    {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {chosen.rounds} rounds), limit {LIMIT}")


if __name__ == "__main__":
    main()

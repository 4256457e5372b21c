"""What an SAE costs to splice in: passes from its site on, on stored vectors, against whole passes over the images.

    python benchmarks/sae/splice.py [--rounds 5] [--images 192]

The quickstart's network and photographs at its three sites, with a TopK SAE as it starts out (training changes no
cost). Both ways run in one process, in alternating order; CPU time of the calling thread with one thread. Numbers of
both are compared as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mis_lab.activations.config import ActivationsConfig
from mis_lab.activations.extract import extract
from mis_lab.activations.shards import StoredActivations
from mis_lab.core.seeding import generator
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import PhotoPatchesConfig, SplitConfig
from mis_lab.dataset.load import load_dataset
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site, resolve_sites
from mis_lab.sae.ablation import Outputs, ablate, outputs
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.splice import Reference, SpliceQuality, evaluate_splices

sys.path.insert(0, str(Path(__file__).parent.parent))
from capture import network
from measure import Spread, table, tell, timed

SITES = ("blocks.2", "blocks.4", "blocks.6")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=192)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, dataset = network(SITES[-1]), load_dataset(PhotoPatchesConfig(split=SplitConfig(limit=a.images)), "score")
    sites, original = resolve_sites(model, SITES), outputs(model, dataset)
    with tempfile.TemporaryDirectory() as folder:
        places = {site: Path(folder) / site.path for site in sites}
        extract(model, dataset, {site.path: place for site, place in places.items()}, ActivationsConfig())
        rows = [measure(model, dataset, site, StoredActivations(places[site]), original, a.rounds) for site in sites]
    tell(f"{model.name}, {len(dataset)} photographs; CPU seconds, median (extremes) of {a.rounds} rounds\n")
    tell(table(["site", "whole passes", "from the site", "times as fast", "images run", "largest difference"], rows))


def measure(
    model: LoadedModel, dataset: ImageDataset, site: Site, stored: StoredActivations, original: Outputs, n_rounds: int
) -> list[str]:
    """A row of the table."""
    sae = TopKSae(TopKConfig(expansion=4, k=16, name="topk"), site.width)
    sae.initialise(stored.take(range(8)).flatten(0, 1), generator(0, "benchmark"))
    mean_d = stored.moments.mean.float()
    reference = Reference(original, ablate(model, {site: mean_d}, dataset, original))
    found: dict[bool, SpliceQuality] = {}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    n_images = {False: 0, True: 0}  # that went into the network, in all rounds

    def run(from_site: bool) -> None:
        def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            n_images[from_site] += len(args[0])

        at_hand = {site: stored} if from_site else None
        handle = model.module.register_forward_pre_hook(count)
        found[from_site] = evaluate_splices(model, {site: sae}, dataset, reference, stored=at_hand)[site.path]
        handle.remove()

    for number in range(n_rounds + 1):
        for from_site in (False, True) if number % 2 else (True, False):
            took = timed(lambda from_site=from_site: run(from_site)).cpu
            if number:  # the first round warms up
                seconds[from_site].append(took)
    ratios = [whole / part for whole, part in zip(seconds[False], seconds[True], strict=True)]
    numbers = ([value for value in vars(one).values() if isinstance(value, float)] for one in found.values())
    differs = max(abs(a - b) for a, b in zip(*numbers, strict=True))
    times = (str(Spread.of(seconds[from_site])) for from_site in (False, True))
    ran = f"{n_images[False] // (n_rounds + 1)}, {n_images[True] // (n_rounds + 1)}"
    return [site.path, *times, str(Spread.of(ratios)), ran, f"{differs:.1e}"]


if __name__ == "__main__":
    main()

"""A feature that sees one thing, and rarely: is it understood?

    python benchmarks/mis/rare.py [--images 50000] [--rate 0.005] [--features 5] [--seed 0]

Each feature is active on images of a cluster of its own, half a per cent of all, and silent elsewhere. With the default
protocol (extreme, N = 20, K = 9), which takes 200 active images, every hard score must be 1, with random and with
bottom negatives. Pools of the quarter quantile, printed beside, would be full of silent images if a feature's could
stand on the positive side; here they may not.
"""

# n images  d width  U features

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from simulated import TEMPERATURE, Held, embedding_of, verdict

from mis_lab.activations.units import Neurons
from mis_lab.core.seeding import generator
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig, Protocol, Query
from mis_lab.mis.run import score_units

WIDTH, NOISE = 256, 1.0  # noise as long as a centre: cosine ½ within a cluster


def features(n_images: int, rate: float, n_features: int, seed: int) -> tuple[Held, Embedding]:
    """Activations of the features, and embeddings in clusters."""
    random, size = generator(seed, "rare"), round(rate * n_images)
    place_n = torch.randperm(n_images, generator=random)
    cluster_n = place_n // size  # the first clusters have a feature each
    centres = torch.randn(int(cluster_n.max()) + 1, WIDTH, generator=random)
    rows_nd = centres[cluster_n] + NOISE * torch.randn(n_images, WIDTH, generator=random)
    rows_nd.div_(rows_nd.norm(dim=1, keepdim=True))
    strength_nu = torch.rand(n_images, n_features, generator=random) + 0.1
    return Held(strength_nu * (cluster_n[:, None] == torch.arange(n_features))), embedding_of(rows_nd)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=50_000)
    options.add_argument("--rate", type=float, default=0.005)
    options.add_argument("--features", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(argv)
    torch.set_num_threads(1)
    stored, embedding = features(chosen.images, chosen.rate, chosen.features, chosen.seed)
    held = True
    extreme, quantile = MisConfig(), MisConfig(protocol=Protocol.quantile, query=Query.least_extreme)
    for config in (extreme, quantile):
        scores = score_units(stored, Neurons(chosen.features), embedding, config, chosen.seed, temperature=TEMPERATURE)
        for negatives, result in scores.by_negatives.items():
            hard = np.asarray(result.scores.hard.estimate)
            if config is extreme:
                held &= verdict(f"extreme, {negatives} negatives: least hard score", float(hard.min()), ">=", 1.0)
            else:
                print(f"quantile {config.quantile}, {negatives} negatives: mean hard score {hard.mean():.2f}")
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())

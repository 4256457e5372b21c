"""Do our SAEs find the features that made the data? Synthetic vectors with a known dictionary.

256 unit features in 64 dimensions fire with Zipf-like rates, 6 a vector on average; 1.28 million vectors are seen once.
MCC: mean |cosine| of the best one-to-one match between true and learned features.

    python benchmarks/sae_recovery.py [--seeds 0 1 2] [--offsets 0 3] [--threads 1]
"""

# N vectors  D width  F features

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.core.statistics import Moments
from mis_lab.sae.config import ReluConfig, SaeConfig, TopKConfig
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.train import train

N_TRUE, WIDTH, BATCH, N_STEPS, MEAN_L0 = 256, 64, 512, 2500, 6.0
N_HELD_OUT = 40_000
TRAINER = TrainerConfig(
    n_vectors=BATCH * N_STEPS, batch_size=BATCH, lr=1e-2, dead_after=10 * BATCH, checkpoint_steps=0, log_steps=500
)
SAES: dict[str, SaeConfig] = {
    "topk": TopKConfig(n_features=N_TRUE, k=6),
    "topk dense": TopKConfig(n_features=N_TRUE, k=6, sparse=False),
    "relu": ReluConfig(n_features=N_TRUE, l1=0.25),
}


class Synthetic:
    """A known dictionary and the stream of vectors it makes, with the interface of a vector loader.

    Args:
        seed: of dictionary (100 + seed), training stream (7 + seed) and held-out set (999 + seed).
        offset: norm of the constant added to all vectors.
    """

    n_vectors = BATCH * N_STEPS

    def __init__(self, seed: int, offset: float) -> None:
        truth = torch.Generator().manual_seed(100 + seed)
        self.atoms_fd = torch.nn.functional.normalize(torch.randn(N_TRUE, WIDTH, generator=truth), dim=1)
        self.constant_d = torch.nn.functional.normalize(torch.randn(WIDTH, generator=truth), dim=0) * offset
        rates_f = 1.0 / (torch.arange(N_TRUE) + 10.0)
        self.rates_f = rates_f * (MEAN_L0 / rates_f.sum())
        self.seed, self.stream, self.next_step = seed, torch.Generator().manual_seed(7 + seed), 0

    def draw(self, n: int, stream: torch.Generator) -> Tensor:
        fires_nf = torch.rand(n, N_TRUE, generator=stream) < self.rates_f
        codes_nf = fires_nf * (1 + 0.2 * torch.randn(n, N_TRUE, generator=stream)).abs()
        return codes_nf @ self.atoms_fd + self.constant_d

    def batch(self, step: int) -> Tensor:
        assert step == self.next_step, "the stream is read in order"
        self.next_step += 1
        return self.draw(BATCH, self.stream)

    def sample(self, n: int) -> Tensor:
        return self.draw(min(n, 8192), generator(self.seed, "sample"))


class HeldOut:
    """Vectors not trained on, with the interface of stored activations: an image a vector."""

    n_positions = 1

    def __init__(self, source: Synthetic) -> None:
        self.x_n1d = source.draw(N_HELD_OUT, torch.Generator().manual_seed(999 + source.seed)).unsqueeze(1)
        self.n_images, self.groups = N_HELD_OUT, ["all"] * N_HELD_OUT
        self.moments = Moments()
        self.moments.update(self.x_n1d.squeeze(1))

    def take(self, indices: Sequence[int]) -> Tensor:
        return self.x_n1d[list(indices)]


def match(true_fd: Tensor, learned_fd: Tensor) -> tuple[float, float]:
    """MCC, and the share of true features with a learned one at cosine above 0.9."""
    learned_fd = torch.nn.functional.normalize(learned_fd, dim=1)
    cosine = (true_fd @ learned_fd.T).numpy()
    rows, columns = linear_sum_assignment(-abs(cosine))
    return float(abs(cosine[rows, columns]).mean()), float((cosine.max(1) > 0.9).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--offsets", type=float, nargs="+", default=[0.0, 3.0])
    parser.add_argument("--saes", nargs="+", choices=list(SAES), default=["topk", "relu"])
    parser.add_argument("--lr", type=float, default=TRAINER.lr)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    TRAINER.lr = arguments.lr
    rows = ["| SAE | offset | seed | MCC | rec | FVU | L0 | dead % | s |", "|---|---|---|---|---|---|---|---|---|"]
    for name in arguments.saes:
        for offset in arguments.offsets:
            for seed in arguments.seeds:
                source = Synthetic(seed, offset)
                sae = build(SAES[name], width=WIDTH)
                started = time.thread_time()
                with tempfile.TemporaryDirectory() as folder:
                    train(sae, source, TRAINER, seed, Path(folder), lambda numbers, step: None)
                seconds = time.thread_time() - started
                quality = evaluate_reconstruction(sae, HeldOut(source))
                mcc, recovered = match(source.atoms_fd, sae.dictionary.detach())
                rows.append(
                    f"| {name} | {offset:g} | {seed} | {mcc:.3f} | {recovered:.3f} | {quality.fvu:.3f} "
                    f"| {quality.l0:.2f} | {100 * quality.dead_share:.1f} | {seconds:.0f} |"
                )
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()

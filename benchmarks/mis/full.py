"""Full scale: 10,000 units on 50,000 images, 100 tasks each, in the memory of a laptop.

    python benchmarks/mis/full.py [--units 10000] [--few 100] [--images 50000] [--tasks 100] [--rounds 6]

Activations are made in a stream, so that units × images are never in memory; unit vectors of d = 1792 are. Protocol
extreme, K = 9, random and bottom negatives, as a run scores: pools, tasks, margins, scores and intervals. A unit must
cost the same however many there are: at 10,000 units at most 1.2 times as much as at 100. A cost is CPU time of
`score_units`, less that of making the activations. What does not grow with the units (the images' ids sorted and
checked, their key, temperature, calls for every chunk of images) is what a single unit costs; so the cost of one of U
units is (t(U) − t(1)) / (U − 1). Also printed, without that subtraction: t(U) / U. Few units are timed in turn with a
single one, half of the rounds before and half after the many. One process, one thread. The peak of the resident set is
the whole process's. Random activations must score one half.
"""

# U units

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
import torch
from simulated import TEMPERATURE, Spread, Stream, embedding_of, random_rows, verdict

from mis_lab.activations.units import Neurons
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig
from mis_lab.mis.run import score_units
from mis_lab.mis.unit_scores import UnitScores

WIDTH, COST, PEAK_GB = 1792, 1.2, 4.0


class Work:
    """Scores any number of units and says what it took."""

    def __init__(self, n_images: int, n_tasks: int, width: int) -> None:
        self.n_images, self.embedding = n_images, embedding_of(random_rows(n_images, width))
        self.config = MisConfig(n_tasks=n_tasks)

    def seconds(self, n_units: int) -> tuple[float, UnitScores]:
        return seconds(self.n_images, n_units, self.embedding, self.config)


def seconds(n_images: int, n_units: int, embedding: Embedding, config: MisConfig) -> tuple[float, UnitScores]:
    """CPU seconds without those that made the activations, and the scores."""
    stored, before = Stream(n_images, n_units), time.process_time()
    scores = score_units(stored, Neurons(n_units), embedding, config, 0, temperature=TEMPERATURE)
    return time.process_time() - before - stored.seconds, scores


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--units", type=int, default=10_000)
    options.add_argument("--few", type=int, default=100)
    options.add_argument("--images", type=int, default=50_000)
    options.add_argument("--tasks", type=int, default=100)
    options.add_argument("--width", type=int, default=WIDTH)
    options.add_argument("--rounds", type=int, default=6)
    chosen = options.parse_args(argv)
    torch.set_num_threads(1)
    work = Work(chosen.images, chosen.tasks, chosen.width)
    work.seconds(chosen.few)  # not counted
    one, few = [], []

    def some_rounds(n_rounds: int) -> None:
        for _ in range(n_rounds):
            one.append(work.seconds(1)[0])
            few.append(work.seconds(chosen.few)[0])
            print(f"1 unit {one[-1]:.3f} s, {chosen.few} units {few[-1]:.3f} s", file=sys.stderr, flush=True)

    some_rounds(chosen.rounds - chosen.rounds // 2)
    started = time.perf_counter()
    many, scores = work.seconds(chosen.units)
    took = time.perf_counter() - started
    some_rounds(chosen.rounds // 2)

    fixed = Spread.of(one)
    of_few = [(total - fixed.median) / (chosen.few - 1) * 1000 for total in few]
    of_many = (many - fixed.median) / (chosen.units - 1) * 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{chosen.units:,} units, {chosen.images:,} images, {chosen.tasks} tasks a unit: {took:.0f} s")
    print(f"a single unit: {fixed} CPU s")
    print(f"CPU ms a further unit: {Spread.of(of_few)} of {chosen.few}, {of_many:.2f} of {chosen.units:,}")
    whole = Spread.of([total / chosen.few * 1000 for total in few])
    print(f"CPU ms a unit with all that is done once: {whole} of {chosen.few}, {many / chosen.units * 1000:.2f}")
    held = verdict("cost of a unit among many, over that among few", of_many / Spread.of(of_few).median, "<=", COST)
    held &= verdict("peak of the resident set, GB", peak, "<=", PEAK_GB)
    for negatives, result in scores.by_negatives.items():
        hard = np.asarray(result.scores.hard.estimate)
        off = abs(hard.mean() - 0.5) / (hard.std(ddof=1) / len(hard) ** 0.5)
        held &= verdict(f"mean hard score {hard.mean():.4f}, {negatives}: standard errors from one half", off, "<=", 4)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())

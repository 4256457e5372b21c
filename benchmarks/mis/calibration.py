"""Do the numbers of the MIS keep what they promise? Simulations in which the truth is known.

    python benchmarks/mis/calibration.py [--simulations 2000] [--resamples 1000] [--seed 0]

Units that respond at random must score one half, with the spread of guessing; 95 % intervals must cover the truth;
tests must find a difference that is not there in 5 % of cases. What is simulated is said in each function. Everything
runs the code that a run uses. Exit code 1 when a check fails.
"""

# U units  N tasks a unit  n images  S simulations

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom

from mis_lab.activations.units import Neurons
from mis_lab.core.intervals import wilson
from mis_lab.core.seeding import generator, numpy_generator
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig, Negatives
from mis_lab.mis.differences import holm, mann_whitney, unit_bootstrap
from mis_lab.mis.discovery import Correction, chance_p_values, discoveries
from mis_lab.mis.pairs import compare_pairs, signed_rank
from mis_lab.mis.run import score_units
from mis_lab.mis.score import score
from mis_lab.mis.unit_scores import UnitScores

LEVEL, TASKS, TEMPERATURE = 0.05, 20, 0.16
SIZE = (0.035, 0.065)  # 5 ± 1.5 %
N_IMAGES, WIDTH, N_CLUSTERS = 4000, 64, 200
SOFT_BANDS = ((0.5, 0.75), (0.75, 0.9), (0.9, 1.0))


class Check(NamedTuple):
    """A measured number, the range it must lie in, and its standard error."""

    what: str
    value: float
    low: float
    high: float
    error: float = 0.0

    @property
    def verdict(self) -> str:
        return "PASS" if self.low <= self.value <= self.high else "FAIL"


def share(what: str, hits: np.ndarray, low: float, high: float) -> Check:
    """A share of simulations."""
    value = float(np.mean(hits))
    return Check(what, value, low, high, float(np.sqrt(max(value * (1 - value), 1e-4) / np.size(hits))))


# ---- units at chance


class Noise:
    """Activations that have nothing to do with the images, where a run has stored ones."""

    n_positions = 1

    def __init__(self, n_images: int, n_units: int, seed: int) -> None:
        self.n_images, self.width, self.site = n_images, n_units, SimpleNamespace(path="noise")
        self.ids = [f"image {image:05d}" for image in range(n_images)]
        self.groups, self._seed = self.ids, seed

    def images(self, batch: int) -> Iterator[tuple[range, torch.Tensor]]:
        random = generator(self._seed, "noise")
        for start in range(0, self.n_images, batch):
            indices = range(start, min(start + batch, self.n_images))
            yield indices, torch.randn(len(indices), 1, self.width, generator=random)


def clustered(n_images: int, seed: int) -> Embedding:
    """Unit vectors in clusters, as images of many subjects are."""
    random = numpy_generator(seed, "images")
    cluster = random.integers(0, N_CLUSTERS, n_images)
    rows = random.standard_normal((N_CLUSTERS, WIDTH))[cluster] + 0.8 * random.standard_normal((n_images, WIDTH))
    rows_nd = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    return Embedding("simulated", [f"image {image:05d}" for image in range(n_images)], "cosine", 1.0, "", rows=rows_nd)


def chance_scores(n_units: int, seed: int, n_images: int = N_IMAGES) -> UnitScores:
    """Scores of units that respond at random, by the default protocol."""
    config = MisConfig(n_tasks=TASKS, negatives=[Negatives.random, Negatives.bottom], n_bootstrap=50)
    stored = Noise(n_images, n_units, seed)
    return score_units(stored, Neurons(n_units), clustered(n_images, seed), config, seed, temperature=TEMPERATURE)


def random_units(scores: UnitScores) -> list[Check]:
    """Random units score one half, as spread as guesses are; false discoveries among them stay rare."""
    checks, guessing = [], np.sqrt(0.25 / TASKS)
    for negatives, result in scores.by_negatives.items():
        n_units = len(result.status)
        for measure in ("hard", "soft"):
            values = np.asarray(getattr(result.scores, measure).estimate)
            error = values.std(ddof=1) / np.sqrt(n_units)
            checks.append(Check(f"random units, {negatives}: mean {measure}", values.mean(), 0.49, 0.51, error))
        hard = np.asarray(result.scores.hard.estimate)
        spread = hard.std(ddof=1) / guessing
        error = spread / np.sqrt(2 * n_units)
        checks.append(Check(f"random units, {negatives}: spread / that of guesses", spread, 0.95, 1.15, error))
        p_values = chance_p_values(result.margins, scores.settings.tie)
        checks.append(share(f"random units, {negatives}: p < 0.05 one by one", p_values < LEVEL, 0.0, SIZE[1]))
        found = discoveries(p_values).interpretable
        checks.append(share(f"random units, {negatives}: called interpretable", found, 0.0, 0.002))
    return checks


# ---- intervals


def wilson_coverage() -> list[Check]:
    """Exact: the share of outcomes whose interval has p, for every p of a fine grid from 0.5 to 0.99."""
    checks = []
    for n in (TASKS, 100):
        p = np.linspace(0.5, 0.99, 4901)[:, None]
        right = np.arange(n + 1)
        interval = wilson(right / n, n)
        covered = (interval.low <= p + 1e-12) & (p - 1e-12 <= interval.high)
        coverage = (binom.pmf(right, n, p) * covered).sum(1)
        checks.append(Check(f"Wilson, {n} tasks: mean coverage", coverage.mean(), 0.94, 0.96))
        checks.append(Check(f"Wilson, {n} tasks: least coverage", coverage.min(), 0.89, 1.0))
    return checks


def task_intervals(n_simulations: int, seed: int) -> list[Check]:
    """Intervals of a unit's scores over its tasks; margins are normal, units differ in mean and spread.

    The soft score's are told apart by its true value: near 1 outcomes are skewed, and many published scores lie there.
    """
    random, n_simulations = numpy_generator(seed, "margins"), 3 * n_simulations
    mean, spread = random.uniform(0, 0.8, (n_simulations, 1)), random.uniform(0.15, 0.4, (n_simulations, 1))
    margins = torch.from_numpy(mean + spread * random.standard_normal((n_simulations, TASKS)))
    found = score(margins, torch.full((n_simulations,), TASKS), TEMPERATURE, 0.0, 1000, seed)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    possible, weights = mean + spread * nodes, weights / weights.sum()
    truths = {
        "soft": (1 / (1 + np.exp(-possible / TEMPERATURE))) @ weights,
        "delta_over_tau": mean[:, 0] / TEMPERATURE,
    }
    checks = []
    for measure, truth in truths.items():
        interval = getattr(found, measure)
        covered = (interval.low <= truth) & (truth <= interval.high)
        what = f"bootstrap over {TASKS} tasks: coverage of {measure}"
        if measure == "soft":
            for low, high in SOFT_BANDS:
                some = covered[(low <= truth) & (truth < high)]
                checks.append(share(f"{what} from {low:g} to {high:g}", some, 0.90, 0.97))
        else:
            checks.append(share(what, covered, 0.90, 0.97))
    p = random.uniform(0.5, 0.99, (n_simulations, 1))
    right = torch.from_numpy(np.where(random.random((n_simulations, TASKS)) < p, 1.0, -1.0))
    hard = score(right, torch.full((n_simulations,), TASKS), TEMPERATURE, 0.0, 1, seed).hard
    covered = (hard.low <= p[:, 0]) & (p[:, 0] <= hard.high)
    checks.append(share(f"Wilson over {TASKS} tasks, simulated: coverage", covered, 0.94, 0.96))
    return checks


# ---- tests


def two_sets(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """Two sets of 60 and 90 units with the same distribution of hard scores; nine sites for Holm's correction."""
    random = numpy_generator(seed, "two sets")
    p_values, outside, covered = np.empty((n_simulations, 9)), [], []
    for number in range(n_simulations):
        for site in range(9):
            a, b = (_hard_scores(random, n_units) for n_units in (60, 90))
            p_values[number, site] = mann_whitney(a, b)
        found = unit_bootstrap(a, b, n_resamples, seed + number)
        outside.append(found.mean_difference.low > 0 or found.mean_difference.high < 0)
        covered.append(found.cliffs_delta.low <= 0 <= found.cliffs_delta.high)
    any_site = np.array([(holm(one) < LEVEL).any() for one in p_values])
    return [
        share("Mann-Whitney: type I error", p_values < LEVEL, *SIZE),
        share("bootstrap of the difference of means: type I error", np.array(outside), *SIZE),
        share("bootstrap of Cliff's delta: coverage", np.array(covered), 0.93, 0.97),
        share("Holm over 9 sites: type I error", any_site, *SIZE),
    ]


def pairs(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """80 features and their neurons: scores differ by noise alone. Then 40 neurons with 3 features each."""
    random = numpy_generator(seed, "pairs")
    neurons = np.array([_hard_scores(random, 80) for _ in range(n_simulations)])
    chance = np.clip(neurons + random.normal(0, 0.02, neurons.shape), 0, 1)
    # Of one pair both draw from the same chance, so that neither is higher on average.
    a, b = (random.binomial(TASKS, chance) / TASKS for _ in range(2))
    p_values = np.array([signed_rank(np.round(one, 12)) for one in a - b])
    clustered_p = np.empty(n_simulations)
    partner, outside = np.repeat(np.arange(40), 3), []
    for number in range(n_simulations):
        of_neuron = random.normal(0, 0.05, 40)
        differences = of_neuron[partner] + random.normal(0, 0.05, 120)
        found = compare_pairs(differences, np.zeros(120), partner, n_resamples, seed + number)
        clustered_p[number] = found.p_value
        outside.append(found.mean_difference.low > 0 or found.mean_difference.high < 0)
    return [
        share("Wilcoxon: type I error", p_values < LEVEL, *SIZE),
        share("Wilcoxon, neurons with 3 features: type I error", clustered_p < LEVEL, *SIZE),
        share("bootstrap of pairs: type I error", np.array(outside), *SIZE),
    ]


def false_discoveries(n_simulations: int, seed: int) -> list[Check]:
    """100 tests without an effect (any discovery is an error), uniform p-values and hard scores'; then a mixture."""
    random = numpy_generator(seed, "discoveries")
    uniform = random.random((n_simulations, 100))
    checks = [
        share(
            f"{correction.name}: type I error, uniform p-values",
            np.array([discoveries(one, LEVEL, correction).n_interpretable > 0 for one in uniform]),
            *SIZE,
        )
        for correction in Correction
    ]
    wins = random.binomial(TASKS, 0.5, (n_simulations, 100))
    p_values = binom.sf(wins - 1, TASKS, 0.5)  # as of chance_p_values, without 2,000,000 margins
    found = [discoveries(one).n_interpretable > 0 for one in p_values]
    checks.append(share("benjamini_hochberg: type I error, hard scores", np.array(found), 0.0, SIZE[1]))
    chance = np.concatenate([np.full(150, 0.5), np.full(50, 0.85)])
    p_values = binom.sf(random.binomial(TASKS, chance, (n_simulations, 200)) - 1, TASKS, 0.5)
    for correction in Correction:
        shares = np.array([_false_share(one, correction, 150) for one in p_values])
        error = shares.std() / np.sqrt(n_simulations)
        checks.append(Check(f"{correction.name}: false discoveries, mixture", shares.mean(), 0.0, 0.065, error))
    return checks


def _false_share(p_values: np.ndarray, correction: Correction, n_null: int) -> float:
    found = discoveries(p_values, LEVEL, correction).interpretable
    return float(found[:n_null].sum() / max(1, found.sum()))


def _hard_scores(random: np.random.Generator, n_units: int) -> np.ndarray:
    """Of units that differ: chances from 0.5 to 1, most of them high."""
    return random.binomial(TASKS, 0.5 + 0.5 * random.beta(4, 2, n_units)) / TASKS


def checks(n_simulations: int, n_resamples: int, seed: int, n_images: int = N_IMAGES) -> list[Check]:
    """All checks."""
    return [
        *random_units(chance_scores(n_simulations, seed, n_images)),
        *wilson_coverage(),
        *task_intervals(n_simulations, seed),
        *two_sets(n_simulations, n_resamples, seed),
        *pairs(n_simulations, n_resamples, seed),
        *false_discoveries(n_simulations, seed),
    ]


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--simulations", type=int, default=2000)
    options.add_argument("--resamples", type=int, default=1000, help="of a bootstrap over units (a run's default)")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(argv)
    started = time.perf_counter()
    found = checks(chosen.simulations, chosen.resamples, chosen.seed)
    width = max(len(check.what) for check in found)
    for check in found:
        error = f"± {check.error:.4f}" if check.error else "exact   "
        print(f"{check.what:{width}}  {check.value:.4f} {error}  ({check.low:g} to {check.high:g})  {check.verdict}")
    failed = sum(check.verdict == "FAIL" for check in found)
    print(f"{len(found)} checks, {failed} failed, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

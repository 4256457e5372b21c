"""Units that respond at random: their scores, and how many of them are found interpretable."""

# U units  n images

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from check import LEVEL, SIZE, TASKS, TEMPERATURE, Check, share
from scipy.stats import binom

from mis_lab.activations.units import Neurons
from mis_lab.core.seeding import generator, numpy_generator
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig, Negatives
from mis_lab.mis.discovery import Correction, chance_p_values, discoveries
from mis_lab.mis.run import score_units
from mis_lab.mis.unit_scores import UnitScores

N_IMAGES, WIDTH, N_CLUSTERS = 4000, 64, 200


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
        checks.append(Check(f"{correction.name}: false discoveries, mixture", shares.mean(), 0.0, LEVEL, error))
    return checks


def _false_share(p_values: np.ndarray, correction: Correction, n_null: int) -> float:
    found = discoveries(p_values, LEVEL, correction).interpretable
    return float(found[:n_null].sum() / max(1, found.sum()))

"""Comparisons of units that do not differ: how often does a test, or an interval, find a difference?"""

# G groups of images  U units of a set  N tasks a unit

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from chance_units import chance_scores
from check import LEVEL, SIZE, TASKS, TEMPERATURE, Check, hard_scores, share

from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.mis.agreement import rank_agreement
from mis_lab.mis.compare import group_bootstrap
from mis_lab.mis.differences import holm, mann_whitney, unit_bootstrap
from mis_lab.mis.pairs import compare_pairs, signed_rank
from mis_lab.mis.score import score
from mis_lab.mis.unit_scores import UnitScores

N_SCENES = 18  # of the quickstart


def leaves_out(interval: Interval, value: float = 0.0) -> bool:
    """Whether an interval finds another value than the true one."""
    return not interval.low <= value <= interval.high


def two_sets(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """Two sets of 60 and 90 units with the same distribution of hard scores; nine sites for Holm's correction."""
    random = numpy_generator(seed, "two sets")
    p_values = np.array(
        [[mann_whitney(*(hard_scores(random, n) for n in (60, 90))) for _ in range(9)] for _ in range(n_simulations)]
    )
    any_site = np.array([(holm(one) < LEVEL).any() for one in p_values])
    checks = [
        share("Mann-Whitney: type I error", p_values < LEVEL, *SIZE),
        share("Holm over 9 sites: type I error", any_site, *SIZE),
    ]
    for n_a, n_b in ((20, 30), (60, 90)):
        found = [
            unit_bootstrap(hard_scores(random, n_a), hard_scores(random, n_b), n_resamples, seed + number)
            for number in range(n_simulations)
        ]
        for name in ("mean_difference", "cliffs_delta"):
            outside = np.array([leaves_out(getattr(one, name)) for one in found])
            what = f"bootstrap of {name.replace('_', ' ')}, {n_a} and {n_b} units: type I error"
            checks.append(share(what, outside, *SIZE))
    return checks


def pairs(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """80 features and their neurons: scores differ by noise alone. Then 40 neurons with 3 features each."""
    random = numpy_generator(seed, "pairs")
    neurons = np.array([hard_scores(random, 80) for _ in range(n_simulations)])
    chance = np.clip(neurons + random.normal(0, 0.02, neurons.shape), 0, 1)
    # Of one pair both draw from the same chance, so that neither is higher on average.
    a, b = (random.binomial(TASKS, chance) / TASKS for _ in range(2))
    p_values = np.array([signed_rank(np.round(one, 12)) for one in a - b])
    partner, found = np.repeat(np.arange(40), 3), []
    for number in range(n_simulations):
        differences = random.normal(0, 0.05, 40)[partner] + random.normal(0, 0.05, 120)
        found.append(compare_pairs(differences, np.zeros(120), partner, n_resamples, seed + number))
    clustered_p, means, ranks = (
        np.array(hits)
        for hits in zip(
            *((one.p_value, leaves_out(one.mean_difference), leaves_out(one.rank_biserial)) for one in found),
            strict=True,
        )
    )
    return [
        share("Wilcoxon: type I error", p_values < LEVEL, *SIZE),
        share("Wilcoxon, neurons with 3 features: type I error", clustered_p < LEVEL, *SIZE),
        share("bootstrap of pairs, mean difference: type I error", means, *SIZE),
        share("bootstrap of pairs, rank-biserial: type I error", ranks, *SIZE),
    ]


def sites(n_simulations: int, seed: int) -> list[Check]:
    """Mean differences of n sites. The least p is 2 / 2ⁿ: five sites can agree, but not be significant."""
    random = numpy_generator(seed, "sites")
    checks = [
        Check(f"Wilcoxon over {n} sites: least p", signed_rank(np.arange(1.0, n + 1)), low, high)
        for n, low, high in ((5, LEVEL, 1.0), (6, 0.0, LEVEL))
    ]
    for n in (10, 20):
        differences = random.normal(0, 0.02, (n_simulations, n))
        p_values = np.array([signed_rank(one) for one in differences])
        checks.append(share(f"Wilcoxon over {n} sites: type I error", p_values < LEVEL, *SIZE))
    return checks


def groups(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """30 units of either set; each scene moves each set's margins by an effect of its own, zero on average.

    Scenes have unequal shares of the tasks. With six of them the interval is wider than it need be.
    """
    random, template, checks = numpy_generator(seed, "groups"), chance_scores(1, seed, 500), []
    for n_groups, low in ((N_SCENES, SIZE[0]), (6, 0.0)):
        outside = np.empty(n_simulations)
        for number in range(n_simulations):
            shares = random.dirichlet(np.full(n_groups, 2.0))
            a, b = (_moved_by_scenes(template, random, shares) for _ in range(2))
            interval, _ = group_bootstrap(a, b, "random", "delta_over_tau", n_resamples, seed + number)
            outside[number] = leaves_out(interval)
        checks.append(share(f"bootstrap over {n_groups} groups: type I error", outside, low, SIZE[1]))
    return checks


def _moved_by_scenes(template: UnitScores, random: np.random.Generator, shares: np.ndarray) -> UnitScores:
    """Scores of 30 units whose query of task t belongs to a random scene: image g is the one of scene g."""
    scene_un = torch.from_numpy(random.choice(len(shares), (30, TASKS), p=shares))
    effect_g = torch.from_numpy(random.normal(0, 0.1, len(shares)))
    margins = 0.3 + effect_g[scene_un] + 0.2 * torch.from_numpy(random.standard_normal(scene_un.shape))
    result, n_tasks = template.of("random"), torch.full((30,), TASKS)
    tasks = result.tasks._replace(query_positive=scene_un, n_tasks=n_tasks)
    scores = score(margins, n_tasks, TEMPERATURE, 0.0, 1, 0)
    moved = replace(result, status=torch.zeros(30, dtype=torch.int64), tasks=tasks, margins=margins, scores=scores)
    names = [f"scene {scene}" for scene in range(len(shares))]
    return replace(template, image_groups=names, by_negatives={"random": moved})


def agreement(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """Two metrics rank 30 units: independently, then with a normal correlation of 0.8."""
    random, checks = numpy_generator(seed, "agreement"), []
    for correlation in (0.0, 0.8):
        a = random.standard_normal((n_simulations, 30))
        b = correlation * a + np.sqrt(1 - correlation**2) * random.standard_normal(a.shape)
        truth = 6 / np.pi * np.arcsin(correlation / 2)  # Spearman's, of a normal distribution (Pearson 1907)
        outside = np.array(
            [
                leaves_out(rank_agreement(*both, n_bootstrap=n_resamples, seed=seed + number).spearman, truth)
                for number, both in enumerate(zip(a, b, strict=True))
            ]
        )
        if correlation:
            checks.append(share(f"Spearman interval, truth {truth:.2f}: coverage", ~outside, 0.93, 0.97))
        else:
            checks.append(share("Spearman interval, independent scores: type I error", outside, *SIZE))
    return checks

"""Intervals of a unit's scores over its tasks: do they cover the mean over all tasks that could be drawn?

Margins are mixtures of normal distributions, so that the truth is known to many digits. The soft score's intervals are
told apart by its true value: near 1 outcomes are skewed, and many published scores lie there.
"""

# S simulations  N tasks  C components of a mixture

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from check import TASKS, TEMPERATURE, Check, share
from scipy.special import expit
from scipy.stats import binom

from mis_lab.core.intervals import wilson
from mis_lab.core.seeding import numpy_generator
from mis_lab.mis.score import score

SOFT_BANDS = ((0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
SIZES = (5, 10, TASKS, 100)
LEAST = 1 / 40  # of the simulations of a kind lie in a band, for its coverage there to be told


class Mixture(NamedTuple):
    """Margins of S units: normal components with (S, C) means, standard deviations and shares."""

    mean_sc: np.ndarray
    sd_sc: np.ndarray
    share_sc: np.ndarray

    def draw(self, random: np.random.Generator, n_tasks: int) -> np.ndarray:
        """(S, N) margins."""
        upto_sc = np.cumsum(self.share_sc, 1)[:, None, :-1]
        component_sn = (random.random((len(self.mean_sc), n_tasks, 1)) > upto_sc).sum(-1)
        mean, sd = (np.take_along_axis(one, component_sn, 1) for one in (self.mean_sc, self.sd_sc))
        return mean + sd * random.standard_normal(mean.shape)

    def truth(self) -> dict[str, np.ndarray]:
        """(S,) expected soft score and Δ/τ."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        possible = self.mean_sc[..., None] + self.sd_sc[..., None] * nodes
        soft_sc = expit(possible / TEMPERATURE) @ (weights / weights.sum())
        of_components = {"soft": soft_sc, "delta_over_tau": self.mean_sc / TEMPERATURE}
        return {measure: (values * self.share_sc).sum(1) for measure, values in of_components.items()}


def kinds(random: np.random.Generator, n_simulations: int) -> dict[str, Mixture]:
    """Units as they occur, and as they may: each simulation has a unit of its own."""

    def within(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, n_simulations)

    def mixture(first: tuple, second: tuple | None = None, share_of_second: np.ndarray | None = None) -> Mixture:
        if second is None or share_of_second is None:
            columns, shares = [first], [np.ones(n_simulations)]
        else:
            columns, shares = [first, second], [1 - share_of_second, share_of_second]
        means, sds = (
            np.stack([np.broadcast_to(one, n_simulations) for one in of], 1) for of in zip(*columns, strict=True)
        )
        return Mixture(means, sds, np.stack(shares, 1))

    return {
        "normal": mixture((within(0, 0.8), within(0.15, 0.4))),
        "normal, high": mixture((within(0.6, 1.2), within(0.1, 0.4))),
        "nearly constant": mixture((within(0, 0.9), within(0.002, 0.05))),
        "a few fail": mixture((within(0.4, 0.9), 0.15), (within(-0.4, 0), 0.15), within(0.02, 0.25)),
        "long tail": mixture((within(0.3, 0.8), 0.1), (within(0.1, 0.3), 0.3), within(0.1, 0.3)),
        "bimodal": mixture((within(0.4, 0.7), 0.05), (within(-0.4, 0.1), 0.05), within(0.2, 0.6)),
        "all or nothing": mixture((3.0, 0.01), (-3.0, 0.01), within(0, 0.5)),
    }


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


def task_intervals(n_simulations: int, n_resamples: int, seed: int) -> list[Check]:
    """Soft score, Δ/τ and hard score at several numbers of tasks."""
    checks = []
    for n_tasks in SIZES:
        checks += _bootstraps(n_simulations, n_tasks, n_resamples, seed)
    random = numpy_generator(seed, "right answers")
    p = random.uniform(0.5, 0.99, (3 * n_simulations, 1))
    right = torch.from_numpy(np.where(random.random((len(p), TASKS)) < p, 1.0, -1.0))
    hard = score(right, torch.full((len(p),), TASKS), TEMPERATURE, 0.0, 1, seed).hard
    covered = (hard.low <= p[:, 0]) & (p[:, 0] <= hard.high)
    checks.append(share(f"Wilson over {TASKS} tasks, simulated: coverage", covered, 0.94, 0.96))
    return checks


def _bootstraps(n_simulations: int, n_tasks: int, n_resamples: int, seed: int) -> list[Check]:
    random = numpy_generator(seed, "margins", n_tasks)
    true_s, covered_s, width_s, kind_s, checks = [], [], [], [], []
    delta_over_tau = {}
    for kind, units in kinds(random, n_simulations).items():
        delta, truth = units.draw(random, n_tasks), units.truth()
        found = score(torch.from_numpy(delta), torch.full((len(delta),), n_tasks), TEMPERATURE, 0.0, n_resamples, seed)
        covered = {
            measure: (getattr(found, measure).low <= true + 1e-12) & (true - 1e-12 <= getattr(found, measure).high)
            for measure, true in truth.items()
        }
        true_s.append(truth["soft"])
        covered_s.append(covered["soft"])
        width_s.append(np.asarray(found.soft.high) - np.asarray(found.soft.low))
        kind_s += [kind] * len(delta)
        delta_over_tau[kind] = covered["delta_over_tau"]
    true, covers, width, of = (
        np.concatenate(true_s),
        np.concatenate(covered_s),
        np.concatenate(width_s),
        np.array(kind_s),
    )
    for low, high in SOFT_BANDS:
        band = (low <= true) & (true < high)
        by_kind = {kind: covers[band & (of == kind)] for kind in delta_over_tau}
        worst, kind = min((hits.mean(), kind) for kind, hits in by_kind.items() if len(hits) >= LEAST * n_simulations)
        note = f"mean width {width[band].mean():.3f}; least of {kind} units, {worst:.3f}"
        checks.append(
            share(f"{n_tasks} tasks: coverage of soft from {low:g} to {high:g}", covers[band], 0.90, 1.0, note)
        )
    worst, kind = min((hits.mean(), kind) for kind, hits in delta_over_tau.items() if kind != "all or nothing")
    note = f"least of {kind} units, {worst:.3f}"
    checks.append(share(f"{n_tasks} tasks: coverage of Δ/τ, normal", delta_over_tau["normal"], 0.90, 0.97, note))
    return checks

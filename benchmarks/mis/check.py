"""What a simulation found, beside the range that it must lie in; and what several simulations have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEVEL, TASKS, TEMPERATURE = 0.05, 20, 0.16
SIZE = (0.035, 0.065)  # of a test at that level: 5 ± 1.5 %


class Check(NamedTuple):
    """A measured number, the range it must lie in, its standard error, and what to read beside it."""

    what: str
    value: float
    low: float
    high: float
    error: float = 0.0
    note: str = ""

    @property
    def verdict(self) -> str:
        return "PASS" if self.low <= self.value <= self.high else "FAIL"


def share(what: str, hits: np.ndarray, low: float, high: float, note: str = "") -> Check:
    """A share of simulations."""
    value = float(np.mean(hits))
    return Check(what, value, low, high, float(np.sqrt(max(value * (1 - value), 1e-4) / np.size(hits))), note)


def hard_scores(random: np.random.Generator, n_units: int) -> np.ndarray:
    """Of units that differ: chances from 0.5 to 1, most of them high."""
    return random.binomial(TASKS, 0.5 + 0.5 * random.beta(4, 2, n_units)) / TASKS

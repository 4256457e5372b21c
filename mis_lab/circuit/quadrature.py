"""Points and weights for the mean of a function over [0, 1], α = 0 at the baseline and α = 1 at the image.

Networks of ReLUs have gradients that jump along the path, where the midpoint rule does best and
Gauss-Legendre loses its order; smooth networks are the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mis_lab.circuit.config import Quadrature


class Rule(NamedTuple):
    """Points `alphas` in [0, 1] and their `weights`, which sum to 1."""

    alphas: tuple[float, ...]
    weights: tuple[float, ...]


def midpoint(n_steps: int) -> Rule:
    """Middles of `n_steps` equal intervals."""
    return _even((np.arange(n_steps) + 0.5) / n_steps)


def left(n_steps: int) -> Rule:
    """Left ends: the baseline counts, the image does not."""
    return _even(np.arange(n_steps) / n_steps)


def right(n_steps: int) -> Rule:
    """Right ends: the image counts, the baseline does not; one step is attribution patching."""
    return _even((np.arange(n_steps) + 1) / n_steps)


def trapezoid(n_steps: int) -> Rule:
    """Both ends of `n_steps` intervals: `n_steps` + 1 points, the outer two at half weight."""
    weights = np.full(n_steps + 1, 1 / n_steps)
    weights[[0, -1]] /= 2
    return _rule(np.arange(n_steps + 1) / n_steps, weights)


def gauss_legendre(n_steps: int) -> Rule:
    """Exact for polynomials up to degree 2 `n_steps` − 1."""
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    return _rule((points + 1) / 2, weights / 2)


RULES: dict[Quadrature, Callable[[int], Rule]] = {
    Quadrature.midpoint: midpoint,
    Quadrature.left: left,
    Quadrature.right: right,
    Quadrature.trapezoid: trapezoid,
    Quadrature.gauss_legendre: gauss_legendre,
}


def _even(alphas: np.ndarray) -> Rule:
    return _rule(alphas, np.full(len(alphas), 1 / len(alphas)))


def _rule(alphas: np.ndarray, weights: np.ndarray) -> Rule:
    return Rule(tuple(alphas.tolist()), tuple(weights.tolist()))

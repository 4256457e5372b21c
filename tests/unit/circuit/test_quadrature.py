"""Rules against exact integrals of polynomials, and against their textbook points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid as scipy_trapezoid

from mis_lab.circuit.config import Quadrature
from mis_lab.circuit.quadrature import RULES, Rule


def integrate(rule: Rule, coefficients: np.ndarray) -> float:
    return float(np.dot(rule.weights, np.polyval(coefficients, rule.alphas)))


def exact(coefficients: np.ndarray) -> float:
    return float(np.polyval(np.polyint(coefficients), 1.0))


@given(st.sampled_from(Quadrature), st.integers(1, 40))
def test_weights_sum_to_one_and_points_lie_on_the_path(rule: Quadrature, n_steps: int) -> None:
    alphas, weights = RULES[rule](n_steps)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) > 0
    assert 0 <= min(alphas) <= max(alphas) <= 1
    assert list(alphas) == sorted(set(alphas))
    assert len(alphas) == n_steps + (rule is Quadrature.trapezoid)


@given(st.sampled_from([Quadrature.midpoint, Quadrature.trapezoid]), st.integers(1, 20), st.floats(-5, 5))
def test_midpoint_and_trapezoid_are_exact_for_linear_gradients(rule: Quadrature, n_steps: int, slope: float) -> None:
    line = np.array([slope, 1.0])
    assert integrate(RULES[rule](n_steps), line) == pytest.approx(exact(line), abs=1e-12)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_gauss_legendre_is_exact_up_to_degree_2n_minus_1(n_steps: int, seed: int) -> None:
    polynomial = np.random.default_rng(seed).normal(size=2 * n_steps)
    assert integrate(RULES[Quadrature.gauss_legendre](n_steps), polynomial) == pytest.approx(
        exact(polynomial), abs=1e-12
    )
    monomial = np.zeros(2 * n_steps + 1)
    monomial[0] = 1.0
    assert abs(integrate(RULES[Quadrature.gauss_legendre](n_steps), monomial) - exact(monomial)) > 1e-13


def test_points_of_the_textbook() -> None:
    assert RULES[Quadrature.midpoint](2) == Rule((0.25, 0.75), (0.5, 0.5))
    assert RULES[Quadrature.left](2) == Rule((0.0, 0.5), (0.5, 0.5))
    assert RULES[Quadrature.right](2) == Rule((0.5, 1.0), (0.5, 0.5))
    assert RULES[Quadrature.trapezoid](2) == Rule((0.0, 0.5, 1.0), (0.25, 0.5, 0.25))


def test_trapezoid_is_scipys() -> None:
    alphas, weights = RULES[Quadrature.trapezoid](7)
    assert np.dot(weights, np.exp(alphas)) == pytest.approx(scipy_trapezoid(np.exp(alphas), alphas), abs=1e-14)


@pytest.mark.parametrize(
    ("rule", "order"),
    [(Quadrature.left, 1), (Quadrature.right, 1), (Quadrature.midpoint, 2), (Quadrature.trapezoid, 2)],
)
def test_error_shrinks_at_the_rules_order(rule: Quadrature, order: int) -> None:
    def error(n_steps: int) -> float:
        alphas, weights = RULES[rule](n_steps)
        return abs(float(np.dot(weights, np.exp(alphas))) - (np.e - 1))

    assert error(32) / error(64) == pytest.approx(2**order, rel=0.05)

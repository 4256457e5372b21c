"""Objectives against PyTorch's losses, SciPy and plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch.nn.functional import cross_entropy

from mis_lab.circuit.attribution import site_gradients
from mis_lab.circuit.config import Objective
from mis_lab.circuit.objectives import OBJECTIVES, kl, log_prob, logit, logit_diff, logit_diff_to
from mis_lab.circuit.targets import clean_logits

LOGITS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
TARGETS = torch.tensor([0, 4, 2, 2, 1, 3])


def test_logit_diff_subtracts_the_mean_of_the_others() -> None:
    for row, target, found in zip(LOGITS, TARGETS, logit_diff(LOGITS, TARGETS), strict=True):
        others = [float(value) for number, value in enumerate(row) if number != target]
        assert float(found) == pytest.approx(float(row[target]) - np.mean(others), rel=1e-12)


def test_logit_diff_to_a_class_subtracts_its_logit() -> None:
    torch.testing.assert_close(logit_diff_to(3)(LOGITS, TARGETS), logit(LOGITS, TARGETS) - LOGITS[:, 3])
    assert logit_diff_to(3)(LOGITS, TARGETS)[5] == 0


def test_differences_of_two_classes_are_each_others_negative() -> None:
    zeros, ones = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    torch.testing.assert_close(logit_diff_to(1)(LOGITS, zeros), -logit_diff_to(0)(LOGITS, ones))
    two = LOGITS[:, :2]
    torch.testing.assert_close(logit_diff(two, zeros), logit_diff_to(1)(two, zeros))


@pytest.mark.parametrize("objective", [logit_diff, logit_diff_to(2), log_prob])
def test_a_constant_added_to_all_logits_changes_nothing(objective) -> None:
    torch.testing.assert_close(objective(LOGITS + 7, TARGETS), objective(LOGITS, TARGETS))


def test_log_prob_is_the_negative_cross_entropy_of_each_image() -> None:
    torch.testing.assert_close(log_prob(LOGITS, TARGETS), -cross_entropy(LOGITS, TARGETS, reduction="none"))


def test_kl_is_scipys_relative_entropy_with_a_minus() -> None:
    other = LOGITS.flip(0)
    expected = [-entropy(p, q) for p, q in zip(softmax(LOGITS, 1), softmax(other, 1), strict=True)]
    np.testing.assert_allclose(kl(other, LOGITS), expected, rtol=1e-10)
    assert (kl(other, LOGITS) < 0).all()
    with pytest.raises(ValueError, match=r"clean logits \(6, 5\), not \(6,\)"):
        kl(LOGITS, TARGETS)


def test_kl_of_the_undisturbed_network_is_0_to_the_bit_and_so_is_its_gradient(make_toy) -> None:
    toy = make_toy(dtype=torch.float32)
    problem = replace(toy.problem, objective=kl)
    clean = clean_logits(problem.model, toy.images)
    start = 0
    for batch in toy.images:
        rows = clean[start : start + len(batch)]
        assert not problem.values(batch, rows).any()
        for gradient in site_gradients(problem, batch, rows).values():
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
        start += len(batch)


@pytest.mark.parametrize("objective", Objective)
def test_an_image_has_its_value_whatever_the_batch(make_toy, objective) -> None:
    toy = make_toy()
    problem = replace(toy.problem, objective=OBJECTIVES[objective])
    others = torch.randn(7, 4, dtype=torch.float64)
    rows = others if objective is Objective.kl else toy.targets_n
    whole = problem.values(toy.all_images, rows)
    alone = [problem.values(image[None], row[None]) for image, row in zip(toy.all_images, rows, strict=True)]
    assert whole.shape == (7,)
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-10, atol=1e-12)

"""The path of the input has the ends and the steps that its rule says."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit.attribution import InputPath, gradient_pass
from mis_lab.circuit.config import Quadrature
from mis_lab.circuit.quadrature import RULES


@pytest.mark.parametrize("rule", Quadrature)
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_a_path_has_as_many_steps_as_its_rule_was_made_of(rule, n_steps) -> None:
    assert InputPath(torch.zeros(1, 2, 2), RULES[rule](n_steps)).n_steps == n_steps


def test_a_path_ends_at_the_image_to_the_bit() -> None:
    images = torch.randn(3, 2, 4, 4)
    path = InputPath(torch.randn(2, 4, 4, dtype=torch.float64), RULES[Quadrature.midpoint](3))
    assert torch.equal(path.images(images, 1.0), images)
    assert torch.equal(path.images(images, 0.0), path.start.float().expand_as(images))
    torch.testing.assert_close(path.images(images, 0.25), 0.25 * images + 0.75 * path.start.float())


def test_a_gradient_pass_sees_the_vectors_of_a_plain_pass(make_toy, nonlinear) -> None:
    toy = make_toy(nonlinear)
    found = gradient_pass(toy.problem, toy.all_images, toy.targets_n)
    for path, x_bpd in toy.clean()[1].items():
        assert torch.equal(found.vectors[path], x_bpd)
        assert not found.vectors[path].requires_grad

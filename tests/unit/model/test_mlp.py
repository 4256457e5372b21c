from __future__ import annotations

import pytest
import torch

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.model.mlp import Mlp


def test_it_is_the_formula_and_each_module_has_its_name():
    module = Mlp([12, 5, 4, 3]).double()
    assert [name for name, _ in module.named_children()] == ["fc1", "act1", "fc2", "act2", "fc3"]
    x = torch.randn(7, 1, 3, 4, dtype=torch.float64, generator=generator(0))
    expected = x.reshape(7, 12)
    for layer in (module.fc1, module.fc2):
        expected = torch.clamp(expected @ layer.weight.T + layer.bias, min=0)
    expected = expected @ module.fc3.weight.T + module.fc3.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_the_thesis_first_network_has_its_number_of_parameters():
    n_parameters = sum(parameter.numel() for parameter in Mlp([784, 256, 256, 10]).parameters())
    assert n_parameters == 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


@pytest.mark.parametrize("widths", [[], [784], [784, 0, 10]])
def test_widths_that_make_no_network(widths):
    with pytest.raises(ConfigError, match=r"model\.network\.widths=.*input and output width"):
        Mlp(widths)

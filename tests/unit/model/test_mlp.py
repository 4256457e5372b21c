from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from mis_lab import config as run_config
from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.model.load import build_network
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


HIDDEN = {
    "mlp1": [256, 256],
    "mlp2": [1024, 512, 256, 128],
    "mlp3": [64, 32, 16],
    "mlp4": [32, 16, 16],
    "mlp5": [10, 10, 10],
    "mlp6": [64, 32, 5, 16],
    "mlp7": [32, 16, 16],
    "mlp8": [32, 16],
    "mlp9": [16],
    "mlp10": [10],
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_ten_networks_of_the_thesis(name):
    run_config.register()
    with initialize_config_dir(str(run_config.conf_dir()), version_base="1.3"):
        config = run_config.validate(compose("config", [f"model={name}", "dataset=mnist"])).model
    module, widths = build_network(config), [784, *HIDDEN[name], 10]
    layers = [part for part in module.children() if isinstance(part, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(pairwise(widths))
    n_relus = sum(isinstance(part, nn.ReLU) for part in module.children())
    assert n_relus == (0 if name == "mlp7" else len(HIDDEN[name]))
    assert config.sites == [f"{'fc' if name == 'mlp7' else 'act'}{i + 1}" for i in range(len(HIDDEN[name]))]
    assert (config.name, config.weights, module(torch.zeros(3, 1, 28, 28)).shape) == (name, "train", (3, 10))


def test_without_activation_functions_it_is_affine():
    module = Mlp([6, 5, 4, 3], relu=False).double()
    assert [name for name, _ in module.named_children()] == ["fc1", "fc2", "fc3"]
    x, y = torch.randn(2, 7, 1, 2, 3, dtype=torch.float64, generator=generator(0))
    torch.testing.assert_close(module(2 * x - y), 2 * module(x) - module(y), rtol=1e-12, atol=1e-12)

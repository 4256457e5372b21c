from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.neurons import NeuronsSae
from mis_lab.sae.baseline_config import NeuronsConfig


def test_codes_are_the_vectors_to_the_bit(x_nd: Tensor) -> None:
    sae = NeuronsSae(NeuronsConfig(), 8)
    sae.initialise(x_nd, generator(0))
    output = sae(x_nd)
    assert (x_nd < 0).any()
    assert torch.equal(output.codes, x_nd)
    assert torch.equal(output.reconstruction, x_nd)
    assert not sae.offset.any()


def test_k_neurons_farthest_from_their_means_leave_the_least_error(x_nd: Tensor) -> None:
    sae = NeuronsSae(NeuronsConfig(k=3), 8).double()
    x_nd = x_nd.double()
    sae.initialise(x_nd, generator(0))
    output = sae(x_nd)
    assert ((output.codes != 0).sum(1) == 3).all()
    # What is left is the sum of the five smallest squared differences.
    squared_nd = (x_nd - x_nd.mean(0)).square().sort(1).values
    torch.testing.assert_close((x_nd - output.reconstruction).square().sum(1), squared_nd[:, :5].sum(1))


@pytest.mark.parametrize("bad", [{"k": -1}, {"n_features": -3}])
def test_bad_options_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is negative"):
        NeuronsConfig(**bad)


def test_there_are_as_many_neurons_as_the_site_is_wide() -> None:
    assert NeuronsSae(NeuronsConfig(n_features=8), 8).n_features == 8
    with pytest.raises(ConfigError, match="a site of width 8 has as many neurons"):
        NeuronsSae(NeuronsConfig(n_features=9), 8)

"""Features as units."""

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.units import Features


def test_features_are_the_codes(x_nd: Tensor) -> None:
    sae = build(TopKConfig(n_features=20, k=3), width=8)
    sae.initialise(x_nd, generator(0))
    source = Features(sae)
    a_bpu = source.activate(x_nd.reshape(64, 4, 8))
    assert (source.kind, source.n_units) == ("feature", 20)
    assert torch.equal(a_bpu, sae.encode(x_nd.reshape(64, 4, 8)))
    assert not a_bpu.requires_grad

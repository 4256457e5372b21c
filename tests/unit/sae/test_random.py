from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.random import RandomSae
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.baseline_config import RandomConfig
from mis_lab.sae.config import TopKConfig


def test_it_is_a_topk_sae_before_its_first_step(x_nd: Tensor) -> None:
    random, topk = RandomSae(RandomConfig(k=4), 8), TopKSae(TopKConfig(k=4), 8)
    for sae in (random, topk):
        sae.initialise(x_nd, generator(5))
    torch.testing.assert_close(random(x_nd), topk(x_nd), rtol=0, atol=0)
    assert torch.equal(random.W_enc, random.W_dec)
    random.fit(None, generator(0))  # type: ignore[arg-type]  (nothing is asked of the data)
    torch.testing.assert_close(random(x_nd), topk(x_nd), rtol=0, atol=0)


def test_codes_by_hand() -> None:
    sae = RandomSae(RandomConfig(n_features=4, k=2), 3)
    assert sae.activation(torch.tensor([3.0, -1.0, 2.0, 1.0])).tolist() == [3, 0, 2, 0]
    assert sae.activation(torch.tensor([-3.0, -1.0, -2.0, 1.0])).tolist() == [0, 0, 0, 1]


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one feature"):
        RandomConfig(k=0)
    with pytest.raises(ConfigError, match="k=30 is more than the 24 features at width 8"):
        RandomSae(RandomConfig(expansion=3, k=30), 8)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.frozen_decoder import FrozenDecoderSae
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.baseline_config import FrozenDecoderConfig
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.training import Training


@pytest.fixture
def sae(x_nd: Tensor) -> FrozenDecoderSae:
    sae = FrozenDecoderSae(FrozenDecoderConfig(expansion=3, k=4, aux_k=4), 8)
    sae.initialise(x_nd, generator(0))
    return sae


def test_the_encoder_learns_and_the_dictionary_stays_to_the_bit(sae: FrozenDecoderSae, vectors: Callable) -> None:
    before, encoder = sae.dictionary.clone(), sae.W_enc.detach().clone()
    loader = vectors()
    training = Training(sae, TrainerConfig(n_vectors=64 * 100, batch_size=64, lr=1e-2, log_steps=1, dead_after=640))
    for step in range(100):
        training.advance(loader.batch(step))
    assert torch.equal(sae.dictionary, before)
    assert not torch.equal(sae.W_enc, encoder)
    assert sum(training.history["fvu"][-10:]) < 0.8 * sum(training.history["fvu"][:10])


@pytest.mark.parametrize("sparse", [True, False])
def test_gradients_are_those_of_topk_without_the_dictionarys(x_nd: Tensor, step: Callable, sparse: bool) -> None:
    frozen = FrozenDecoderSae(FrozenDecoderConfig(expansion=3, k=4, sparse=sparse), 8).double()
    topk = TopKSae(TopKConfig(expansion=3, k=4, sparse=sparse), 8).double()
    for sae in (frozen, topk):
        sae.initialise(x_nd.double(), generator(0))
        sae.step_losses(x_nd.double(), step(sae, dead=[2])).total.backward()
    learned = dict(frozen.named_parameters())
    assert set(learned) == {"W_enc", "b_enc", "b_dec"}
    for name, parameter in learned.items():
        torch.testing.assert_close(parameter.grad, topk.get_parameter(name).grad)
    assert frozen.state_dict().keys() == topk.state_dict().keys()


def test_revived_features_keep_their_atoms(sae: FrozenDecoderSae) -> None:
    before = sae.W_dec.clone()
    rows, bias = torch.randn(2, 8, generator=generator(1)), torch.tensor([0.1, 0.2])
    sae.revive(torch.tensor([1, 3]), rows, rows, bias)
    assert torch.equal(sae.W_dec, before)
    assert torch.equal(sae.W_enc[[1, 3]], rows)
    assert torch.equal(sae.b_enc[[1, 3]], bias)

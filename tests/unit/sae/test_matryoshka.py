"""Matryoshka: the mean of the errors of nested prefixes; one prefix is BatchTopK."""

# N vectors  D width  F features

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.batch_topk import BatchTopKSae
from mis_lab.sae.architectures.matryoshka import MatryoshkaSae
from mis_lab.sae.config import BatchTopKConfig, MatryoshkaConfig
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.training import Training

CONFIG = MatryoshkaConfig(n_features=20, k=3, prefixes=[0.2, 0.5, 1.0])


def make(x_nd: Tensor, config: MatryoshkaConfig = CONFIG) -> MatryoshkaSae:
    sae = MatryoshkaSae(config, width=8).double()
    sae.initialise(x_nd.double(), generator(4))
    return sae


@pytest.mark.parametrize("sparse", [True, False])
def test_loss_is_the_mean_over_prefixes_of_what_each_alone_misses(x_nd: Tensor, step: Callable, sparse: bool) -> None:
    sae = make(x_nd, replace(CONFIG, sparse=sparse))
    assert sae.prefixes == [4, 10, 20]
    inner = x_nd.double() * sae.scale
    pre = ((inner - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    least = pre.detach().flatten().sort(descending=True).values[3 * len(x_nd) - 1]
    codes = pre * (pre.detach() >= least)
    missed = [(inner - codes[:, :m] @ sae.W_dec[:m] - sae.b_dec).square().sum(1).mean() for m in sae.prefixes]
    expected = sum(missed) / 3 / sae.variance
    losses = sae.step_losses(x_nd.double(), step(sae))
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.named["fvu"], (missed[-1] / sae.variance).detach())
    found = torch.autograd.grad(losses.total, list(sae.parameters()))
    for one, other in zip(found, torch.autograd.grad(expected, list(sae.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_one_prefix_is_batch_topk_to_the_bit(vectors: Callable) -> None:
    loader = vectors()
    saes = [
        MatryoshkaSae(MatryoshkaConfig(n_features=20, k=3, prefixes=[1.0], aux_k=4), width=8),
        BatchTopKSae(BatchTopKConfig(n_features=20, k=3, aux_k=4), width=8),
    ]
    for sae in saes:
        sae.initialise(loader.sample(512), generator(0))
        training = Training(sae, TrainerConfig(n_vectors=64 * 30, batch_size=64, dead_after=320))
        for number in range(30):
            training.advance(loader.batch(number))
    one, other = (sae.state_dict() for sae in saes)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_aux_k_sees_what_all_features_miss(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, replace(CONFIG, aux_k=2))
    plain = BatchTopKSae(BatchTopKConfig(n_features=20, k=3, aux_k=2), width=8).double()
    plain.load_state_dict(sae.state_dict())
    dead = step(sae, dead=(1, 5, 12))
    torch.testing.assert_close(
        sae.step_losses(x_nd.double(), dead).named["aux"], plain.step_losses(x_nd.double(), dead).named["aux"]
    )


def test_first_prefixes_learn_to_reconstruct_more(vectors: Callable) -> None:
    """A quarter of the features explains more when it is trained to stand alone."""
    explained = []
    for prefixes in ([0.25, 1.0], [1.0]):
        loader = vectors(n=2048, batch_size=128)
        sae = MatryoshkaSae(MatryoshkaConfig(n_features=32, k=3, prefixes=prefixes), width=8)
        sae.initialise(loader.sample(512), generator(0))
        training = Training(sae, TrainerConfig(n_vectors=128 * 150, batch_size=128, dead_after=1280))
        for number in range(150):
            training.advance(loader.batch(number))
        codes = sae.requires_grad_(False).encode(loader.x_nd)
        codes[:, 8:] = 0
        explained.append(float((loader.x_nd - sae.decode(codes)).square().sum()))
    assert explained[0] < 0.9 * explained[1]


@pytest.mark.parametrize("prefixes", [[], [0.5], [0.5, 0.5, 1.0], [0.5, 0.2, 1.0], [0.0, 1.0], [0.5, 1.5]])
def test_prefixes_must_rise_to_one(prefixes: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"sae\.prefixes"):
        MatryoshkaConfig(prefixes=prefixes)


def test_a_prefix_without_a_feature_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="no feature of its own"):
        MatryoshkaSae(MatryoshkaConfig(n_features=4, k=1, prefixes=[0.01, 1.0]), width=8)

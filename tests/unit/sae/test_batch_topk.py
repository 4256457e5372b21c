"""BatchTopK: the k·B largest of a batch in training, a saved threshold at inference."""

# N vectors  D width  F features

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.architectures.batch_topk import BatchTopKSae
from mis_lab.sae.config import BatchTopKConfig
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.training import Training


def make(x_nd: Tensor, **options: float) -> BatchTopKSae:
    sae = BatchTopKSae(BatchTopKConfig(**{"n_features": 20, "k": 3, **options}), width=8).double()  # type: ignore[arg-type]
    sae.initialise(x_nd.double(), generator(4))
    return sae


def selected(sae: BatchTopKSae, x_nd: Tensor) -> Tensor:
    """(N, F) codes of training, by sorting the whole batch."""
    pre = ((x_nd.double() * sae.scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu().detach()
    least = pre.flatten().sort(descending=True).values[sae.config.k * len(x_nd) - 1]
    return torch.where(pre >= least, pre, 0.0)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_step_reconstructs_from_the_k_times_b_largest_of_the_batch(
    x_nd: Tensor, step: Callable, sparse: bool
) -> None:
    sae = make(x_nd, sparse=sparse)
    codes = selected(sae, x_nd)
    assert (codes > 0).sum() == 3 * len(x_nd)
    assert (codes > 0).sum(1).min() < 3 < (codes > 0).sum(1).max()  # k a vector on average only
    losses = sae.step_losses(x_nd.double(), step(sae))
    error = x_nd.double() - (codes @ sae.dictionary + sae.offset)
    expected = error.square().sum() / (x_nd.double() - x_nd.double().mean(0)).square().sum()
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    assert float(losses.named["l0"]) == 3
    assert torch.equal(losses.fired_f, (codes > 0).any(0))


def test_the_threshold_is_the_running_mean_of_the_smallest_selected(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, threshold_rate=0.25)
    first = selected(sae, x_nd[:100])
    sae.step_losses(x_nd[:100].double(), step(sae))
    assert float(sae.threshold) == 0  # not before the step has proved to be finite
    sae.constrain()
    one = first[first > 0].min()
    assert float(sae.threshold) == pytest.approx(float(one))
    second = selected(sae, x_nd[100:])
    sae.step_losses(x_nd[100:].double(), step(sae))
    sae.constrain()
    assert float(sae.threshold) == pytest.approx(float(0.75 * one + 0.25 * second[second > 0].min()))


def test_inference_keeps_what_is_above_the_threshold_each_vector_for_itself(x_nd: Tensor) -> None:
    sae = make(x_nd)
    sae.threshold.fill_(0.3)
    pre = (x_nd.double() * sae.scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    torch.testing.assert_close(sae.encode(x_nd.double()), torch.where(pre > 0.3, pre, 0.0))
    torch.testing.assert_close(sae.encode(x_nd[:1].double()), sae.encode(x_nd.double())[:1])


def test_regression_the_threshold_survives_saving(x_nd: Tensor, step: Callable, tmp_path: Path) -> None:
    """A threshold in a plain attribute is lost with the state dict, and evaluation then fails or selects anew."""
    sae = make(x_nd).float()
    sae.step_losses(x_nd, step(sae))
    sae.constrain()
    assert float(sae.threshold) > 0
    io.save(sae, tmp_path)
    loaded = io.load(tmp_path)
    assert torch.equal(loaded.threshold, sae.threshold)
    assert torch.equal(loaded.encode(x_nd), sae.encode(x_nd))


def test_regression_k_is_of_a_vector_not_of_a_batch(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd)
    for n in (10, 100):
        assert float(sae.step_losses(x_nd[:n].double(), step(sae)).named["l0"]) == 3


def test_inference_is_about_as_sparse_as_training(vectors: Callable) -> None:
    loader = vectors(n=4096, batch_size=256)
    sae = BatchTopKSae(BatchTopKConfig(n_features=24, k=3), width=8)
    sae.initialise(loader.sample(1024), generator(0))
    training = Training(sae, TrainerConfig(n_vectors=256 * 200, batch_size=256, dead_after=2560))
    for number in range(200):
        training.advance(loader.batch(number))
    assert float((sae.encode(loader.x_nd) > 0).sum(1).double().mean()) == pytest.approx(3, abs=0.3)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="k=21 is more than the 20 features"):
        BatchTopKConfig(n_features=20, k=21)
    with pytest.raises(ConfigError, match="k=21 is more than the 20 features at width 8"):
        BatchTopKSae(BatchTopKConfig(expansion=2.5, k=21), width=8)
    with pytest.raises(ConfigError, match="threshold_rate=0"):
        BatchTopKConfig(threshold_rate=0.0)

"""TopK and AuxK against their formulas; the sparse step against the dense one over a training run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.trainer_config import Normalisation, TrainerConfig
from mis_lab.sae.training import Training


def make(x_nd: Tensor, normalisation: Normalisation = Normalisation.unit_variance, **options: object) -> TopKSae:
    config = TopKConfig(**{"n_features": 20, "k": 3, "aux_k": 2, **options})  # type: ignore[arg-type]
    sae = TopKSae(config, width=8).double()
    sae.initialise(x_nd.double(), generator(4), normalisation)
    return sae


def pre_activations(sae: TopKSae, x_nd: Tensor) -> Tensor:
    return (x_nd.double() * sae.scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc


def keep_largest(pre_nf: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of every row, zero elsewhere, element by element."""
    pre_nf = pre_nf.detach()
    codes = torch.zeros_like(pre_nf)
    for row, pre_f in enumerate(pre_nf):
        for feature in sorted(range(len(pre_f)), key=lambda f: -float(pre_f[f]))[:k]:
            codes[row, feature] = max(float(pre_f[feature]), 0.0)
    return codes


def test_codes_are_the_k_largest_rectified(x_nd: Tensor) -> None:
    sae = make(x_nd)
    torch.testing.assert_close(sae.encode(x_nd.double()).detach(), keep_largest(pre_activations(sae, x_nd), 3))


def test_fewer_than_k_positive_give_fewer_codes(x_nd: Tensor) -> None:
    sae = make(x_nd, k=20)
    codes = sae.encode(x_nd.double())
    assert (codes >= 0).all()
    assert torch.equal(codes > 0, pre_activations(sae, x_nd) > 0)
    assert (codes > 0).sum(1).max() < 20


@pytest.mark.parametrize("normalisation", Normalisation)
@pytest.mark.parametrize("sparse", [True, False])
def test_loss_is_in_units_of_fvu(x_nd: Tensor, step: Callable, normalisation: Normalisation, sparse: bool) -> None:
    sae = make(x_nd, normalisation, sparse=sparse)
    x = x_nd.double()
    error = ((x - sae(x).reconstruction) ** 2).sum()
    expected = error / ((x - x.mean(0)) ** 2).sum()
    losses = sae.step_losses(x, step(sae))
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)  # the variance is kept in float32 precision
    assert float(losses.named["aux"]) == 0


@pytest.mark.parametrize("sparse", [True, False])
def test_aux_k_is_the_dead_features_reconstruction_of_the_error(x_nd: Tensor, step: Callable, sparse: bool) -> None:
    sae = make(x_nd, sparse=sparse)
    dead = [1, 4, 5, 11]
    x = x_nd.double() * sae.scale
    error = (x - (sae.encode(x_nd.double()) @ sae.W_dec + sae.b_dec)).detach()
    aux_codes = keep_largest(pre_activations(sae, x_nd)[:, dead], 2)
    guess = aux_codes @ sae.W_dec[dead]  # no bias
    expected = ((guess - error) ** 2).mean() / ((error - error.mean(0)) ** 2).mean()
    losses = sae.step_losses(x_nd.double(), step(sae, dead))
    torch.testing.assert_close(losses.named["aux"], expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(losses.total.detach(), losses.named["fvu"] + expected.detach() / 32, rtol=1e-10, atol=0)


def test_aux_k_stops_the_gradient_at_the_error(x_nd: Tensor, step: Callable) -> None:
    dead = [0, 7, 9]
    sae = make(x_nd)
    gradients = []
    for aux_weight in (0.0, 1.0):
        sae.config.aux_weight = aux_weight
        sae.zero_grad()
        sae.step_losses(x_nd.double(), step(sae, dead)).total.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in sae.named_parameters()})
    alive = [feature for feature in range(20) if feature not in dead]
    for name in ("W_enc", "W_dec", "b_enc"):
        difference = (gradients[1][name] - gradients[0][name]).abs()
        assert difference[dead].max() > 1e-3, name
        assert difference[alive].max() < 1e-12, name


def test_fewer_dead_than_aux_k(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, aux_k=8)
    losses = sae.step_losses(x_nd.double(), step(sae, [3]))
    assert 0 < float(losses.named["aux"]) < float("inf")


def test_a_perfect_reconstruction_leaves_aux_k_nothing(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, n_features=16, k=16)
    with torch.no_grad():
        identity = torch.cat([torch.eye(8), -torch.eye(8)]).double()
        sae.W_enc.copy_(identity)
        sae.W_dec.copy_(identity)
        sae.b_dec.zero_()
        sae.scale.fill_(1)
    losses = sae.step_losses(x_nd.double(), step(sae, [0]))
    losses.total.backward()
    assert float(losses.named["fvu"]) == 0
    assert float(losses.named["aux"]) == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in sae.parameters())


def test_sparse_and_dense_training_stay_together(vectors: Callable) -> None:
    runs = []
    for sparse in (True, False):
        loader = vectors(n=2048, width=16, batch_size=128)
        sae = TopKSae(TopKConfig(n_features=64, k=4, aux_k=8, sparse=sparse), width=16)
        sae.initialise(loader.sample(2048), generator(0))
        config = TrainerConfig(n_vectors=128 * 150, batch_size=128, lr=5e-3, log_steps=1, dead_after=1024)
        training = Training(sae, config)
        for number in range(150):
            training.advance(loader.batch(number))
        runs.append(training)
    assert max(runs[0].history["aux"]) > 0  # AuxK was at work
    for name in ("loss", "fvu", "aux"):
        one, other = (torch.tensor(run.history[name]) for run in runs)
        assert float(((one - other).abs() / other.abs().clamp_min(1e-3)).max()) < 1e-4, name
    assert torch.equal(runs[0].silent_f, runs[1].silent_f)
    states = [run.state() for run in runs]
    assert {name: tensor.shape for name, tensor in states[0].items()} == {
        name: tensor.shape for name, tensor in states[1].items()
    }
    torch.testing.assert_close(states[0]["sae.W_dec"], states[1]["sae.W_dec"], rtol=1e-3, atol=1e-4)


def test_k_above_the_number_of_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sae\.k=9 is more than the 8 features at width 4.*expansion"):
        TopKSae(TopKConfig(expansion=2, k=9), width=4)
    with pytest.raises(ConfigError, match=r"sae\.k=9 is more than the 8 features"):
        TopKConfig(n_features=8, k=9)
    with pytest.raises(ConfigError, match="at least one feature"):
        TopKConfig(k=0)
    with pytest.raises(ConfigError, match="must not be negative"):
        TopKConfig(aux_k=-1)


def test_multi_topk_adds_an_eighth_of_the_error_at_the_larger_k(x_nd: Tensor, step: Callable) -> None:
    """L(k) + L(4k)/8 (Gao et al. 2024, app. A.5)."""
    sae = make(x_nd, multi_k=12)
    x = x_nd.double()
    errors = []
    for k in (3, 12):
        codes = keep_largest(pre_activations(sae, x_nd), k)
        errors.append(((x - codes @ sae.dictionary - sae.offset) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    losses = sae.step_losses(x, step(sae))
    torch.testing.assert_close(losses.total, errors[0] + errors[1] / 8, rtol=1e-6, atol=0)
    assert float(losses.named["l0"]) <= 3
    assert (sae.encode(x) != 0).sum(1).max() <= 3


@pytest.mark.parametrize("multi_k", [3, 2])
def test_the_second_k_must_be_larger(multi_k: int) -> None:
    with pytest.raises(ConfigError, match=rf"sae\.multi_k={multi_k} must be larger than sae\.k=3"):
        TopKConfig(k=3, multi_k=multi_k)


def test_k_is_larger_while_it_is_annealed(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd)
    annealed = step(sae)._replace(k_factor=2.0)
    codes = keep_largest(pre_activations(sae, x_nd), 6)
    assert float(sae.step_losses(x_nd.double(), annealed).named["l0"]) == float((codes > 0).sum(1).double().mean())

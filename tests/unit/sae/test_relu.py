"""Both forms of the ReLU SAE against their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.relu import ReluSae
from mis_lab.sae.config import ReluConfig, ReluForm


def make(form: ReluForm, x_nd: Tensor, l1: float) -> ReluSae:
    sae = ReluSae(ReluConfig(form=form, l1=l1, n_features=12), width=8).double()
    sae.initialise(x_nd.double(), generator(4))
    return sae


def by_hand(sae: ReluSae, x_nd: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled squared errors (N, D) and codes (N, F), vector by vector."""
    squared, codes = [], []
    for x_d in x_nd.double() * sae.scale:
        f = torch.clamp(sae.W_enc @ (x_d - sae.b_dec) + sae.b_enc, min=0)
        squared.append((x_d - (f @ sae.W_dec + sae.b_dec)) ** 2)
        codes.append(f)
    return torch.stack(squared), torch.stack(codes)


def test_forward_is_the_formula_with_the_pre_bias_tied(x_nd: Tensor) -> None:
    sae = make(ReluForm.thesis, x_nd, l1=5.0)
    with torch.no_grad():
        sae.b_enc.uniform_(-0.2, 0.2, generator=generator(5))
    squared, codes = by_hand(sae, x_nd)
    output = sae(x_nd.double())
    torch.testing.assert_close(output.codes, codes, rtol=1e-12, atol=1e-12)
    assert 0.1 < (codes > 0).double().mean() < 0.9
    error = (x_nd.double() - output.reconstruction) * sae.scale
    torch.testing.assert_close(error.square(), squared, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparsity", [1.0, 0.25])
def test_bricken_loss_is_squared_error_plus_l1_a_vector(x_nd: Tensor, step: Callable, sparsity: float) -> None:
    sae = make(ReluForm.bricken, x_nd, l1=0.3)
    squared, codes = by_hand(sae, x_nd)
    losses = sae.step_losses(x_nd.double(), step(sae, sparsity=sparsity))
    expected = squared.sum(1).mean() + sparsity * 0.3 * codes.sum(1).mean()
    torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.named["l1"], codes.sum(1).mean(), rtol=1e-12, atol=0)


def test_thesis_loss_is_two_means_over_all_elements(x_nd: Tensor, step: Callable) -> None:
    sae = make(ReluForm.thesis, x_nd, l1=5.0)
    squared, codes = by_hand(sae, x_nd)
    losses = sae.step_losses(x_nd.double(), step(sae))
    torch.testing.assert_close(losses.total, squared.mean() + 5.0 * codes.mean(), rtol=1e-12, atol=0)


def test_a_larger_penalty_gives_sparser_codes(vectors: Callable) -> None:
    from mis_lab.sae.trainer_config import TrainerConfig
    from mis_lab.sae.training import Training

    l0 = []
    for l1 in (0.01, 0.5):
        loader = vectors()
        sae = ReluSae(ReluConfig(l1=l1, n_features=24), width=8)
        sae.initialise(loader.sample(512), generator(0))
        training = Training(sae, TrainerConfig(n_vectors=64 * 100, batch_size=64, lr=1e-2))
        for number in range(100):
            training.advance(loader.batch(number))
        l0.append(training.history["l0"][-1])
    assert l0[1] < 0.5 * l0[0]


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sae\.l1=-0\.1 is negative"):
        ReluConfig(l1=-0.1)


def april(x_nd: Tensor, l1: float = 0.3) -> ReluSae:
    sae = make(ReluForm.april, x_nd, l1)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 3, 12)[:, None])
        sae.W_enc.add_(0.05 * torch.randn(12, 8, generator=generator(8)))
    return sae


def test_april_2024_has_no_pre_bias_and_penalises_codes_times_norms(x_nd: Tensor, step: Callable) -> None:
    """f = ReLU(W_e·x + b_e); L = ‖x − x̂‖² + λ Σ f‖d‖ (Conerly et al., April 2024)."""
    sae = april(x_nd)
    x = x_nd.double() * sae.scale
    codes = (x @ sae.W_enc.T + sae.b_enc).relu()
    torch.testing.assert_close(sae.encode(x_nd.double()), codes)
    error = (x - codes @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    penalty = (codes * sae.W_dec.norm(dim=1)).sum(1).mean()
    losses = sae.step_losses(x_nd.double(), step(sae, sparsity=0.5))
    torch.testing.assert_close(losses.total, error + 0.5 * 0.3 * penalty)
    torch.testing.assert_close(losses.named["l1"], penalty.detach())


def test_april_2024_penalty_is_the_same_whatever_the_scale_of_an_atom(x_nd: Tensor, step: Callable) -> None:
    """Halving a code and doubling its atom must not pay."""
    sae = april(x_nd)
    before = sae.step_losses(x_nd.double(), step(sae)).total.detach()
    with torch.no_grad():
        sae.W_enc.mul_(0.5)
        sae.b_enc.mul_(0.5)
        sae.W_dec.mul_(2.0)
    torch.testing.assert_close(sae.step_losses(x_nd.double(), step(sae)).total.detach(), before)


def test_april_2024_atoms_start_a_tenth_long_and_stay_free(x_nd: Tensor, vectors: Callable) -> None:
    from mis_lab.sae.trainer_config import TrainerConfig
    from mis_lab.sae.training import Training

    sae = make(ReluForm.april, x_nd, 0.01).float()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((12,), 0.1))
    training, loader = Training(sae, TrainerConfig(n_vectors=64 * 20, batch_size=64, lr=1e-2)), vectors()
    for number in range(20):
        training.advance(loader.batch(number))
    assert sae.W_dec.norm(dim=1).max() > 0.2

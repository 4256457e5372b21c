"""JumpReLU against its formulas: straight-through gradients (Rajamanoharan et al. 2024, eq. 11, 12) and penalties."""

# N vectors  D width  F features

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.jump_relu import _L0, JumpReluSae, _JumpRelu
from mis_lab.sae.config import JumpReluConfig, JumpReluPenalty
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.training import Training


def make(x_nd: Tensor, **options: object) -> JumpReluSae:
    options = {"n_features": 20, "bandwidth": 0.2, **options}
    sae = JumpReluSae(JumpReluConfig(**options), width=8).double()  # type: ignore[arg-type]
    sae.initialise(x_nd.double(), generator(4))
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(0, 0.4, 20))
    return sae


def pre_activations(sae: JumpReluSae, x_nd: Tensor) -> Tensor:
    return (x_nd.double() * sae.scale - sae.b_dec) @ sae.W_enc.T + sae.b_enc


def test_codes_are_pre_activations_above_their_threshold(x_nd: Tensor) -> None:
    sae = make(x_nd)
    pre = pre_activations(sae, x_nd)
    expected = torch.zeros_like(pre)
    for feature, threshold in enumerate(sae.threshold.tolist()):
        above = pre[:, feature] > threshold
        expected[above, feature] = pre[above, feature]
    torch.testing.assert_close(sae.encode(x_nd.double()), expected)


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, thresholds, gradient from above."""
    random = generator(seed)
    pre_nf = torch.randn(50, 6, generator=random, dtype=torch.float64).requires_grad_()
    threshold_f = torch.rand(6, generator=random, dtype=torch.float64).requires_grad_()
    return pre_nf, threshold_f, torch.randn(50, 6, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("bandwidth", [0.05, 0.5])
def test_straight_through_gradients_equal_their_definition_element_by_element(bandwidth: float) -> None:
    pre, threshold, grad = draw()
    _JumpRelu.apply(pre, threshold, bandwidth, False).backward(grad)
    expected = torch.zeros(6, dtype=torch.float64)
    pres, thresholds = pre.tolist(), threshold.tolist()
    for n in range(50):
        for f in range(6):
            box = 1.0 if abs(pres[n][f] - thresholds[f]) / bandwidth < 0.5 else 0.0
            expected[f] += -float(grad[n, f]) * thresholds[f] / bandwidth * box
            assert float(pre.grad[n, f]) == (float(grad[n, f]) if pres[n][f] > thresholds[f] else 0.0)
    assert expected.any()
    torch.testing.assert_close(threshold.grad, expected)


def test_the_l0_gradient_is_of_pre_activations_within_the_band_only() -> None:
    pre, threshold, _ = draw()
    value = _L0.apply(pre, threshold, 0.5)
    assert float(value.detach()) == int((pre > threshold).sum())
    value.backward()
    assert pre.grad is None  # nothing reaches π
    within = ((pre - threshold).abs() < 0.25).sum(0).double()
    torch.testing.assert_close(threshold.grad, -within / 0.5)


@pytest.mark.parametrize("bandwidth", [0.1, 0.01])
def test_regression_the_threshold_gradient_has_no_further_factor_of_the_bandwidth(bandwidth: float) -> None:
    """One pre-activation at its threshold: −θ/ε, not −θ/ε² (10 or 100 times as much)."""
    threshold = torch.full((1,), 0.5, requires_grad=True)
    _JumpRelu.apply(torch.full((1, 1), 0.5), threshold, bandwidth, False).sum().backward()
    assert float(threshold.grad) == pytest.approx(-0.5 / bandwidth)


def test_in_expectation_the_l0_gradient_is_that_of_the_density_above_the_threshold() -> None:
    """What the straight-through estimator estimates: d/dθ P(π > θ) = −p(θ)."""
    pre = torch.randn(400_000, 1, generator=generator(0), dtype=torch.float64)
    threshold = torch.full((1,), 0.3, dtype=torch.float64, requires_grad=True)
    (_L0.apply(pre, threshold, 0.1) / len(pre)).backward()
    assert float(threshold.grad) == pytest.approx(
        -float(torch.distributions.Normal(0, 1).log_prob(threshold.detach()).exp()), rel=0.02
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_l0_loss(x_nd: Tensor, step: Callable, sparsity: float) -> None:
    sae = make(x_nd, sparsity=0.3)
    codes = sae.encode(x_nd.double())
    error = x_nd.double() - sae.decode(codes)
    fvu = error.square().sum() / (x_nd.double() - x_nd.double().mean(0)).square().sum()
    l0 = (codes > 0).sum(1).double().mean()
    losses = sae.step_losses(x_nd.double(), step(sae, sparsity=sparsity))
    torch.testing.assert_close(losses.total, fvu + sparsity * 0.3 * l0, rtol=1e-6, atol=0)


def test_tanh_loss(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, penalty=JumpReluPenalty.tanh, sparsity=0.3, tanh_scale=2.0, pre_act=0.01)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 20)[:, None])
    codes, pre = sae.encode(x_nd.double()), pre_activations(sae, x_nd)
    norms = sae.W_dec.norm(dim=1)
    error = x_nd.double() - sae.decode(codes)
    fvu = error.square().sum() / (x_nd.double() - x_nd.double().mean(0)).square().sum()
    penalty = torch.tanh(2 * codes * norms).sum(1).mean()
    below = ((sae.threshold - pre).relu() * norms).sum(1).mean()
    losses = sae.step_losses(x_nd.double(), step(sae))
    torch.testing.assert_close(losses.total, fvu + 0.3 * penalty + 0.01 * below, rtol=1e-6, atol=0)


def test_the_tanh_penalty_reaches_pre_activations_through_the_step() -> None:
    pre, threshold, grad = draw()
    _JumpRelu.apply(pre, threshold, 0.5, True).backward(grad)
    within = (pre - threshold).abs() < 0.25
    torch.testing.assert_close(pre.grad, grad * ((pre > threshold) + within * threshold / 0.5))
    torch.testing.assert_close(threshold.grad, -(grad * within * threshold / 0.5).sum(0))


def test_regression_thresholds_move_and_sparsify(vectors: Callable) -> None:
    """As logarithms, or with gradients taken on codes after the jump, thresholds stay where they start."""
    loader = vectors(n=2048, batch_size=128)
    sae = JumpReluSae(JumpReluConfig(n_features=24, sparsity=0.02, bandwidth=0.1, threshold=0.01), width=8)
    sae.initialise(loader.sample(512), generator(0))
    training = Training(sae, TrainerConfig(n_vectors=128 * 200, batch_size=128, log_steps=1, dead_after=1280))
    for number in range(200):
        training.advance(loader.batch(number))
    l0 = training.history["l0"]
    assert sum(l0[-10:]) < 0.6 * sum(l0[:10])
    assert float(sae.threshold.detach().median()) > 0.05
    assert (sae.threshold >= 0).all()


def test_thresholds_are_kept_from_falling_below_zero(x_nd: Tensor) -> None:
    sae = make(x_nd)
    with torch.no_grad():
        sae.threshold.sub_(0.2)
    sae.constrain()
    torch.testing.assert_close(sae.threshold.detach(), (torch.linspace(0, 0.4, 20).double() - 0.2).clamp_min(0))


def test_revived_features_start_at_the_first_threshold(x_nd: Tensor) -> None:
    sae = make(x_nd)
    rows = torch.randn(2, 8, generator=generator(9)).double()
    sae.revive(torch.tensor([3, 19]), rows, rows, torch.zeros(2).double())
    assert sae.threshold[[3, 19]].tolist() == pytest.approx([0.01, 0.01])
    assert float(sae.threshold[18].detach()) > 0.3


@pytest.mark.parametrize("options", [{"sparsity": -1.0}, {"bandwidth": 0.0}, {"threshold": -0.1}, {"tanh_scale": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"sae\.{next(iter(options))}"):
        JumpReluConfig(**options)  # type: ignore[arg-type]

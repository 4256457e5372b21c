"""The convolutional SAE against loops over positions."""

# B images  P = H·W positions  D width  F features

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.conv import ConvSae
from mis_lab.sae.architectures.relu import ReluSae
from mis_lab.sae.config import ReluConfig
from mis_lab.sae.further_config import ConvConfig

H, W, WIDTH, N_FEATURES = 3, 4, 5, 7
CONFIG = ConvConfig(n_features=N_FEATURES, l1=0.3)


@pytest.fixture
def x_bpd() -> Tensor:
    return (torch.randn(6, H * W, WIDTH, generator=generator(0)) + 1).double()


@pytest.fixture
def sae() -> ConvSae:
    """With random weights."""
    sae = ConvSae(CONFIG, WIDTH, (H, W)).double()
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator(number)))
        sae.scale.fill_(0.5)
        sae.variance.fill_(2.0)
    return sae


def around(position: int) -> list[tuple[int, int, int]]:
    """(row and column in the kernel, position) of the places of the map that a kernel at `position` covers."""
    row, column = divmod(position, W)
    places = [(i, j, row + i - 1, column + j - 1) for i in range(3) for j in range(3)]
    return [(i, j, r * W + c) for i, j, r, c in places if 0 <= r < H and 0 <= c < W]


def test_codes_are_rectified_correlations_with_each_neighbourhood(sae: ConvSae, x_bpd: Tensor) -> None:
    codes = sae.encode(x_bpd)
    assert codes.shape == (6, H * W, N_FEATURES)
    for position in (0, 3, 5, 11):
        expected = sae.b_enc.clone()
        for i, j, place in around(position):
            expected = expected + (0.5 * x_bpd[:, place] - sae.b_dec) @ sae.W_enc[:, :, i, j].T
        torch.testing.assert_close(codes[:, position], expected.relu())


def test_a_code_draws_its_kernel_around_its_position(sae: ConvSae) -> None:
    for position in (0, 6, 11):
        codes = torch.zeros(H * W, N_FEATURES, dtype=torch.float64)
        codes[position, 2] = 1.5
        expected = sae.b_dec.expand(H * W, WIDTH).clone()
        for i, j, place in around(position):
            expected[place] = expected[place] + 1.5 * sae.W_dec[2, :, i, j]
        torch.testing.assert_close(sae.decode(codes), expected / 0.5)


def test_the_encoder_at_the_decoder_is_its_transpose(sae: ConvSae, x_bpd: Tensor) -> None:
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec)
        sae.b_enc.fill_(100.0)  # never rectified
        sae.b_dec.zero_()
        sae.scale.fill_(1.0)
    codes = torch.randn(6, H * W, N_FEATURES, generator=generator(9)).double()
    torch.testing.assert_close(((sae.encode(x_bpd) - 100) * codes).sum(), (x_bpd * sae.decode(codes)).sum())


def test_loss(sae: ConvSae, x_bpd: Tensor, step: Callable) -> None:
    losses = sae.step_losses(x_bpd, step(sae, sparsity=0.7))
    codes = sae.encode(x_bpd)
    error = (0.5 * (x_bpd - sae.decode(codes))).square().sum() / (6 * H * W)
    l1 = codes.sum() / (6 * H * W)
    torch.testing.assert_close(losses.total, error / 2.0 + 0.7 * 0.3 * l1)
    torch.testing.assert_close(losses.named["fvu"], error / 2.0)
    torch.testing.assert_close(losses.named["l1"], l1)
    assert float(losses.named["l0"]) == pytest.approx(float((codes > 0).sum()) / (6 * H * W))
    assert torch.equal(losses.fired_f, (codes > 0).flatten(0, 1).any(0))


def test_with_kernels_of_one_position_it_is_a_relu_sae(x_bpd: Tensor, step: Callable) -> None:
    conv = ConvSae(ConvConfig(n_features=N_FEATURES, l1=0.3, kernel=1), WIDTH, (H, W)).double()
    relu = ReluSae(ReluConfig(n_features=N_FEATURES, l1=0.3), WIDTH).double()
    conv.initialise(x_bpd, generator(4))
    relu.initialise(x_bpd.flatten(0, 1), generator(4))
    relu.load_state_dict(relu.state_dict() | {"W_dec": conv.W_dec[:, :, 0, 0], "W_enc": conv.W_enc[:, :, 0, 0]})
    torch.testing.assert_close(conv(x_bpd), relu(x_bpd))
    torch.testing.assert_close(
        conv.step_losses(x_bpd, step(conv)).total, relu.step_losses(x_bpd.flatten(0, 1), step(relu)).total
    )


def test_rectified_output(sae: ConvSae, x_bpd: Tensor) -> None:
    rectified = ConvSae(ConvConfig(n_features=N_FEATURES, rectify_output=True), WIDTH, (H, W)).double()
    rectified.load_state_dict(sae.state_dict())
    plain = sae(x_bpd).reconstruction
    assert (plain < 0).any()
    torch.testing.assert_close(rectified(x_bpd).reconstruction, plain.relu())
    with pytest.raises(ConfigError, match=r"rectify_output cannot reconstruct activations down to -2.5"):
        rectified.initialise(torch.full((4, H * W, WIDTH), -2.5).index_fill(0, torch.tensor([0]), 1.0), generator(0))


def test_gradients_along_atoms_and_norms(sae: ConvSae, x_bpd: Tensor, step: Callable) -> None:
    sae.step_losses(x_bpd, step(sae)).total.backward()
    assert (sae.W_dec.grad * sae.W_dec).sum((1, 2, 3)).abs().max() > 1e-3
    sae.project_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum((1, 2, 3)).abs().max() < 1e-12
    directions = sae.W_dec.detach() / sae.W_dec.detach().flatten(1).norm(dim=1)[:, None, None, None]
    sae.normalise_atoms()
    torch.testing.assert_close(sae.W_dec.detach(), directions)


@pytest.mark.parametrize("what", ["dictionary", "offset", "encoder_weights"])
def test_what_needs_one_vector_a_code_is_refused(sae: ConvSae, what: str) -> None:
    with pytest.raises(ConfigError, match="a code adds to several vectors"):
        getattr(sae, what)


def test_other_grids_are_refused(sae: ConvSae) -> None:
    for shape in ((WIDTH,), (6, H * W + 1, WIDTH)):
        with pytest.raises(ConfigError, match=r"3 x 4 positions cannot read"):
            sae.encode(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("bad", [{"l1": -1.0}, {"kernel": 2}, {"kernel": 0}])
def test_bad_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ConvConfig(**bad)

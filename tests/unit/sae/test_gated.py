"""The gated SAE against its formulas (Rajamanoharan et al. 2024, eq. 5 to 8), and the gradient its gates live on."""

# N vectors  D width  F features

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.gated import GatedSae
from mis_lab.sae.config import GatedConfig


def make(x_nd: Tensor, **options: float) -> GatedSae:
    """With gates and magnitudes that differ."""
    sae = GatedSae(GatedConfig(n_features=20, **options), width=8).double()  # type: ignore[arg-type]
    sae.initialise(x_nd.double(), generator(4))
    random = generator(5)
    with torch.no_grad():
        for parameter in (sae.b_enc, sae.b_mag, sae.r_mag):
            parameter.copy_(0.3 * torch.randn(20, generator=random))
    return sae


def parts(sae: GatedSae, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred inner vectors, gates' pre-activations π and magnitudes, written out."""
    centred = x_nd.double() * sae.scale - sae.b_dec
    gates = centred @ sae.W_enc.T + sae.b_enc
    magnitudes = (centred @ (sae.W_enc * sae.r_mag.exp()[:, None]).T + sae.b_mag).relu()
    return centred, gates, magnitudes


def test_codes_are_gates_times_magnitudes(x_nd: Tensor) -> None:
    sae = make(x_nd)
    _, gates, magnitudes = parts(sae, x_nd)
    expected = torch.where(gates > 0, magnitudes, 0.0)
    torch.testing.assert_close(sae.encode(x_nd.double()), expected)
    assert ((gates > 0) & (magnitudes == 0)).any()  # both conditions matter
    assert ((gates <= 0) & (magnitudes > 0)).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
def test_loss_is_reconstruction_penalty_on_gates_and_the_gates_own_reconstruction(
    x_nd: Tensor, step: Callable, sparsity: float
) -> None:
    sae = make(x_nd, l1=0.7)
    centred, gates, magnitudes = parts(sae, x_nd)
    codes = (gates > 0) * magnitudes
    reconstruction = (centred - codes @ sae.W_dec).square().sum(1).mean()
    penalty = gates.relu().sum(1).mean()
    own = (centred - gates.relu() @ sae.W_dec).square().sum(1).mean()
    losses = sae.step_losses(x_nd.double(), step(sae, sparsity=sparsity))
    torch.testing.assert_close(losses.total, reconstruction + sparsity * 0.7 * penalty + own)
    torch.testing.assert_close(losses.named["gates"], own.detach())


def test_gradients_are_those_of_the_loss_with_a_frozen_decoder_in_the_gates_term(x_nd: Tensor, step: Callable) -> None:
    """The term must teach the gates (in the thesis' code it carried no gradient) and must not touch the decoder."""
    sae = make(x_nd, l1=0.7)
    sae.step_losses(x_nd.double(), step(sae)).total.backward()
    found = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    centred, gates, magnitudes = parts(sae, x_nd)
    codes = (gates > 0).double() * magnitudes
    frozen = x_nd.double() * sae.scale - sae.b_dec.detach() - gates.relu() @ sae.W_dec.detach()
    (
        (centred - codes @ sae.W_dec).square().sum(1).mean()
        + 0.7 * gates.relu().sum(1).mean()
        + frozen.square().sum(1).mean()
    ).backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_the_gates_term_opens_gates(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, l1=0.0)
    with torch.no_grad():
        sae.b_mag.fill_(-100.0)  # no magnitude: neither reconstruction nor penalty reaches a gate
    sae.step_losses(x_nd.double(), step(sae)).total.backward()
    assert not sae.r_mag.grad.any()
    _, gates, _ = parts(sae, x_nd)
    assert torch.equal(sae.b_enc.grad != 0, (gates > 0).any(0))


def test_aux_k_counts_beside_the_rest(x_nd: Tensor, step: Callable) -> None:
    sae = make(x_nd, aux_k=2, aux_weight=0.5)
    without = sae.step_losses(x_nd.double(), step(sae))
    with_dead = sae.step_losses(x_nd.double(), step(sae, dead=(1, 3, 4)))
    assert float(without.named["aux"]) == 0
    torch.testing.assert_close(with_dead.total - without.total, 0.5 * with_dead.named["aux"])


def test_revived_features_forget_their_magnitudes(x_nd: Tensor) -> None:
    sae = make(x_nd)
    before = sae.r_mag.detach().clone()
    rows = torch.randn(2, 8, generator=generator(9)).double()
    sae.revive(torch.tensor([2, 7]), rows, rows, torch.tensor([0.5, 0.5]).double())
    assert sae.r_mag[[2, 7]].tolist() == [0, 0]
    assert sae.b_mag[[2, 7]].tolist() == sae.b_enc[[2, 7]].tolist() == [0.5, 0.5]
    torch.testing.assert_close(sae.W_dec[[2, 7]].norm(dim=1), torch.ones(2).double())
    others = [f for f in range(20) if f not in (2, 7)]
    assert torch.equal(sae.r_mag[others], before[others])


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sae\.l1=-1"):
        GatedConfig(l1=-1.0)

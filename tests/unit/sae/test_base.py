"""The contract, for every architecture: a new one is one more entry of ARCHITECTURES."""

# N vectors  D width  F features

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import generator
from mis_lab.sae import architectures, io
from mis_lab.sae.base import Sae
from mis_lab.sae.baseline_config import FrozenDecoderConfig
from mis_lab.sae.config import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    JumpReluPenalty,
    MatryoshkaConfig,
    ReluConfig,
    ReluForm,
    SaeConfig,
    TopKConfig,
)
from mis_lab.sae.further_config import ArchetypalConfig
from mis_lab.sae.train import train
from mis_lab.sae.trainer_config import Normalisation, TrainerConfig
from mis_lab.sae.training import Training

WIDTH, N_FEATURES = 8, 24
ARCHITECTURES: dict[str, SaeConfig] = {
    "relu": ReluConfig(expansion=3, l1=0.1),
    "relu_thesis": ReluConfig(expansion=3, form=ReluForm.thesis, l1=1.0),
    "relu_april": ReluConfig(expansion=3, form=ReluForm.april, l1=0.05),
    "gated": GatedConfig(expansion=3, l1=0.1, aux_k=4),
    "topk": TopKConfig(expansion=3, k=4, aux_k=4),
    "topk_dense": TopKConfig(expansion=3, k=4, aux_k=4, sparse=False),
    "multi_topk": TopKConfig(expansion=3, k=3, multi_k=8, aux_k=4),
    "batch_topk": BatchTopKConfig(expansion=3, k=4, aux_k=4),
    "batch_topk_dense": BatchTopKConfig(expansion=3, k=4, aux_k=4, sparse=False),
    "matryoshka": MatryoshkaConfig(expansion=3, k=4, aux_k=4),
    "matryoshka_dense": MatryoshkaConfig(expansion=3, k=4, aux_k=4, sparse=False),
    "jump_relu": JumpReluConfig(expansion=3, sparsity=0.01, bandwidth=0.2, aux_k=4),
    "jump_relu_tanh": JumpReluConfig(expansion=3, penalty=JumpReluPenalty.tanh, sparsity=0.005, bandwidth=0.2, aux_k=4),
}
ARCHITECTURES["archetypal"] = ArchetypalConfig(expansion=3, k=4, aux_k=4, n_candidates=30)
ARCHITECTURES["frozen_decoder"] = FrozenDecoderConfig(expansion=3, k=4, aux_k=4)
TENTH_LONG = {"relu_april"}  # atoms start at norm 0.1
FREE_ATOMS = {"relu_april", "archetypal"}  # no step brings them back to unit norm
BY_BATCH = {"batch_topk", "batch_topk_dense", "matryoshka", "matryoshka_dense"}  # what fires depends on the batch
APART = {"TranscoderSae", "NeuronsSae", "PcaSae", "RandomSae", "NmfSae"}  # other contracts, with tests of their own


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(name: str) -> SaeConfig:
    return ARCHITECTURES[name]


@pytest.fixture
def sae(config: SaeConfig, x_nd: Tensor) -> Sae:
    """As it starts, but with atoms and encoder apart and biases that matter."""
    sae = build(config, width=WIDTH)
    sae.initialise(x_nd, generator(0, "atoms"))
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(sae.W_enc.shape, generator=generator(1)))
        sae.b_enc.add_(0.1 * torch.randn(sae.b_enc.shape, generator=generator(2)))
    return sae


def test_every_architecture_is_tested() -> None:
    found = set()
    for module in pkgutil.iter_modules(architectures.__path__):
        for member in vars(importlib.import_module(f"{architectures.__name__}.{module.name}")).values():
            if isinstance(member, type) and issubclass(member, Sae) and not inspect.isabstract(member):
                found.add(member.__name__)
    assert found - APART == {type(build(config, width=WIDTH)).__name__ for config in ARCHITECTURES.values()}
    assert found >= APART


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_any_leading_dimensions(sae: Sae, x_nd: Tensor, leading: tuple[int, ...]) -> None:
    x = x_nd[: max(1, torch.Size(leading).numel())].reshape(*leading, WIDTH)
    codes = sae.encode(x)
    assert codes.shape == (*leading, N_FEATURES)
    assert sae.decode(codes).shape == x.shape
    torch.testing.assert_close(codes.reshape(-1, N_FEATURES), sae.encode(x.reshape(-1, WIDTH)))


def test_forward_is_decode_of_encode_and_decode_is_affine_to_the_bit(sae: Sae, x_nd: Tensor) -> None:
    output = sae(x_nd)
    assert torch.equal(output.codes, sae.encode(x_nd))
    assert torch.equal(output.reconstruction, output.codes @ sae.dictionary + sae.offset)
    assert sae.dictionary.shape == (N_FEATURES, WIDTH)
    assert torch.equal(sae.decode(torch.zeros(N_FEATURES)), sae.offset)


def test_encoder_weights_are_the_encoder_in_raw_units(sae: Sae, x_nd: Tensor) -> None:
    sae, x_nd = sae.double(), x_nd.double()
    weight_fd, bias_f = sae.encoder_weights
    torch.testing.assert_close(sae.activation(x_nd @ weight_fd.T + bias_f), sae.encode(x_nd), rtol=1e-12, atol=1e-12)


def test_starts_from_data(name: str, config: SaeConfig, x_nd: Tensor) -> None:
    sae = build(config, width=WIDTH)
    sae.initialise(x_nd, generator(0, "atoms"))
    torch.testing.assert_close(sae.offset, x_nd.mean(0))
    norm = 0.1 if name in TENTH_LONG else 1.0
    torch.testing.assert_close(sae.atoms.norm(dim=1), torch.full((N_FEATURES,), norm))
    torch.testing.assert_close(sae.W_enc, sae.atoms)
    # Whether by a pre-bias or by the encoder's bias: the mean vector starts at pre-activations of 0.
    weight_fd, bias_f = sae.encoder_weights
    assert (weight_fd @ x_nd.mean(0) + bias_f).abs().max() < 1e-5
    assert float((sae.normalise(x_nd) - sae.b_dec.detach()).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    assert float(sae.variance) == pytest.approx(1, rel=1e-5)


def test_without_normalisation_units_are_raw(config: SaeConfig, x_nd: Tensor) -> None:
    sae = build(config, width=WIDTH)
    sae.initialise(x_nd, generator(0, "atoms"), Normalisation.none)
    assert float(sae.scale) == 1
    assert float(sae.variance) == pytest.approx(float(x_nd.double().var(0, correction=0).sum()), rel=1e-5)


def test_mean_square_normalisation(config: SaeConfig, x_nd: Tensor) -> None:
    sae = build(config, width=WIDTH)
    sae.initialise(x_nd, generator(0, "atoms"), Normalisation.mean_square)
    assert float(sae.normalise(x_nd).square().sum(1).mean()) == pytest.approx(1, rel=1e-5)


def test_folding_the_scale_changes_no_number(sae: Sae, x_nd: Tensor) -> None:
    sae = sae.double()
    x_nd = x_nd.double()
    before, dictionary = sae(x_nd), sae.dictionary.clone()
    assert before.codes.any()
    sae.fold_scale()
    assert float(sae.scale) == 1
    after = sae(x_nd)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.dictionary, dictionary)


def test_codes_do_not_depend_on_the_unit_of_the_activations(config: SaeConfig, x_nd: Tensor) -> None:
    one, other = (build(config, width=WIDTH).double() for _ in range(2))
    one.initialise(x_nd.double(), generator(0, "atoms"))
    other.initialise(1000 * x_nd.double(), generator(0, "atoms"))
    torch.testing.assert_close(one.encode(x_nd.double()), other.encode(1000 * x_nd.double()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(1000 * one.dictionary, other.dictionary)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_samples_are_refused(config: SaeConfig, x_nd: Tensor, bad: float) -> None:
    sae = build(config, width=WIDTH)
    with pytest.raises(DataError, match="all 9 activation vectors of the sample are equal"):
        sae.initialise(torch.ones(9, WIDTH), generator(0))
    x_nd = x_nd.clone()
    x_nd[7, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        sae.initialise(x_nd, generator(0))


def test_losses_reach_every_parameter_and_tell_what_fired(name: str, sae: Sae, x_nd: Tensor, step: Callable) -> None:
    losses = sae.step_losses(x_nd, step(sae))
    losses.total.backward()
    for parameter_name, parameter in sae.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name
    if name not in BY_BATCH:
        active_nf = sae.encode(x_nd) > 0
        assert torch.equal(losses.fired_f, active_nf.any(0))
        assert float(losses.named["l0"]) == pytest.approx(float(active_nf.sum(1).double().mean()))
    assert not any(number.requires_grad for number in losses.named.values())


def test_the_gradient_along_atoms_is_removed(name: str, sae: Sae, x_nd: Tensor, step: Callable) -> None:
    sae.step_losses(x_nd, step(sae)).total.backward()
    if name in FREE_ATOMS or name == "frozen_decoder":
        before = {key: parameter.grad.clone() for key, parameter in sae.named_parameters()}
        sae.project_gradient()
        assert all(torch.equal(parameter.grad, before[key]) for key, parameter in sae.named_parameters())
        return
    before = sae.W_dec.grad.clone()
    sae.project_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    removed = before - sae.W_dec.grad
    across = removed - (removed * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
    assert removed.abs().max() > 1e-4
    assert across.abs().max() < 1e-6


def test_atoms_return_to_unit_norm(name: str, sae: Sae) -> None:
    if name in ("archetypal", "frozen_decoder"):  # composed at unit norm, or never changed
        before = sae.atoms.detach().clone()
        sae.normalise_atoms()
        assert torch.equal(sae.atoms, before)
        return
    directions = sae.W_dec.detach().clone()
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.1, 9, N_FEATURES)[:, None])
    stretched = sae.W_dec.detach().clone()
    sae.normalise_atoms()
    torch.testing.assert_close(sae.W_dec, stretched if name in FREE_ATOMS else directions)


def test_learns(config: SaeConfig, vectors: Callable) -> None:
    sae, loader = build(config, width=WIDTH), vectors()
    sae.initialise(loader.sample(512), generator(0))
    training = Training(sae, TrainerConfig(n_vectors=64 * 120, batch_size=64, lr=1e-2, log_steps=1, dead_after=640))
    for number in range(120):
        training.advance(loader.batch(number))
    error = training.history["reconstruction" if "reconstruction" in training.history else "fvu"]
    assert sum(error[-10:]) < 0.6 * sum(error[:10])


def test_saved_and_loaded_gives_the_same_to_the_bit(sae: Sae, x_nd: Tensor, tmp_path: Path) -> None:
    io.save(sae, tmp_path)
    loaded = io.load(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.config == sae.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for one, other in zip(loaded(x_nd), sae.eval()(x_nd), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("untouched_rng")
def test_training_draws_from_no_global_generator(config: SaeConfig, vectors: Callable, tmp_path: Path) -> None:
    train(
        build(config, width=WIDTH), vectors(), TrainerConfig(n_vectors=256, batch_size=64), 0, tmp_path, lambda *_: None
    )


def test_number_of_features(config: SaeConfig) -> None:
    assert build(config, width=WIDTH).n_features == N_FEATURES


def test_a_class_without_configuration_says_its_number_of_features() -> None:
    class Own(Sae):
        def activation(self, pre: Tensor) -> Tensor:
            return pre

        def step_losses(self, x_nd: Tensor, step: object) -> None:  # type: ignore[override]
            return None

    with pytest.raises(ConfigError, match="Own was not told its number of features"):
        Own({}, width=4)

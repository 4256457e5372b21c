"""The contract of autoencoders of whole maps and of pairs of sites: a new one is one more entry of CASES."""

# B images  P = H·W positions  D width read  O width given  F features

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import DataError
from mis_lab.core.files import read_json
from mis_lab.core.seeding import generator
from mis_lab.sae import architectures, io
from mis_lab.sae.base import Autoencoder, Sae
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.further_config import ConvConfig, TranscoderConfig
from mis_lab.sae.train import EVALUATIONS, train
from mis_lab.sae.trainer_config import Normalisation, TrainerConfig

GRID, D, O, N_FEATURES = (2, 3), 8, 5, 24
PAIR, MAP = {"width": D, "width_out": O}, {"width": D, "grid": GRID}
CASES: dict[str, tuple[SaeConfig, dict[str, Any]]] = {
    "conv": (ConvConfig(expansion=3, l1=0.05), MAP),
    "conv_rectified": (ConvConfig(expansion=3, l1=0.05, rectify_output=True), MAP),
    "transcoder": (TranscoderConfig(expansion=3, k=4, aux_k=4), PAIR),
    "transcoder_skip": (TranscoderConfig(expansion=3, k=4, aux_k=4, skip=True), PAIR),
    "transcoder_dense": (TranscoderConfig(expansion=3, k=4, aux_k=4, sparse=False), PAIR),
}
TRAINER = TrainerConfig(n_vectors=96 * 150, batch_size=96, lr=1e-2, log_steps=1, dead_after=960)


@dataclass
class Items:
    """Batches of whole images or of vectors, a function of the step."""

    items: Tensor
    n_vectors: int
    n_a_batch: int

    def batch(self, step: int) -> Tensor:
        order = torch.randperm(len(self.items), generator=generator(step, "order"))
        return self.items[order[: self.n_a_batch]]

    def sample(self, n: int) -> Tensor:
        return self.items[: max(1, n * len(self.items) // self.n_vectors)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[SaeConfig, dict[str, Any]]:
    return CASES[request.param]


@pytest.fixture
def images_bpd(case: tuple[SaeConfig, dict[str, Any]], x_nd: Tensor) -> Tensor:
    """(80, 6, D) images, for pairs (80, 6, D + O) with a target that the source determines."""
    x_bpd = torch.cat([x_nd, x_nd.flip(0), 1.5 * x_nd])[:480].relu().view(80, 6, D)
    if "width_out" not in case[1]:
        return x_bpd
    maps_do = torch.randn(D, O, generator=generator(8))
    return torch.cat([x_bpd, 20 * (x_bpd @ maps_do).relu() - 3], 2)


@pytest.fixture
def batch(case: tuple[SaeConfig, dict[str, Any]], images_bpd: Tensor) -> Tensor:
    return images_bpd if "grid" in case[1] else images_bpd.flatten(0, 1)


@pytest.fixture
def made(case: tuple[SaeConfig, dict[str, Any]]) -> Callable[[], Autoencoder]:
    return lambda: build(case[0], **case[1])


@pytest.fixture
def sae(made: Callable[[], Autoencoder], batch: Tensor) -> Autoencoder:
    sae = made()
    sae.initialise(batch, generator(0))
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(sae.W_enc.shape, generator=generator(1)))
        sae.b_enc.add_(0.1 * torch.randn(sae.b_enc.shape, generator=generator(2)))
    return sae


def test_every_such_architecture_is_tested() -> None:
    found = set()
    for module in pkgutil.iter_modules(architectures.__path__):
        for member in vars(importlib.import_module(f"{architectures.__name__}.{module.name}")).values():
            if not (isinstance(member, type) and issubclass(member, Autoencoder)) or inspect.isabstract(member):
                continue
            if not issubclass(member, Sae) or "width_out" in inspect.signature(member).parameters:
                found.add(member)
    assert found == {type(build(config, **extra)) for config, extra in CASES.values()}


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_any_leading_dimensions(sae: Autoencoder, images_bpd: Tensor, leading: tuple[int, ...]) -> None:
    n = max(1, torch.Size(leading).numel())
    x = sae.source(images_bpd[:n]).reshape(*leading, 6, D)
    output = sae(x)
    assert output.codes.shape == (*leading, 6, N_FEATURES)
    assert output.reconstruction.shape == sae.target(images_bpd[:n]).reshape(*leading, 6, -1).shape
    assert output.reconstruction.shape[-1] == sae.width_out
    torch.testing.assert_close(output.codes.reshape(n, 6, -1), sae.encode(x.reshape(n, 6, D)))


def test_starts_from_data(made: Callable[[], Autoencoder], batch: Tensor) -> None:
    sae = made()
    sae.initialise(batch, generator(0))
    target = sae.target(batch).reshape(-1, sae.width_out)
    scale = getattr(sae, "target_scale", sae.scale)
    assert float((target * scale).var(0, correction=0).sum()) == pytest.approx(1, rel=1e-5)
    assert float(sae.variance) == pytest.approx(1, rel=1e-5)
    empty = sae.decode(torch.zeros(6, N_FEATURES))
    torch.testing.assert_close(empty, target.mean(0).expand(6, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.flatten(1).norm(dim=1), torch.ones(N_FEATURES))
    assert not sae.b_enc.any()
    sae.initialise(batch, generator(0), Normalisation.none)
    assert float(sae.scale) == float(getattr(sae, "target_scale", sae.scale)) == 1


def test_codes_do_not_depend_on_the_unit_of_the_activations(made: Callable[[], Autoencoder], batch: Tensor) -> None:
    one, other = made().double(), made().double()
    one.initialise(batch.double(), generator(0))
    other.initialise(1000 * batch.double(), generator(0))
    x = one.source(batch).double()
    torch.testing.assert_close(one(x).codes, other(1000 * x).codes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(1000 * one(x).reconstruction, other(1000 * x).reconstruction)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_samples_are_refused(made: Callable[[], Autoencoder], batch: Tensor, bad: float) -> None:
    sae = made()
    with pytest.raises(DataError, match="activation vectors of the sample are equal"):
        sae.initialise(torch.ones_like(batch), generator(0))
    batch = batch.clone()
    batch[7, ..., -1] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        sae.initialise(batch, generator(0))


def test_losses_reach_every_parameter_and_tell_what_fired(sae: Autoencoder, batch: Tensor, step: Callable) -> None:
    losses = sae.step_losses(batch, step(sae))
    losses.total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    active = (sae.encode(sae.source(batch)) > 0).flatten(0, -2)
    assert torch.equal(losses.fired_f, active.any(0))
    assert float(losses.named["l0"]) == pytest.approx(float(active.sum(1).double().mean()))
    assert not any(number.requires_grad for number in losses.named.values())


def test_atoms_are_kept_at_unit_norm(sae: Autoencoder, batch: Tensor, step: Callable) -> None:
    directions = sae.W_dec.detach().clone()
    sae.step_losses(batch, step(sae)).total.backward()
    sae.project_gradient()
    assert (sae.W_dec.grad * sae.W_dec).flatten(1).sum(1).abs().max() < 1e-6
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    sae.normalise_atoms()
    torch.testing.assert_close(sae.W_dec.detach(), directions)


@pytest.mark.usefixtures("untouched_rng")
def test_trains_evaluates_and_saves(
    made: Callable[[], Autoencoder], batch: Tensor, images_bpd: Tensor, stored: type, tmp_path: Path
) -> None:
    sae = made()
    n_a_batch = 16 if sae.reads_maps else 96
    summary = train(
        sae, Items(batch, 480, n_a_batch), TRAINER, 0, tmp_path, lambda *_: None, held_out_nd=batch[:n_a_batch]
    )
    assert summary.n_vectors == TRAINER.n_vectors
    fvu = summary.history["fvu"]
    assert sum(fvu[-10:]) < 0.6 * sum(fvu[:10])

    loaded = io.load(tmp_path)
    assert type(loaded) is type(sae)
    assert (loaded.config, loaded.width, loaded.width_out) == (sae.config, D, sae.width_out)
    for one, other in zip(loaded(loaded.source(batch)), sae(sae.source(batch)), strict=True):
        assert torch.equal(one, other)

    exact = sae.double().requires_grad_(False)
    y = exact.target(images_bpd).double()
    error = (y - exact(exact.source(images_bpd).double()).reconstruction).square().sum()
    quality = evaluate_reconstruction(loaded, stored(images_bpd))
    assert quality.fvu == pytest.approx(float(error / (y - y.mean((0, 1))).square().sum()), rel=1e-6)
    assert quality.fvu < 0.7
    last = read_json(tmp_path / EVALUATIONS)["fvu"][-1]
    part = evaluate_reconstruction(loaded, stored(images_bpd), range(16)).fvu
    assert last == pytest.approx(part, rel=1e-4)
